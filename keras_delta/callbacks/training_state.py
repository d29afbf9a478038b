"""What a backup of a training holds of the model, and what it was made for."""

import weakref

import keras
import numpy as np

from keras_delta import _compat, regularizers
from keras_delta._network import fingerprint

FORMAT = "keras_delta.backup/2"
LONGEST = 60  # characters of a setting that are kept as they are

# Settings of a regularizer as its training began, until that ends: in this process
# they may have moved on since, as a schedule does.
_began_with = weakref.WeakKeyDictionary()


def made_for(model, goes_on):
    """What tells whether a backup belongs to a model, a dict.

    Args:
        model: the `DeltaModel`, before anything is put back.
        goes_on: whether there is a backup.
    """
    regularizer, optimizer = model.regularizer, model.optimizer
    settings = "none"
    if regularizer is not None:
        if regularizer not in _began_with or not goes_on:
            _began_with[regularizer] = _settings(regularizers.serialize(regularizer))
        settings = _began_with[regularizer]
    optimizer_variables = _outline(optimizer.variables, names=False)
    return {
        "backup": FORMAT,
        "source": model.source_fingerprint,
        "target": fingerprint.of_structure(model.networks.target),
        "target's weights": _outline(model.target.variables),
        "optimizer": f"{type(optimizer).__name__}, {optimizer_variables}",
        "regularizer": settings,
    }


def end(model):
    """A training has come to its end: the next one begins with settings of its own."""
    if model.regularizer is not None:
        _began_with.pop(model.regularizer, None)


def learning_rate(model):
    """The optimizer's learning rate where it is a number; None for a schedule."""
    rate = _compat.learning_rate(model.optimizer)
    schedule = keras.optimizers.schedules.LearningRateSchedule
    return None if isinstance(rate, schedule) else float(rate.value.numpy())


def variables(model):
    """Dict name -> variable, named and ordered alike in each process."""
    regularizer = model.regularizer
    parts = {
        "target": model.target.variables,
        "regularizer": [] if regularizer is None else regularizer.variables,
        "optimizer": model.optimizer.variables,
    }
    known = {id(v) for part in parts.values() for v in part}
    known.update(id(v) for v in model.source.variables)
    parts["rest"] = [v for v in model.variables if id(v) not in known]
    generator = _compat.global_seed_generator(create=False)
    parts["global_seed"] = [] if generator is None else [generator.state]
    return {f"{part}/{i}": v for part, vs in parts.items() for i, v in enumerate(vs)}


def arrays(model):
    """Dict name -> value of each of the `variables`."""
    return {name: v.value.numpy() for name, v in variables(model).items()}


def source_arrays(model):
    """Dict name -> value of each of the source's variables, which never change."""
    return {
        f"source/{i}": v.value.numpy() for i, v in enumerate(model.source.variables)
    }


def put_back(model, arrays):
    """Give the `variables` the values that `arrays` has told."""
    if "global_seed/0" in arrays:
        _compat.global_seed_generator()  # makes it
    for name, variable in variables(model).items():
        if name in arrays:
            # What is no type of NumPy's, as bfloat16, comes back as bytes.
            variable.assign(arrays[name].view(variable.value.numpy().dtype))


def size(model):
    """About how many bytes a backup takes."""
    return 2**16 + sum(array.nbytes for array in arrays(model).values())


def _outline(variables, names=True):
    """What tells lists of variables apart; Keras numbers layers as a process goes."""
    outlines = [
        (v.path.split("/")[-1] if names else "", tuple(v.shape), v.dtype)
        for v in variables
    ]
    count = sum(int(np.prod(shape)) for _, shape, _ in outlines)
    text = repr(outlines)
    return f"{len(outlines)} variables of {count} values, {_digest(text)[:8]}"


def _settings(config):
    """A config as a line of text, names apart, what is long as a digest."""
    if isinstance(config, dict) and "class_name" in config:
        inner = ", ".join(
            f"{k}={_settings(v)}" for k, v in config["config"].items() if k != "name"
        )
        return f"{config['class_name']}({inner})"
    if isinstance(config, list):
        return f"[{', '.join(map(_settings, config))}]"
    text = repr(config)
    return text if len(text) <= LONGEST else _digest(text)


def _digest(text):
    return fingerprint.digest(np.frombuffer(text.encode(), np.uint8))
