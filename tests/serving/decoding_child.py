"""Decodes damaged files; whatever is in them, this process must not die.

Usage: decoding_child.py COUNT SEED. Prints a line of JSON: how many files were taken
and refused, errors of another kind than the one that is promised, and the longest time
for one file in seconds.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import tensorflow as tf
from encoded_images import originals

from keras_delta.serving.decoding import decode

EXTREME = (0, 1, 2, 16, 127, 128, 254, 255)


def damaged(data, rng):
    """One to eight changes: bits, bytes, fields of four bytes, parts cut or doubled."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        # Half of them in the header, where they do most.
        end = len(data) if rng.random() < 0.5 else min(len(data), 64)
        at, kind = int(rng.integers(end)), rng.integers(7)
        if kind <= 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[at] = int(rng.choice(EXTREME))
        elif kind == 3:
            data[at : at + 4] = bytes([int(rng.choice(EXTREME))]) * 4
        elif kind == 4:
            data[at : at + 1] = b""
        elif kind == 5:
            data[at:at] = data[at : at + int(rng.integers(1, 40))]
        elif rng.random() < 0.3:
            data = data[: max(at, 16)]
    return bytes(data)


def main(count, seed):
    function = tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)])
    found = {"taken": 0, "refused": 0, "other": [], "longest": 0.0}
    for number, (name, original) in enumerate(originals().items()):
        with contextlib.suppress(tf.errors.InvalidArgumentError):  # an animation
            function(original)
        for i in range(count):
            data = damaged(original, np.random.default_rng([seed, number, i]))
            if log := os.environ.get("KEEP_LAST"):
                Path(log).write_bytes(data)
            start = time.monotonic()
            try:
                function(data)
                found["taken"] += 1
            except tf.errors.InvalidArgumentError:
                found["refused"] += 1
            except Exception as error:
                found["other"].append(f"{name} {i}: {type(error).__name__}: {error}")
            found["longest"] = max(found["longest"], time.monotonic() - start)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
