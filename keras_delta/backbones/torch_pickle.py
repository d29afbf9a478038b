"""Reads PyTorch state dicts in the old (before 1.6) file format, without PyTorch.

Such a file is a sequence of pickles followed by raw numbers: a magic number, a
protocol version, facts about the machine that wrote it, the state dict (whose
tensors refer to storages by key), the list of storage keys, and, for every key, a
count and the little-endian values. A pickle can run any code, so the unpickler used
here only accepts the few names that a state dict needs.

Source: `_legacy_save` and `_legacy_load` in PyTorch's `torch/serialization.py`.
"""

import io
import math
import pickle
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "<?",
}


# Tuples, because a pickle's BUILD step can set attributes on anything that has
# them: stand-ins must have none.
class _StorageType(NamedTuple):
    dtype: str


class _Storage(NamedTuple):
    dtype: str
    key: str
    count: int  # type: ignore[assignment]


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _RebuildTensor(NamedTuple):
    """Stands for `torch._utils._rebuild_tensor_v2`."""

    def __call__(
        self, storage, offset, shape, strides, requires_grad, hooks, metadata=None
    ):
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


_STATE_DICT_NAMES = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, names):
        super().__init__(file, encoding="utf-8")
        self.names = names
        self.storages = {}

    def find_class(self, module, name):
        # Only the exact pair: a dotted `name` would reach into attributes.
        try:
            return self.names[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid):
        if not self.names:
            raise pickle.UnpicklingError("a storage outside of the state dict")
        tag, kind, key, _, count, view = pid
        if tag != "storage" or not isinstance(kind, _StorageType):
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        if view is not None:
            raise pickle.UnpicklingError("views of storages are not supported")
        if type(count) is not int or count < 0:
            raise pickle.UnpicklingError(f"storage of {count!r} values")
        storage = _Storage(kind.dtype, key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"two storages with the key {key!r}")
        return storage


class _Refused(Exception):
    """Raised for a name that a state dict does not need."""


def read_state_dict(data, source="the file"):
    """Read a state dict that PyTorch saved in its old format.

    Nothing in the file is executed: the only names it may use are
    `collections.OrderedDict`, `torch._utils._rebuild_tensor_v2` and the names of
    PyTorch's storage types.

    Args:
        data: bytes of the whole file.
        source: name of the file in errors.

    Returns:
        Dict name -> `numpy.ndarray`, in the order of the file; the arrays are
        contiguous copies.

    Raises:
        ValueError: if the file uses any other name, is truncated, is in another
            format, or contains a tensor that reaches beyond its storage.
    """
    if data[:4] == b"PK\x03\x04":
        raise ValueError(
            f"{source} is in PyTorch's zip format; only the old format is supported. "
            "Save it with `torch.save(..., _use_new_zipfile_serialization=False)`."
        )
    try:
        return _read(io.BytesIO(data))
    except _Refused as e:
        raise ValueError(
            f"{source} was rejected: its pickle uses `{e}`, which no state dict "
            "needs and which could run code. Nothing in it was executed."
        ) from None
    except Exception as e:  # a malformed pickle can raise anything
        raise ValueError(
            f"{source} is not a readable PyTorch state dict in the old format: "
            f"{e or type(e).__name__}. It may be truncated or damaged."
        ) from e


def _read(file):
    if _load(file) != _MAGIC:
        raise ValueError("the magic number is missing")
    version = _load(file)
    if version != _PROTOCOL:
        raise ValueError(f"protocol {version!r} instead of {_PROTOCOL}")
    if _load(file).get("little_endian") is not True:
        raise ValueError("not written on a little-endian machine")

    unpickler = _Unpickler(file, _STATE_DICT_NAMES)
    state = unpickler.load()
    if not isinstance(state, dict):
        raise ValueError("it contains no dict of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ValueError(f"the entry {name!r} is not a tensor")

    keys = _load(file)
    if not isinstance(keys, list) or set(keys) != set(unpickler.storages):
        raise ValueError("the list of storages does not match the state dict")
    values = {key: _read_storage(file, unpickler.storages[key]) for key in keys}
    return {
        name: _rebuild(name, tensor, values[tensor.storage.key])
        for name, tensor in state.items()
    }


def _load(file):
    return _Unpickler(file, names={}).load()


def _read_storage(file, storage):
    count = int.from_bytes(_take(file, 8), "little", signed=True)
    if count != storage.count:
        raise ValueError(f"storage of {count} values instead of {storage.count}")
    dtype = np.dtype(storage.dtype)
    return np.frombuffer(_take(file, count * dtype.itemsize), dtype)


def _take(file, size):
    data = file.read(size)
    if len(data) != size:
        raise EOFError(f"{size} bytes expected, {len(data)} left")
    return data


def _rebuild(name, tensor, values):
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    numbers = (offset, *shape, *strides)
    if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
        raise ValueError(f"'{name}' has a malformed shape")
    # Strides of zero could expand a few bytes to any size.
    if math.prod(shape) > len(values):
        raise ValueError(f"'{name}' is larger than its storage")
    if math.prod(shape):
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if last >= len(values):
            raise ValueError(f"'{name}' reaches beyond its storage")
    view = np.lib.stride_tricks.as_strided(
        values[offset:],
        shape,
        [s * values.itemsize for s in strides],
        writeable=False,
    )
    return np.array(view, order="C")  # numpy would keep the odd strides otherwise
