"""The scripts that users start: they say what is wrong, and stay quiet otherwise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def start(script, *arguments):
    return subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


SCRIPTS = [
    *(EXAMPLES / f"{name}.py" for name in ("quickstart", "classify", "serve")),
    *sorted(BENCHMARKS.glob("*.py")),
]
# In one process, which imports TensorFlow once.
HELP = """
import contextlib, io, json, os, runpy, sys
found = []
for script in sys.argv[1:]:
    sys.argv, sys.path[0], code = [script, "--help"], os.path.dirname(script), None
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    found.append([code, shown.getvalue()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helped():
    """Dict from scripts to [exit code, what `--help` has printed]."""
    command = [sys.executable, "-c", HELP, *map(str, SCRIPTS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.stderr == ""
    return dict(zip(SCRIPTS, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help_is_all_that_help_prints(script, helped):
    code, shown = helped[script]
    assert code == 0
    assert shown.startswith(f"usage: {script.stem}")


def test_quickstart_refuses_a_folder_that_is_not_there(tmp_path):
    result = start(EXAMPLES / "quickstart.py", "--data-dir", tmp_path / "nowhere")
    assert result.returncode != 0
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr
