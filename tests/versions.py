"""Run tests with the oldest versions that pyproject.toml allows, or with the newest.

    python tests/versions.py oldest [arguments of pytest]

The environment is made once, in .venv-oldest or .venv-newest.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = "weights,tuning,serving,benchmarks,examples,test"


def lower_bounds(text):
    """`"numpy>=1.26",` of pyproject.toml -> `numpy==1.26`, each once."""
    text = text.partition("[project]")[2]  # not the build system's
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)"', text)
    return sorted({f"{name}=={version}" for name, version in bounds})


def make(folder, which):
    """An environment of these versions, with this package in it."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin/python", "-m", "pip", "install", "-qq", "--upgrade"]
    subprocess.run([*install, "pip"], check=True)  # old ones search for hours
    if which == "oldest":
        text = (ROOT / "pyproject.toml").read_text("utf-8")
        bounds = folder / "oldest.txt"
        bounds.write_text("\n".join(lower_bounds(text)), "utf-8")
        install += ["--constraint", bounds]
    subprocess.run([*install, "-e", f"{ROOT}[{EXTRAS}]"], check=True)
    (folder / ".made").touch()


def main(which, *args):
    """Make the environment if it is not there, and run pytest in it."""
    assert which in ("oldest", "newest"), which
    folder = Path(os.environ.get("ENVIRONMENT", ROOT / f".venv-{which}"))
    if not (folder / ".made").exists():
        make(folder, which)
    pytest = [folder / "bin/python", "-m", "pytest", "-n", "auto", "--dist", "loadfile"]
    return subprocess.run([*pytest, *args], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
