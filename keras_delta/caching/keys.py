"""A hash of a sample's bytes, used as its key."""

import hashlib

import numpy as np

SIZE = 16  # bytes: 128 bits, so that two samples never share a key in practice


def keys_of(inputs):
    """A key per sample, from its bytes, dtype and shape in every input.

    SHA-256, cut to 128 bits: processors compute it in hardware, twice as fast as
    BLAKE2b (16 images of 96x96x3 float32: 1.0 ms, BLAKE2b 1.9 ms).

    Args:
        inputs: list of arrays `(B, ...)`, always in the same order.

    Returns:
        uint8 `(B, 16)`.

    Raises:
        ValueError: if an input is not numeric.
    """
    digests = [hashlib.sha256() for _ in range(len(inputs[0]))]
    for array in inputs:
        if array.dtype.hasobject:
            raise ValueError(
                "Source maps can only be cached for numeric inputs. Received an input "
                f'of dtype {array.dtype}. Train with `source_maps="compute"`.'
            )
        header = f"{array.dtype.name}{array.shape[1:]}".encode()
        for digest, sample in zip(digests, array, strict=True):
            digest.update(header)
            # As bytes: bfloat16 does not provide a buffer.
            digest.update(sample.tobytes())
    joined = b"".join(digest.digest()[:SIZE] for digest in digests)
    return np.frombuffer(joined, "uint8").reshape(len(digests), SIZE)
