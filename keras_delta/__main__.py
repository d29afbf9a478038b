"""`python -m keras_delta`: the same as the command `keras_delta`."""

import sys

from keras_delta_cli import main

if __name__ == "__main__":
    sys.exit(main())
