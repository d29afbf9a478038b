"""Import TensorFlow without its start-up notes.

TensorFlow's C++ side writes to standard error before any Python setting can
reach it, so the file descriptor itself is turned aside during the import. If
the import fails, what was held back is shown.
"""

import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with tempfile.TemporaryFile() as held:
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(held.fileno(), 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
        tf.zeros(1)
    except BaseException:
        held.seek(0)
        os.write(stderr, held.read())
        raise
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)

# TensorFlow counts every model's training function as a retrace of the last.
tf.get_logger().setLevel("ERROR")
