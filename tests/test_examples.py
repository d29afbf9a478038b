"""The scripts that users start: they say what is wrong, and stay quiet otherwise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    *(ROOT / "examples" / f"{name}.py" for name in ("quickstart", "classify", "serve")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]
QUICKSTART = SCRIPTS[0]
# In one process, which imports TensorFlow once.
RUN = """
import contextlib, io, json, os, runpy, sys
found = []
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
    end, shown = None, io.TextIOWrapper(io.BytesIO())  # as a real one: `reconfigure`
    with contextlib.redirect_stdout(shown):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as exit:
            end = exit.code
    shown.seek(0)
    found.append([end, shown.read()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Dict from (script, argument) to [exit code or message, what was printed]."""
    nowhere = tmp_path_factory.mktemp("data") / "nowhere"
    calls = [[str(script), "--help"] for script in SCRIPTS]
    calls.append([str(QUICKSTART), "--data-dir", str(nowhere)])
    result = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(calls)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stderr == ""
    names = [(Path(call[0]), call[1]) for call in calls]
    return dict(zip(names, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help_is_all_that_help_prints(script, ends):
    code, shown = ends[script, "--help"]
    assert code == 0
    assert shown.startswith("usage: ") and script.stem in shown.splitlines()[0]


def test_quickstart_refuses_a_folder_that_is_not_there(ends):
    message, _ = ends[QUICKSTART, "--data-dir"]
    assert "nowhere" in message
