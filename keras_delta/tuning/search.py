"""The arguments of `search`, and whether a folder contains the same search."""

import json
from typing import Any, NamedTuple

import keras
import keras_tuner

from keras_delta import _disk, caching
from keras_delta._training import checks
from keras_delta.caching import SourceMapCache


class Search(NamedTuple):
    """What `CrossValidated.search` is to train."""

    data: Any
    epochs: int
    callbacks: list
    source_maps: Any
    validate: bool
    verbose: int


def image_size(model):
    """(height, width) of a model's input images; None for other inputs."""
    shapes = [v.shape for v in keras.tree.flatten(model.target.inputs)]
    if len(shapes) == 1 and len(shapes[0]) == 4 and None not in shapes[0][1:3]:
        return tuple(shapes[0][1:3])
    return None


def cache_for(model, asked, data, views):
    """The value for `source_maps`: as requested, or a cache if it can be used."""
    if asked != "auto":
        return caching.get(asked) or "compute"
    cache = SourceMapCache(views=max(views or 1, 2))
    try:
        checks.cache_can_be_read(model)
        cache.check_data(data)
    except ValueError:
        return "compute"
    return cache


def claim(folder, wanted):
    """Record what a folder is for, or reject one of another search."""
    wanted = json.loads(json.dumps(wanted, default=str))
    path = folder / "search.json"
    with _disk.lock(folder / "lock"):
        found = _disk.read_json(path)
        if found is None:
            _disk.write_json(path, wanted)
            return
    lines = [
        line
        for name in {**found, **wanted}
        if found.get(name) != wanted.get(name)
        for line in _differences(name, found.get(name), wanted.get(name))
    ]
    if lines:
        raise keras_tuner.errors.FatalValueError(
            f"The folder '{folder}' contains another search ({'; '.join(lines)}). Pass "
            "another `project_name` to keep it, or `overwrite=True` to delete it."
        )


def _differences(name, there, now):
    """The parts in which two JSON values differ, as lines of text."""
    if isinstance(there, dict) and isinstance(now, dict):
        pairs = {k: (there.get(k), now.get(k)) for k in {**there, **now}}
    elif _are_alike(there, now):
        # Hyperparameters have names.
        names = [v.get("name", i) for i, v in enumerate(now)]
        pairs = dict(zip(names, zip(there, now, strict=True), strict=True))
    else:
        return [f"{name}: {_shorten(there)} before, {_shorten(now)} now"]
    return [
        line
        for part, (a, b) in pairs.items()
        if a != b
        for line in _differences(f"{name}, {part}", a, b)
    ]


def _are_alike(there, now):
    """Whether both are lists of dicts, of equal length."""
    both = isinstance(there, list) and isinstance(now, list) and len(there) == len(now)
    return both and all(isinstance(v, dict) for v in [*there, *now]) and bool(now)


def _shorten(value):
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}..."
