"""Beside MkDocs' plugins: pages from the top folder, formulas as MathML."""

import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md"}
PAGES |= {name: name.lower() for name in ("CONTRIBUTING.md", "CHANGELOG.md")}
LINK = re.compile(r"\]\((?:docs/)?([^):]+)\)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", flags=re.DOTALL)
BLOCK = re.compile(r"\$\$(.+?)\$\$", flags=re.DOTALL)
INLINE = re.compile(r"\$([^$\n]+?)\$")


def on_files(files, config):
    """The home page is README; what it links to is where the site has it."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text("utf-8")
        text = LINK.sub(lambda m: f"]({PAGES.get(m[1], m[1])})", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """LaTeX as MathML, which browsers show without a script."""
    parts = CODE.split(markdown)
    parts[::2] = [_with_formulas(text) for text in parts[::2]]
    return "".join(parts)


def _with_formulas(text):
    text = BLOCK.sub(lambda m: f"<div>{convert(m[1], display='block')}</div>", text)
    # In a span: Markdown would take a paragraph that begins with it for HTML.
    return INLINE.sub(lambda m: f"<span>{convert(m[1])}</span>", text)
