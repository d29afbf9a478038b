"""What a sample is known by: a hash of its bytes."""

import hashlib

import numpy as np

SIZE = 16  # bytes: 128 bits, so that two samples never share a key in practice


def keys_of(inputs):
    """A key a sample, of its bytes, dtype and shape in every input.

    SHA-256, cut to 128 bits: processors compute it in hardware, twice as fast as
    BLAKE2b (16 images of 96x96x3 float32: 1.0 ms, BLAKE2b 1.9 ms).

    Args:
        inputs: list of arrays `(B, ...)`, in an order that is always the same.

    Returns:
        uint8 `(B, 16)`.

    Raises:
        ValueError: for inputs that are no numbers.
    """
    count = len(inputs[0])
    keys = np.empty((count, SIZE), "uint8")
    if count == 0:
        return keys
    parts = []
    for array in inputs:
        if array.dtype.hasobject:
            raise ValueError(
                "Source maps can be kept for numeric inputs alone. Received an input "
                f"of dtype {array.dtype}. Leave out `source_maps`."
            )
        header = f"{array.dtype.name}{array.shape[1:]}".encode()
        samples = np.ascontiguousarray(array).reshape(count, array[0].size)
        # As bytes: bfloat16 has no buffer of its own.
        parts.append((header, samples.view("uint8") if samples.size else samples))
    for i in range(count):
        found = hashlib.sha256()
        for header, samples in parts:
            found.update(header)
            found.update(samples[i])
        keys[i] = np.frombuffer(found.digest(), "uint8", SIZE)
    return keys
