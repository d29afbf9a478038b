"""Runs a notebook in a folder: `run_notebook.py NOTEBOOK FOLDER [OUTPUT]`."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
folder = Path(sys.argv[2])
client = NotebookClient(
    notebook, timeout=1200, resources={"metadata": {"path": str(folder)}}
)
client.execute()
if len(sys.argv) > 3:
    nbformat.write(notebook, sys.argv[3])
