"""Runs a notebook in a folder: `run_notebook.py NOTEBOOK FOLDER [OUTPUT]`."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def tidy(outputs):
    """Outputs to keep: what is printed in one piece, TensorFlow's notes left out."""
    kept = []
    for output in outputs:
        notes = output.get("text", "").startswith(("INFO:", "WARNING:"))
        if output.get("name") == "stderr" or notes:
            continue
        if output.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


notebook = nbformat.read(sys.argv[1], as_version=4)
folder = Path(sys.argv[2])
client = NotebookClient(
    notebook, timeout=1200, resources={"metadata": {"path": str(folder)}}
)
client.execute()
for cell in notebook.cells:
    if cell.cell_type == "code":
        cell.outputs = tidy(cell.outputs)
        cell.metadata.pop("execution", None)
if len(sys.argv) > 3:
    nbformat.write(notebook, sys.argv[3])
