"""`python -m keras_delta.tuning` without TensorFlow; SAVING shortens its patience."""

import os
import sys

import bare  # noqa: F401

from keras_delta._runs import supervisor
from keras_delta.tuning.__main__ import main

supervisor.SAVING = float(os.environ.pop("SAVING", supervisor.SAVING))
sys.exit(main())
