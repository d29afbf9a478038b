"""The scripts that users start: they say what is wrong, and stay quiet otherwise."""

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


@pytest.mark.parametrize(
    "script",
    [
        *(EXAMPLES / f"{name}.py" for name in ("quickstart", "classify", "serve")),
        *BENCHMARKS.glob("*.py"),
    ],
    ids=lambda p: p.name,
)
def test_help_is_all_that_help_prints(script):
    result = start(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage:")
    assert result.stderr == ""


def test_quickstart_refuses_a_folder_that_is_not_there(tmp_path):
    result = start(EXAMPLES / "quickstart.py", "--data-dir", tmp_path / "nowhere")
    assert result.returncode != 0
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr
