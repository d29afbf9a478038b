"""Whether training data comes back: read twice, hashed, compared."""

import inspect
import math

import keras
from keras import tree

from keras_delta._inputs import samples
from keras_delta.caching.keys import keys_of

MOST = 2048  # samples to look at
CHANCE = 1e-3
REMEDY = "Leave out `source_maps`"
RANDOM = (
    "Random augmentation (crops, colour) without fixed views gives new images in each "
    "epoch, so nothing could be read back. Use `batches(views=4)` of "
    "`keras_delta.data` with `SourceMapCache(views=4)`. Or: leave out `source_maps`."
)


def check_data(x, y, batch_size, views):
    """Refuse data whose samples do not come back, so that nothing could be read.

    Arrays need no look. Of other data up to 2,048 samples are read, inputs alone
    are hashed, and the data is read again until enough of them came back. With v
    views of a sample, two passes show the same one with a chance of at least 1/v;
    half of that is asked for, since shuffled data that drops its last batch drops
    other samples each time. Data is refused if as few as came back would do so less
    than once in a thousand times; so two views of fewer than 25 samples never are.
    The second pass ends after 4 times 2,048 samples: in more data than that, one
    that came back will do, because the order may differ.

    Args:
        x, y, batch_size: training data, as `fit` takes it.
        views: how many different views of one sample there may be.

    Raises:
        ValueError: for such data, for data without end, and for generators.
    """
    if inspect.isgenerator(x):
        raise ValueError(
            "Source maps cannot be kept for a generator: it can be read only once, so "
            f"its samples need not come back. {REMEDY}, or pass arrays, a "
            "tf.data.Dataset or a keras.utils.PyDataset."
        )
    inputs = x[0] if isinstance(x, tuple) and y is None and len(x) > 1 else x
    if all(hasattr(v, "shape") for v in tree.flatten(inputs)):
        return
    if hasattr(x, "image_views"):  # of `ImageSet.batches`, which knows
        _check_views(x.image_views, views)
        return
    if _endless(x):
        raise ValueError(
            "Source maps cannot be kept for data without end (`repeat()`): nothing "
            "says how many different samples it has. Pass the data without "
            f"`repeat()` and leave out `steps_per_epoch`. Or: {REMEDY.lower()}."
        )

    def read(most):
        stream = samples.batches(x, y, batch_size or 32, max_samples=most)
        for bx, _ in stream:
            for key in keys_of(tree.flatten(bx)):
                yield key.tobytes()

    seen = list(read(MOST))
    enough = _least(len(seen), 0.5 / views)
    known, count, again = set(seen), 0, 0
    for key in read(4 * MOST) if enough else ():
        count, again = count + (key in known), again + 1
        if count >= enough:
            break
    if count < enough and not (count and again == 4 * MOST):
        raise ValueError(
            "Source maps cannot be kept for this data: of "
            f"{len(seen)} samples, {count or 'none'} came back when the data was read "
            f"again, where at most {views} view(s) of each were expected. {RANDOM}"
        )


def _check_views(there, expected):
    if there == math.inf:
        raise ValueError(f"Source maps cannot be kept for this data. {RANDOM}")
    if there > expected:
        raise ValueError(
            f"The data has {there} views of each image, but the cache was made for "
            f"{expected}. Pass `source_maps=SourceMapCache(views={there})`."
        )


def _endless(x):
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches is None
    return hasattr(x, "cardinality") and int(x.cardinality()) == -1


def _least(n, p):
    """The least of `n` to be expected, where each comes back with the chance `p`.

    Fewer do in less than one of a thousand times (binomial distribution).
    """
    total = 0.0
    for k in range(n + 1):
        log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        total += math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))
        if total >= CHANCE:
            return k
    return n
