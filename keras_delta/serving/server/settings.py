"""The settings of the server and their limits."""

import dataclasses

from keras_delta import _arguments


def _field(default, text):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of the server; the command's options are named after them.

    Args:
        max_batch_size: images that the network sees at once.
        batch_timeout_ms: how long an image waits for others. At 0, a batch consists of
            the images that arrived during the previous one: no image waits needlessly.
        queue: requests waiting or in progress; any more get the answer 503.
        timeout: seconds for a request; slower ones get the answer 504.
        max_body_mb: megabytes (10^6 bytes) in the body of a request.
        max_pixels: pixels of an encoded image, and of its resized copy.
        max_images: images in a request.
        poll_seconds: seconds between checks for a new version.
        page: whether to serve a page for photos at `/`.

    Raises:
        TypeError, ValueError: if a value is out of range.
    """

    max_batch_size: int = _field(16, "images that the network sees at once")
    batch_timeout_ms: float = _field(
        0.0, "how long an image waits for others; 0: while a batch is computed"
    )
    queue: int = _field(128, "requests waiting or in progress; any more get 503")
    timeout: float = _field(30.0, "seconds for a request; slower ones get 504")
    max_body_mb: float = _field(16.0, "megabytes of a request")
    max_pixels: int = _field(40_000_000, "pixels of an image, also once resized")
    max_images: int = _field(64, "images in a request")
    poll_seconds: float = _field(5.0, "seconds between checks for a new version")
    page: bool = _field(True, "a page for photos at /")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is bool:
                _arguments.flag(field.name, value)
            elif field.type is int:
                _arguments.integer(field.name, value)
            else:
                least = 0.0 if field.name == "batch_timeout_ms" else 1e-3
                _arguments.number(field.name, value, least=least)

    @property
    def max_body(self):
        """Bytes of a request's body."""
        return int(self.max_body_mb * 1e6)
