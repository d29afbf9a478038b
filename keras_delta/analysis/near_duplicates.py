"""Images that occur in both of two sets, possibly slightly changed."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

SIDE = 16  # of the thumbnails that are compared
ALIKE = 0.99  # correlation of thumbnails above which images count as the same
CHUNK = 512


class Pair(NamedTuple):
    """Two images that are nearly the same.

    Attributes:
        first, second: numbers in the first and the second set.
        likeness: correlation of their thumbnails, up to 1.
    """

    first: int
    second: int
    likeness: float


def near_duplicates(first, second, alike=ALIKE):
    """Pairs of images of two sets that show the same, most similar first.

    Grey thumbnails of 16 x 16 pixels, plain and mirrored, are compared by their
    correlation: other sizes, compression, brightness and contrast change little.

    Args:
        first, second: `keras_delta.analysis.images.Images`.
        alike: correlation above which images count as the same.

    Returns:
        List of `Pair`, with the most similar image for each image of `second`.
    """
    a, b = _thumbnails(first), _thumbnails(second)
    found = []
    for start in range(0, len(b), CHUNK):
        part = b[start : start + CHUNK]
        likeness = np.maximum(_compare(a, part), _compare(a, part[:, :, ::-1]))
        best = likeness.argmax(0)
        for i, k in enumerate(best.tolist()):
            if likeness[k, i] >= alike:
                found.append(Pair(k, start + i, float(likeness[k, i])))
    return sorted(found, key=lambda pair: -pair.likeness)


def _compare(a, b):
    return a.reshape(len(a), -1) @ b.reshape(len(b), -1).T


def _thumbnails(images):
    """`(N, 16, 16)` of mean 0 and length 1; all 0 for a single colour."""
    parts = []
    for batch in images.batches():
        grey = batch.astype("float32").mean(-1, keepdims=True)
        small = tf.image.resize(grey, (SIDE, SIDE), method="area").numpy()[..., 0]
        small -= small.mean((1, 2), keepdims=True)
        length = np.sqrt(np.square(small).sum((1, 2), keepdims=True))
        parts.append(small / np.where(length > 1e-3, length, np.inf))
    return np.concatenate(parts)
