"""`SourceMapCache`: caches the source's maps of each sample."""

import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Self

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._network import memory as memories
from keras_delta._types import Data, PathLike, Shape, Tensor
from keras_delta.caching import probe
from keras_delta.caching.keys import SIZE, keys_of
from keras_delta.caching.store import Store


@keras.saving.register_keras_serializable("keras_delta")
class SourceMapCache:
    """Caches the feature maps of the frozen source, so that it runs once per sample.

    The source never changes, so if training images recur (no augmentation, flips, a
    fixed number of views), so do its maps. They are stored under a hash of the image
    exactly as the model receives it: changed images, other data or new augmentation can
    only cause a miss, never a wrong map. Maps of different sources are separated by the
    source's fingerprint.

    All maps are rounded to `dtype`, including newly computed ones, so training does
    not depend on the content of the cache. float16 has a relative error of at
    most 2**-11 (and 2**-25 in absolute terms below 6e-5).

    Args:
        directory: folder to store the maps in, also for later runs; created if
            necessary. One run at a time. Default: in memory, with the rest in a
            temporary file (its location is set by `TMPDIR`) that is deleted with the
            process.
        memory: bytes of maps in memory, a number or text such as `"2GB"`; default
            `"auto"`: a quarter of the memory available at the start. With a directory,
            maps that were read are kept in memory up to this limit.
        dtype: `"float16"` or `"float32"`, the type of the stored maps; predictions of
            the source (`"kd"`, `"lwf"`) are always stored in float32.
        views: maximum number of different views of one sample: 1 without augmentation,
            2 with flips, n for `batches(views=n)`. More raise an error: with random
            augmentation, no image would ever recur and the disk would fill up.

    Attributes:
        hits: number of samples whose maps were cached, since `open`.
        misses: number of samples whose maps were computed, since `open`.
        bytes: bytes of all stored maps, in memory or on disk; `len(cache)` counts them.
        memory_bytes: bytes of the maps in memory.
        is_open: whether `maps` can be called.

    Raises:
        ValueError: if an argument is invalid.

    Example:
        ```python
        cache = kd.SourceMapCache("maps", dtype="float32")
        model.fit(train, epochs=15, regularizer="delta", source_maps=cache)
        ```
    """

    def __init__(
        self,
        directory: PathLike | None = None,
        memory: int | str = "auto",
        dtype: Literal["float16", "float32"] = "float16",
        views: int = 2,
    ) -> None:
        directory = _arguments.folder("directory", directory, optional=True)
        memories.budget(None if memory == "auto" else memory)
        self.directory = None if directory is None else os.fspath(directory)
        self.memory = memory
        self.dtype = _arguments.choice("dtype", dtype, ("float16", "float32"))
        self.views = _arguments.integer("views", views)
        self._store: Any = None
        self.is_open = False
        self._lock = threading.Lock()
        self._begin(None)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as a dict."""
        names = ("directory", "memory", "dtype", "views")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Create a cache from `get_config`; it is not open."""
        return cls(**config)

    # Copies (as in Keras Tuner) only have the settings: a folder has one owner.
    def __reduce__(self):
        return functools.partial(type(self), **self.get_config()), ()

    def open(
        self,
        fingerprint: str,
        spec: Mapping[str, Shape],
        samples_per_epoch: int | None = None,
    ) -> Self:
        """Prepare the cache for the maps of one source.

        Maps in memory from an earlier `open` are kept if they are of this source.

        Args:
            fingerprint: text that differs for other weights, graph, taps or precision.
            spec: dict tap -> shape of a sample's map, without the batch; None for
                sizes that depend on the image.
            samples_per_epoch: number of different samples without augmentation, for
                checking `views`; None for no check.

        Returns:
            This cache.

        Raises:
            ValueError: if the folder is not writable or contains something else.
            RuntimeError: if it is open, or its folder is in use by another process.
        """
        if self.is_open:
            raise RuntimeError(
                f"{self!r} is in use. Call `close()` first, or use another one."
            )
        spec = {str(tap): tuple(shape) for tap, shape in spec.items()}
        store = self._store
        if store is not None and (store.fingerprint, store.spec) == (fingerprint, spec):
            store.open()
        else:
            self.close()
            budget = memories.budget(None if self.memory == "auto" else self.memory)
            if budget is None:
                budget = (memories.available() or 2**32) // 4
            self._store = Store(fingerprint, spec, self.dtype, budget, self.directory)
        self._begin(samples_per_epoch)
        self.is_open = True
        return self

    def _begin(self, samples_per_epoch):
        self.hits = self.misses = 0
        self.error = None
        self._samples, self._new = samples_per_epoch, set()

    def close(self, keep: bool = False) -> None:
        """Release the folder and, unless `keep`, all maps that are not in it."""
        self.is_open = False
        if self._store is not None:
            self._store.close(keep)
            if not keep:
                self._store = None

    @contextlib.contextmanager
    def opened(
        self,
        fingerprint: str,
        spec: Mapping[str, Shape],
        samples_per_epoch: int | None = None,
        keep: bool = False,
    ) -> Iterator[Self]:
        """Context manager that calls `open` and `close`.

        Errors in `maps` are raised unchanged, while TensorFlow would wrap them in
        one of its own.
        """
        self.open(fingerprint, spec, samples_per_epoch)
        try:
            yield self
        except tf.errors.OpError as e:
            if self.error is not None:
                raise self.error from e
            raise
        finally:
            self.close(keep)

    def check_data(
        self, x: Data, y: Data = None, batch_size: int | None = None
    ) -> None:
        """Reject training data, as `fit` takes it, whose images do not recur.

        Raises:
            ValueError: if too few images recurred when the data was read twice, or if
                the data is endless or a generator.
        """
        probe.check_data(x, y, batch_size, self.views)

    def maps(
        self, x: Tensor, compute: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the source's maps, computing those that are not cached.

        Works in eager mode, in a `tf.function` and on replicas, but not under XLA
        (`jit_compile=True`), which has no access to files.

        Args:
            x: tensor, or structure of tensors, `(B, ...)`; B may be 0.
            compute: function from one or more samples, in the structure of `x`, to a
                dict tap -> `(b, ...)`; no gradient flows through it.

        Returns:
            Dict tap -> float32 `(B, ...)`.

        Raises:
            RuntimeError: if the cache is not open.
            ValueError: in the step, as TensorFlow's InvalidArgumentError (see
                `opened`): if maps exceed float16, images have a second size, or there
                are more different samples than `views` allows.
        """
        if not self.is_open:
            raise RuntimeError("The SourceMapCache is not open: call `open` first.")
        spec = self._store.spec
        x = tree.map_structure(tf.convert_to_tensor, x)
        known, keys, missing = self._look_up(tree.flatten(x))

        def fill_in():
            some = tree.map_structure(lambda v: tf.gather(v, missing), x)
            new = self._compute(compute, some, tf.gather(keys, missing))
            return [_put(*pair, missing) for pair in zip(known, new, strict=True)]

        maps = tf.cond(
            tf.size(missing) > 0, fill_in, lambda: [tf.identity(v) for v in known]
        )
        result = {}
        for (tap, shape), value in zip(spec.items(), maps, strict=True):
            # Here rather than in NumPy, which takes 8 times as long.
            result[tap] = tf.stop_gradient(tf.cast(value, tf.float32))
            result[tap].set_shape([known[0].shape[0], *shape])
        return result

    def _look_up(self, inputs):
        """Cached maps, keys of all samples, positions of the missing ones."""
        spec = self._store.spec
        types = [*map(tf.as_dtype, self._store.dtypes), tf.uint8, tf.int32]
        with tf.device("CPU:0"):
            *known, keys, missing = tf.numpy_function(
                self._callback(self._find), inputs, types
            )
        keys.set_shape([None, SIZE])
        missing.set_shape([None])
        for tensor, shape in zip(known, spec.values(), strict=True):
            tensor.set_shape([inputs[0].shape[0], *shape])
        return known, keys, missing

    def _compute(self, compute, x, keys):
        """Maps that are not cached yet, rounded and stored."""
        maps, spec = compute(x), self._store.spec
        if set(maps) != set(spec):
            raise ValueError(f"Expected maps of {list(spec)}. Received: {list(maps)}.")
        dtypes = self._store.dtypes
        maps = [tf.cast(maps[t], d) for t, d in zip(spec, dtypes, strict=True)]
        finite = [tf.reduce_all(tf.math.is_finite(v)) for v in maps]
        with tf.device("CPU:0"):
            done = tf.numpy_function(
                self._callback(self._keep), [keys, tf.stack(finite), *maps], tf.bool
            )
        with tf.control_dependencies([done]):
            return [tf.identity(v) for v in maps]

    def _callback(self, function):
        """`function` for a graph, with its last error stored."""
        spec = self._store.spec

        @functools.wraps(function)
        def call(*arrays):
            try:
                if not self.is_open or self._store.spec != spec:
                    raise RuntimeError(
                        "The SourceMapCache was closed, or opened for other maps, "
                        "since this step was traced."
                    )
                return function(*arrays)
            except Exception as e:
                self.error = e
                raise

        return call

    def _find(self, *inputs):
        keys = keys_of(inputs)
        names = [row.tobytes() for row in keys]
        maps, missing = self._store.find(names)
        with self._lock:
            self.hits += len(names) - len(missing)
            self.misses += len(missing)
            self._new.update(names[i] for i in missing)
            count = len(self._new)
        if self._samples is not None and count > self._samples * self.views:
            raise ValueError(
                f"Received {count} different images, more than {self._samples} samples "
                f"can give with {self.views} view(s) of each. {probe.RANDOM}"
            )
        return [*maps, keys, missing]

    def _keep(self, keys, finite, *maps):
        # Casting turns values that are too large into infinities.
        half = np.array(self._store.dtypes) == "float16"
        if (half & ~finite).any():
            taps = [*itertools.compress(self._store.spec, half & ~finite)]
            raise ValueError(
                f"Source maps of {taps} have values above 65504 or not finite, which "
                "float16 cannot represent. Use "
                '`SourceMapCache(dtype="float32")`; if that fails as well, the source '
                "itself returns such values."
            )
        self._store.keep([row.tobytes() for row in keys], maps)
        return np.True_

    def __len__(self) -> int:
        return 0 if self._store is None else len(self._store)

    def __bool__(self) -> bool:
        return True  # also while it is empty

    @property
    def bytes(self) -> int:
        """Bytes of all stored maps, in memory or on disk."""
        return 0 if self._store is None else len(self._store) * self._store.row_bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes of the maps in memory."""
        return 0 if self._store is None else self._store.memory_bytes

    def __repr__(self):
        where = "in memory" if self.directory is None else f"in '{self.directory}'"
        return (
            f"<SourceMapCache {where}: {len(self)} samples, "
            f"{memories.show(self.bytes)}, {self.hits} hits, {self.misses} misses>"
        )


def _put(known, new, positions):
    """The known maps, with new ones at some positions."""
    # Unknown sizes are 1 until the first maps have determined them.
    shape = tf.concat([tf.shape(known)[:1], tf.shape(new)[1:]], 0)
    known = tf.broadcast_to(known, shape)
    return tf.tensor_scatter_nd_update(known, positions[:, None], new)


def get(identifier: str | SourceMapCache | None) -> SourceMapCache | None:
    """Return the cache for an argument `source_maps`, or None.

    Args:
        identifier: None or `"compute"` for no cache, `"cache"` for a new
            `SourceMapCache()`, or an instance.

    Raises:
        ValueError: if `identifier` is anything else.
    """
    if identifier is None or isinstance(identifier, SourceMapCache):
        return identifier
    if isinstance(identifier, str) and identifier in ("compute", "cache"):
        return SourceMapCache() if identifier == "cache" else None
    expected = '"compute", "cache" or a keras_delta.SourceMapCache'
    raise ValueError(invalid("source_maps", expected, identifier))
