"""The state of the model in a training backup, and the model it was made for."""

import weakref

import keras
import numpy as np

from keras_delta import _compat, regularizers
from keras_delta._network import fingerprint

FORMAT = "keras_delta.backup/2"
LONGEST = 60  # characters of a setting that are kept as they are

# Settings of a regularizer when its training began, kept until it ends: they may
# have changed since in this process, for example by a schedule.
_began_with = weakref.WeakKeyDictionary()


def made_for(model, goes_on):
    """A dict that identifies the model a backup belongs to.

    Args:
        model: the `DeltaModel`, before anything is restored.
        goes_on: whether a backup exists.
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
    """Mark a training as ended: the next one begins with new settings."""
    if model.regularizer is not None:
        _began_with.pop(model.regularizer, None)


def learning_rate(model):
    """The optimizer's learning rate if it is a number; None for a schedule."""
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
    """Set the `variables` to the values in `arrays`."""
    if "global_seed/0" in arrays:
        _compat.global_seed_generator()  # makes it
    for name, variable in variables(model).items():
        if name in arrays:
            # A type that NumPy lacks, such as bfloat16, comes back as bytes.
            variable.assign(arrays[name].view(variable.value.numpy().dtype))


def size(model):
    """Approximate size of a backup in bytes."""
    return 2**16 + sum(array.nbytes for array in arrays(model).values())


def _outline(variables, names=True):
    """Distinguishes lists of variables; Keras's layer numbers vary by process."""
    outlines = [
        (v.path.split("/")[-1] if names else "", tuple(v.shape), v.dtype)
        for v in variables
    ]
    count = sum(int(np.prod(shape)) for _, shape, _ in outlines)
    text = repr(outlines)
    return f"{len(outlines)} variables of {count} values, {_digest(text)[:8]}"


def _settings(config):
    """A config as a line of text without names; long settings become digests."""
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
