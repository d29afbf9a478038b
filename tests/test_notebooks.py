"""The notebooks run from top to bottom, on fewer and smaller images."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    script = ROOT / "tests/run_notebook.py"
    done = subprocess.run(
        [sys.executable, script, path, tmp_path],
        env={**os.environ, "KERAS_DELTA_TINY": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_there_are_three_with_outputs():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        assert any(cell.get("outputs") for cell in cells)
        text = path.read_text("utf-8")
        assert str(ROOT) not in text and tempfile.gettempdir() not in text
        faults = [o for c in cells for o in c.get("outputs", []) if "ename" in o]
        assert faults == []
