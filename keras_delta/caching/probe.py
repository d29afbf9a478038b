"""Checks whether training data are repeated, by comparing hashes of two passes."""

import inspect
import math

import keras
from keras import tree

from keras_delta._inputs import samples
from keras_delta.caching.keys import keys_of

MOST = 2048  # samples to look at
RANDOM = (
    "Random augmentation (crops, colour) without fixed views gives new images in each "
    "epoch, so no cached map would ever be used. Use `batches(views=4)` of "
    '`keras_delta.data` with `SourceMapCache(views=4)`. Or: `source_maps="compute"`.'
)


def check_data(x, y, batch_size, views):
    """Reject data whose samples are not repeated, so that no cached map would be used.

    Arrays need no check. Of other data, up to 2,048 samples are read, only their
    inputs are hashed, and the data is read again until enough of them have recurred.
    With v views of a sample, two passes show the same one with a chance of at least
    1/v; half of that is required, since shuffled data that drops its last batch drops
    other samples each time. Data is rejected if so few would recur only about once in a
    thousand times; so two views of fewer than 29 samples are never rejected. The second
    pass ends after 4 times 2,048 samples: for more data than that, a single recurring
    sample suffices, because the order may differ.

    Args:
        x, y, batch_size: training data, as `fit` takes it.
        views: maximum number of different views of one sample.

    Raises:
        ValueError: if the samples are not repeated, or the data is endless or a
            generator.
    """
    _check_kind(x)
    inputs = x[0] if isinstance(x, tuple) and y is None and len(x) > 1 else x
    if samples.are_arrays(inputs):
        return
    if hasattr(x, "image_views"):  # of `ImageSet.batches`, which knows
        _check_views(x.image_views, views)
        return

    def read(most):
        for bx, _ in samples.batches(x, y, batch_size or 32, max_samples=most):
            yield from (key.tobytes() for key in keys_of(tree.flatten(bx)))

    first = list(read(MOST))
    enough = _least(len(first), 0.5 / views)
    if not enough:
        return
    known, count, again = set(first), 0, 0
    for key in read(4 * MOST):
        again += 1
        count += key in known
        if count >= enough:
            return
    if not count or again < 4 * MOST:
        raise ValueError(
            "Source maps cannot be cached for this data: of "
            f"{len(first)} samples, {count or 'none'} recurred when the data was read "
            f"again, although at most {views} view(s) of each were expected. {RANDOM}"
        )


def _check_kind(x):
    if inspect.isgenerator(x):
        raise ValueError(
            "Source maps cannot be cached for a generator: it can only be read once, "
            'so its samples may never recur. Train with `source_maps="compute"`, or '
            "pass arrays, a tf.data.Dataset or a keras.utils.PyDataset."
        )
    if isinstance(x, keras.utils.PyDataset):
        endless = x.num_batches is None
    else:
        endless = hasattr(x, "cardinality") and int(x.cardinality()) == -1
    if endless:
        raise ValueError(
            "Source maps cannot be cached for endless data (`repeat()`): its number of "
            "different samples is unknown. Pass the data without "
            '`repeat()` and omit `steps_per_epoch`. Or: `source_maps="compute"`.'
        )


def _check_views(views, expected):
    if views == math.inf:
        raise ValueError(f"Source maps cannot be cached for this data. {RANDOM}")
    if views > expected:
        raise ValueError(
            f"The data has {views} views of each image, but the cache was created for "
            f"{expected}. Pass `source_maps=SourceMapCache(views={views})`."
        )


def _least(n, p):
    """The least number of `n` samples to be expected if each recurs with chance `p`.

    Fewer do about once in a thousand times (3.09 standard deviations below the mean).
    """
    return max(0, math.ceil(n * p - 3.09 * math.sqrt(n * p * (1 - p))))
