"""Reads the inputs of `fit` outside `fit`, as batches of NumPy arrays."""

import inspect
import math

import keras
import numpy as np
from keras import tree

from keras_delta import _compat
from keras_delta._errors import invalid

MOST = 20_000  # samples that a head is fitted on
NO_TARGETS = "The data has no targets: pass `(x, y)`."
NO_END = (
    "The training data has no end or an unknown length, so it cannot be read "
    "completely. Limit the number of samples: `attention_samples=256` of a "
    "regularizer, `samples=256` of `CoTuning`, `max_samples=256` of "
    "`ChannelAttention.compute`, `fit_head` or `estimate_statistics`."
)


class Batches(list):
    """Batches `(x, y)` of NumPy arrays that were read already, of several shapes."""


def joined(parts):
    """`Batches` as one `(x, y)`."""
    if len({str(_shapes(part)) for part in parts}) > 1:
        raise ValueError(
            "The training data has samples of several shapes, which do not fit into "
            "one array. Read them batch by batch, with `samples.batches(n)`."
        )
    return tree.map_structure(lambda *v: np.concatenate(v), *parts)


def batches(x, y=None, batch_size=32, max_samples=None, weights=None):
    """Iterate over training data once.

    Args:
        x: arrays (or structures of arrays), a `tf.data.Dataset`, a `PyDataset` or
            a torch `DataLoader`; also a tuple `(x, y)` with `y=None`; or `Batches`.
        y: targets, where `x` is arrays.
        batch_size: for arrays.
        max_samples: so many; None for all. Of arrays a seeded random choice, in their
            order, since they may be sorted by class; else those that come first.
        weights: dict with `sample_weight` and `class_weight`, as `fit` takes them; not
            None: the samples' weights are yielded too.

    Yields:
        `(x, y)` of NumPy arrays, or `(x, y, weights)`.

    Raises:
        ValueError: for a generator, which could be read only once; for a data set
            without end and no `max_samples`; for data without targets.
    """
    if isinstance(x, Batches):
        stream = x
    else:
        given = x, y, (weights or {}).get("sample_weight")
        x, y, of_samples = _choose_rows(*given, max_samples)
        options = {**weights, "sample_weight": of_samples} if weights else {}
        adapter = _adapter(x, y, batch_size, **options)
        if max_samples is None and _endless(adapter):
            raise ValueError(NO_END)
        stream = adapter.get_numpy_iterator()
    yield from limited(stream, max_samples, weights is not None)


def _choose_rows(x, y, weights, most):
    """`(x, y, weights)`, if they are arrays `most` samples of them."""
    if isinstance(x, tuple) and y is None and len(x) > 1:
        x, y = x[:2]
    given = x, y, weights
    total = len(tree.flatten(x)[0]) if y is not None and are_arrays((x, y)) else 0
    if most is None or most >= total:
        return given
    chosen = np.random.default_rng(0).choice(total, most, replace=False)
    chosen.sort()
    return tree.map_structure(
        lambda v: np.asarray(v)[chosen] if hasattr(v, "shape") else v, given
    )


def inputs(x, batch_size=32, max_samples=None, seed=0):
    """Iterate once over what a model is fed with; targets are left out, if any.

    Args:
        x: as for `batches`; arrays may come alone, and a generator with `max_samples`.
        batch_size: for arrays.
        max_samples: stop after so many; None for all.
        seed: of the order, for arrays and data sets of `ImageSet.batches`, which are
            read as a test shows them: what is sorted by class would make batches that
            no training sees. All else comes in its own order.

    Yields:
        Arrays, or structures of arrays.

    Raises:
        TypeError, ValueError: as `batches`.
    """
    stream = _open(x, batch_size, max_samples, seed)
    left = math.inf if max_samples is None else max_samples
    for batch in stream:
        batch = keras.utils.unpack_x_y_sample_weight(batch)[0]
        batch = tree.map_structure(np.asarray, batch)
        batch = take(batch, 0, min(left, length(batch)))
        left -= length(batch)
        yield batch
        if not left:
            return


def check_inputs(x):
    """Raise what `inputs` would, without reading anything."""
    _open(x, 32, None, 0)


def _open(x, batch_size, max_samples, seed):
    """Batches as they come, with targets or without."""
    x = x[0] if isinstance(x, tuple) and x else x
    if isinstance(x, Batches):
        return iter(x)
    if hasattr(x, "as_tested"):
        x = x.as_tested(shuffle=True)
    flat = tree.flatten(x)
    if flat and all(len(getattr(v, "shape", ())) for v in flat):
        return _shuffled(x, batch_size, seed)
    if inspect.isgenerator(x):
        if max_samples is None:
            raise ValueError(NO_END)
        return _compat.get_data_adapter(x).get_numpy_iterator()
    adapter = _adapter(x, None, batch_size)
    if max_samples is None and _endless(adapter):
        raise ValueError(NO_END)
    return adapter.get_numpy_iterator()


def _shuffled(x, batch_size, seed):
    """Batches `(x,)` of arrays in a random order; only these are copied."""
    x = tree.map_structure(np.asarray, x)
    lengths = {len(v) for v in tree.flatten(x)}
    if len(lengths) > 1:
        expected = "arrays with the same number of samples"
        raise ValueError(invalid("x", expected, [len(v) for v in tree.flatten(x)]))
    order = np.random.default_rng(seed).permutation(lengths.pop())
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield (tree.map_structure(lambda v, rows=chosen: v[rows], x),)


def limited(stream, max_samples=None, weighted=False):
    """Batches `(x, y)` as arrays, of no more than `max_samples` samples.

    Args:
        stream: batches as `fit` takes them.
        max_samples: None for all.
        weighted: whether to give `(x, y, weights)`; 1 where there are none.
    """
    count = 0
    for batch in stream:
        bx, by, weights = keras.utils.unpack_x_y_sample_weight(batch)
        if by is None:
            raise ValueError(NO_TARGETS)
        bx, by = tree.map_structure(np.asarray, (bx, by))
        _check_batch(by)
        size = length(bx)
        parts = (bx, by)
        if weighted:
            weights = np.ones(size) if weights is None else weights
            parts = (bx, by, tree.map_structure(np.asarray, weights))
        if max_samples is not None and count + size > max_samples:
            size = max_samples - count
            parts = take(parts, 0, size)
        if size:
            yield parts
        count += size
        if max_samples is not None and count >= max_samples:
            return


def _adapter(x, y, batch_size, **weights):
    """Keras's adapter of data that can be read more than once."""
    if inspect.isgenerator(x):
        raise ValueError(
            "A generator can be read only once, so checking it would use it up. "
            "Pass arrays, a tf.data.Dataset or a keras.utils.PyDataset; or let `fit` "
            "read it, which also trains on the samples it has checked."
        )
    if isinstance(x, tuple) and y is None:
        if len(x) < 2:
            raise ValueError(NO_TARGETS)
        x, y = x[:2]
    if x is None or isinstance(x, (str, bytes)):
        expected = "arrays `(x, y)`, a tf.data.Dataset or a keras.utils.PyDataset"
        raise TypeError(invalid("data", expected, x))
    if isinstance(y, list) and y and all(np.ndim(v) == 0 for v in y):
        y = np.asarray(y)  # labels, and not one array an output
    if isinstance(y, np.ndarray):
        _check_labels(y)
    if not hasattr(x, "element_spec") and hasattr(x, "batches"):
        raise TypeError(
            invalid("x", "a tf.data.Dataset", x, "Call `.batches(image_size)` on it.")
        )
    return _compat.get_data_adapter(x, y, batch_size=batch_size, **weights)


def _check_batch(y):
    for v in tree.flatten(y):
        if v.ndim == 0:
            raise ValueError(
                "The data set yields one sample at a time. Batch it: `.batch(32)`."
            )
        _check_labels(v)


def _check_labels(y):
    if y.dtype.kind in "USO":
        raise ValueError(
            f"Labels must be numbers. Received: {y.ravel()[:3].tolist()}. Number the "
            "classes, e.g. with `np.unique(y, return_inverse=True)`."
        )


def regrouped(stream, size):
    """Batches of `size` samples, whatever the sizes of those that come in.

    The last one may be smaller, and so is the last one before the shape of the
    samples changes.
    """
    held, count = [], 0
    for batch in stream:
        if held and _shapes(held[0]) != _shapes(batch):
            yield from _split(held, size)
            held, count = [], 0
        held.append(batch)
        count += length(batch[0])
        if count >= size:
            *whole, rest = _split(held, size)
            yield from whole
            held, count = [rest], length(rest[0])
            if count == size:
                yield rest
                held, count = [], 0
    if held:
        yield from _split(held, size)


def _split(held, size):
    joined = tree.map_structure(lambda *v: np.concatenate(v), *held)
    for start in range(0, length(joined[0]), size):
        yield take(joined, start, start + size)


def _shapes(batch):
    return [v.shape[1:] for v in tree.flatten(batch)]


def _endless(adapter):
    dataset = _compat.adapter_dataset(adapter)
    if hasattr(dataset, "cardinality"):
        return int(dataset.cardinality()) == -1
    return adapter.num_batches is None  # of a PyDataset


def collect(x, y=None, max_samples=None, weights=None):
    """Up to `max_samples` samples as `Batches`; of arrays a seeded random choice.

    Args:
        x, y, max_samples, weights: as for `batches`.
    """
    if isinstance(x, tuple) and y is None:
        x, y = x[:2]
    first = tree.flatten(x)[0]
    if y is not None and hasattr(first, "shape"):
        own = (weights or {}).get("sample_weight")
        own = own if hasattr(own, "shape") else np.ones(len(first))
        given = _choose_rows(x, y, own, max_samples)[: 2 if weights is None else 3]
        return Batches([tree.map_structure(np.asarray, given)])
    parts = Batches(batches(x, y, max_samples=max_samples, weights=weights))
    if not parts:
        raise ValueError("The training data is empty: it yields no samples.")
    return parts


def are_arrays(x):
    """Whether `x` is one array or a structure of arrays."""
    return all(hasattr(v, "shape") for v in tree.flatten(x))


def take(structure, start, stop):
    """Samples start to stop of a structure of arrays."""
    return tree.map_structure(lambda v: v[start:stop], structure)


def length(structure):
    """Number of samples of a structure of arrays."""
    return len(tree.flatten(structure)[0])


def count(x, batch_size):
    """Number of samples that training data has at most; None where it is not known.

    Args:
        x: the data, as `fit` takes it.
        batch_size: that of a data set's first batch.
    """
    if hasattr(x, "image_count"):  # of `ImageSet.batches`
        return x.image_count
    if hasattr(x, "cardinality"):
        batches = int(x.cardinality())
        # The last batch may have been dropped, with other samples in each epoch.
        return (batches + 1) * batch_size - 1 if batches > 0 and batch_size else None
    if isinstance(x, keras.utils.PyDataset):
        batches = x.num_batches
        return None if batches is None else batches * (batch_size or length(x[0]))
    flat = tree.flatten(x)
    return len(flat[0]) if flat and hasattr(flat[0], "shape") else None


def without_validation(x, y, fraction):
    """The part of arrays that `fit(validation_split=fraction)` trains on."""
    if not fraction or y is None:
        return x, y
    count = math.floor(length(x) * (1 - fraction))  # as Keras: the first ones
    return take((x, y), 0, count)
