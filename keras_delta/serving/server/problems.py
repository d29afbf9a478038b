"""What is wrong with a request: a status of HTTP and a sentence."""

import math


class Problem(Exception):
    """The answer `{"error": text}` to a request that cannot be answered otherwise."""

    def __init__(self, status, text, headers=None):
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers


def bad(text):
    """400: the request itself is wrong."""
    return Problem(400, text)


def not_finite(output, images):
    """500: the network's answer is no number, which JSON could not hold."""
    text = f"The model's output {output!r} is not finite (NaN or infinite) for image "
    return Problem(500, f"{text}{images}, counted from 0. Send the others without.")


def busy(text, seconds=1):
    """503: later it may work."""
    return Problem(503, text, {"Retry-After": str(math.ceil(seconds))})


def too_slow(settings):
    """504: it took longer than it may."""
    text = f"The answer took longer than {settings.timeout:g} s. Send fewer images at "
    return Problem(504, f"{text}once, or try again when fewer others do.")
