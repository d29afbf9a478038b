"""Errors of requests: an HTTP status and a sentence."""

import math


class Problem(Exception):
    """The answer `{"error": text}` to a request that cannot be served."""

    def __init__(self, status, text, headers=None):
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers


def bad(text):
    """400: the request itself is wrong."""
    return Problem(400, text)


def not_finite(output, images):
    """500: the network's answer is not a number, which JSON cannot represent."""
    text = f"The model's output {output!r} is not finite (NaN or infinite) for image "
    return Problem(500, f"{text}{images}, counted from 0. Send only the others.")


def busy(text, seconds=1):
    """503: it may work later."""
    return Problem(503, text, {"Retry-After": str(math.ceil(seconds))})


def too_slow(settings):
    """504: it took longer than allowed."""
    text = f"The answer took longer than {settings.timeout:g} s. Send fewer images at "
    return Problem(504, f"{text}once, or try again when the server is less busy.")
