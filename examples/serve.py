"""Serve an exported model over HTTP, with a page for trying it on photographs.

python examples/serve.py runs/quickstart/served/images --port 8501
"""

import sys

import quiet  # noqa: F401
from keras_delta.serving.server import main

if __name__ == "__main__":
    sys.exit(main())
