"""Results as rows: flat, for tables and for files that others can use."""

import contextlib
import csv
import json
from pathlib import Path

from keras_delta import _disk, regularizers
from keras_delta._errors import import_optional, unknown_name
from experiments import methods
from experiments.cell import Cell

OF_CELL = ("per_class", "network", "image_size", "method", "factor", "label", "seed")
OF_CELL = (*OF_CELL, "label_noise")
OF_RECORD = ("accuracy", "loss", "calibration_error", "seconds", "prepare_seconds")
OF_RECORD = (*OF_RECORD, "wall_seconds")
OF_RECORD = (*OF_RECORD, "epochs", "images", "training_accuracy", "feature_penalty")
OF_RECORD = (*OF_RECORD, "threads", "correct", "curve", "corrupted", "versions")
STRUCTURED = ("curve", "corrupted", "versions")
LATER = ("calibration_error",)  # files of before do not have it


def row(cell, record, data=None):
    """A flat dict of a cell, its record and a digest of its data set."""
    regularizer = _regularizer(cell)  # with its own strengths where the cell has none
    return {
        "key": cell.key,
        "dataset": cell.dataset.removeprefix("folder:"),
        "data": data,
        **{name: getattr(cell, name) for name in OF_CELL},
        "protocol": cell.protocol.name,
        "augmentation": cell.protocol.augmentation,
        "schedule": cell.protocol.schedule,
        "alpha": getattr(regularizer, "alpha", None),
        "beta": getattr(regularizer, "beta", None),
        "fold": cell.fold and cell.fold[0],
        **{name: record.get(name) for name in OF_RECORD},
    }


def _regularizer(cell):
    if cell.method == "recipe":
        return regularizers.get(cell.its_recipe().regularizer)
    make = methods.get(cell.method).make
    return make and make(cell.alpha, cell.beta, cell.protocol.variant)


def columns():
    """Names of the columns, in order."""
    return list(row(Cell("", "l2"), {}))


def save(frame, stem):
    """Write rows to `stem.csv` and, with pyarrow, to `stem.parquet`; gives the paths.

    In CSV, `curve`, `corrupted` and `versions` are JSON.
    """
    flat, paths = frame.copy(), [Path(f"{stem}.csv")]
    for name in STRUCTURED:
        flat[name] = [None if v is None else json.dumps(v) for v in flat[name]]
    with _disk.replace_file(paths[0]) as temporary:
        flat.to_csv(temporary, index=False)
    with contextlib.suppress(ImportError):
        import_optional("pyarrow", "Parquet", "benchmarks")
        paths.append(Path(f"{stem}.parquet"))
        with _disk.replace_file(paths[1]) as temporary:
            flat.to_parquet(temporary, index=False)
    return paths


def read(path):
    """What `save` has written as CSV: dict key -> (record, digest of data or None)."""
    records = {}
    # Not pandas: how it reads numbers differs from version to version.
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for name in ("key", *(n for n in OF_RECORD if n not in LATER)):
            if name not in (known := reader.fieldnames or ()):
                raise ValueError(f"{path}: {unknown_name('columns', name, known)}")
        for values in reader:
            record = {
                name: values[name] if name == "correct" else json.loads(values[name])
                for name in OF_RECORD
                if values.get(name)
            }
            records[values["key"]] = record, values.get("data") or None
    return records
