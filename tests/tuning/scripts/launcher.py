"""`python -m keras_delta.tuning` without TensorFlow; SAVING shortens its patience."""

import os
import sys

import bare  # noqa: F401

from keras_delta.tuning import launch
from keras_delta.tuning.__main__ import main

launch.SAVING = float(os.environ.pop("SAVING", launch.SAVING))
sys.exit(main())
