"""Two workers of a fake run, without TensorFlow: `launch_fake.py FOLDER SECONDS`."""

import sys
from pathlib import Path

import light  # noqa: F401

from keras_delta._runs.launch import launch

command = [sys.executable, str(Path(__file__).with_name("fake_run.py")), *sys.argv[1:]]
sys.exit(launch(command, 2, [], Path(sys.argv[1]) / "logs"))
