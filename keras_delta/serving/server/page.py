"""The page for photos: a single file without external resources."""

import base64
import functools
import hashlib
import html
import re
from importlib import resources

FILE = "page.html"
NAME = "{{name}}"


@functools.cache
def rendered(name):
    """(text, headers) of a model's page; only the page's own script may run."""
    text = resources.files(__package__).joinpath(FILE).read_text("utf-8")
    script, style = (
        _hash(re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1])
        for tag in ("script", "style")
    )
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return text.replace(NAME, html.escape(name)), headers


def _hash(text):
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
