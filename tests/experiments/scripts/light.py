"""experiments without TensorFlow and Keras: processes start at once.

Whoever imports it can run plans with a trainer of their own, and nothing else.
"""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[3]


def _stub(name, **attributes):
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


for _name, _folder in (
    ("keras_delta", ROOT / "keras_delta"),
    ("experiments", ROOT / "benchmarks" / "experiments"),
):
    _stub(_name, __path__=[str(_folder)], __version__="0")
_stub("keras", __version__="0", __file__=str(ROOT / "keras" / "__init__.py"))
_stub("tensorflow", __version__="0")
_stub("experiments.train", Trainer=None)
_regularizers = _stub("keras_delta.regularizers", __getattr__=lambda name: name)
sys.modules["keras_delta"].regularizers = _regularizers
