"""Runs a SavedModel where there is TensorFlow alone.

Usage: fresh_child.py FOLDER IN.npz OUT.npz. IN has arrays named `signature:input`; OUT
gets arrays named `signature:output`.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
BLOCKED = ("keras", "keras_delta", "tf_keras", "PIL")
for name in BLOCKED:
    sys.modules[name] = None  # importing it is an ImportError

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


def main(folder, given, answers):
    found = {}
    signatures = tf.saved_model.load(folder).signatures
    inputs = {name: {} for name in signatures}
    with np.load(given, allow_pickle=True) as arrays:
        for key, value in arrays.items():
            signature, argument = key.split(":")
            inputs[signature][argument] = tf.constant(
                value.tolist() if value.dtype == object else value
            )
    for name, function in signatures.items():
        for key, value in function(**inputs[name]).items():
            found[f"{name}:{key}"] = value.numpy()
    loaded = [n for n in BLOCKED if sys.modules.get(n) is not None]
    assert not loaded, loaded
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
