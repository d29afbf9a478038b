"""keras_delta without the imports of its `__init__`s: processes start at once."""

import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[3]

for name in ("keras_delta", "keras_delta.tuning"):
    package = types.ModuleType(name)
    package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
    sys.modules[name] = package
sys.modules["keras"] = types.ModuleType("keras")
sys.modules["keras"].__file__ = str(ROOT / "keras" / "__init__.py")
