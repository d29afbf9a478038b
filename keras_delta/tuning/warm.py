"""A model that begins anew for each training, without being traced anew."""

import gc
import hashlib
import random

import keras
import keras_tuner
import numpy as np
from keras_tuner.engine.tuner import maybe_distribute

from keras_delta import _disk, regularizers
from keras_delta._checkpoint import Checkpoint
from keras_delta._network import fingerprint
from keras_delta._network.graph import Graph
from keras_delta.attention import ChannelAttention
from keras_delta.regularizers.attended import Attended
from keras_delta.regularizers.base import array
from keras_delta.tuning.status import read, write


class WarmModels:
    """The model of a search, and what is computed once for each fold.

    One model serves all cells and folds: before each training its variables are set
    back, and alpha, beta, a constant learning rate and the attention are variables as
    well. Only other taps, another variant, or a learning rate that is part of a
    schedule need another model.

    For each fold are computed once, by whichever process comes first, and kept in
    files: the first values of the head, the attention, and the scales of the source's
    maps.

    Args:
        hypermodel: the `DeltaHyperModel`.
        folder: `Path` for what is computed once.
        seed: of heads, dropout and data.
        strategy: `tf.distribute` strategy or None.
    """

    def __init__(self, hypermodel, folder, seed, strategy=None):
        self._hypermodel, self._folder = hypermodel, folder
        self._seed, self._strategy = seed, strategy
        self.model = self._key = self._start = self._networks = None

    def begin(self, hp, fold, data, verbose=0):
        """The model, ready for the training of a cell on a fold.

        Args:
            hp: `keras_tuner.HyperParameters` of the cell.
            fold: number of the fold; None for all data.
            data: function that gives the fold's training data.
            verbose: whether to show progress of what is computed once.

        Returns:
            A compiled `DeltaModel`, prepared for the data.
        """
        settings = self._hypermodel.settings(hp)
        model = self.need(hp)
        for variable, value in self._start:
            variable.assign(value)
        wanted = self._hypermodel.regularizer(settings)
        model.regularizer.take_strengths(wanted)
        for ours, theirs in zip(
            _attended(model.regularizer), _attended(wanted), strict=True
        ):
            ours.temperature = theirs.temperature
        optimizer = self._hypermodel.optimizer(settings)
        if _has_number(optimizer):  # which need not be the cell's as it is
            model.optimizer.learning_rate = float(array(optimizer.learning_rate))
        state = self._computed_once(hp, fold, data, verbose)
        for name, variable in _once(model).items():
            variable.assign(state[name])
        # Nothing depends on what ran before. Dropout's state is among the variables;
        # TensorFlow's own seed would cost seconds, since it forgets all kernels.
        random.seed(self._seed)
        np.random.seed(self._seed)
        return model

    def drop(self):
        """Let go of the model."""
        if self.model is None:
            return
        self.model = self._start = None
        gc.collect()
        if self._strategy is None:
            policy = keras.config.dtype_policy()  # it is lost as well
            keras.utils.clear_session()
            keras.config.set_dtype_policy(policy)

    def need(self, hp):
        """The model that can become a cell's; a new one if there is none."""
        settings = self._hypermodel.settings(hp)
        key = {
            "taps": settings.get("taps"),
            "regularizer": _kind(self._hypermodel.regularizer(settings)),
            "optimizer": _kind_of_optimizer(self._hypermodel.optimizer(settings)),
        }
        if self.model is None or key != self._key:
            self.drop()
            self.model, self._key = self._build(hp, self._seed), key
            self._start = state(self.model)
        return self.model

    def _build(self, hp, seed):
        keras.utils.set_random_seed(seed)
        with maybe_distribute(self._strategy):
            model = self._hypermodel.build(hp)
            model.optimizer.build(model.trainable_variables)
        self._check_networks(model)
        return model

    def _check_networks(self, model):
        """Refuse networks that are others than at the beginning of the search."""
        found = {
            # Variables would include the random state of dropout.
            "source": fingerprint.digest([array(v) for v in model.source.weights]),
            "target": fingerprint.of_structure(Graph(model.target)),
        }
        if self._networks is None:
            path = self._folder / "networks.json"
            with _disk.lock(self._folder / "lock"):
                if read(path) is None:
                    write(path, found)
                self._networks = read(path)
        for argument, what in (
            ("source", "other weights"),
            ("target", "another network"),
        ):
            if found[argument] != self._networks[argument]:
                raise keras_tuner.errors.FatalValueError(
                    f"The function `{argument}` gave {what} than before, so trainings "
                    "cannot be compared. A source has to load pretrained weights, or "
                    "to begin with `keras.utils.set_random_seed(0)`. If you changed "
                    "the function: pass another `project_name`, or `overwrite=True`."
                )

    def _computed_once(self, hp, fold, data, verbose):
        """Values of the variables of `_once` for a fold: dict name -> array."""
        regularizer = self.model.regularizer
        name = "all" if fold is None else f"fold_{fold}"
        made_for = {
            "taps": self.model.taps,
            "regularizer": _kind(regularizer),
            "temperature": [m.temperature for m in _attended(regularizer)],
        }
        file = Checkpoint(
            self._folder / f"{_short(made_for)}_{name}.npz", made_for=made_for
        )
        with _disk.lock(self._folder / f"{name}.lock"):
            state = file.load()
            if state is None:
                state = self._compute(hp, fold, name, data, verbose)
                file.save(lambda: state, now=True)
        return state

    def _compute(self, hp, fold, name, data, verbose):
        model = self._build(hp, self._seed + (0 if fold is None else 1 + fold))
        asking = [m for m in _attended(model.regularizer) if m.attention == "auto"]
        for member in asking:
            path = self._scores(model, member, name)
            if path.exists():  # since another temperature, or variant
                _weigh(member, ChannelAttention.load(path))
        model.prepare(data(), verbose=verbose)
        for member in asking:
            path = self._scores(model, member, name)
            if not path.exists():
                member.computed_attention.save(path)
            # As later from the file, whose scores are rounded.
            _weigh(member, ChannelAttention.load(path))
        return {name: array(variable) for name, variable in _once(model).items()}

    def _scores(self, model, member, name):
        made_for = [model.taps, member.attention_samples]
        return self._folder / f"{_short(made_for)}_{name}_attention.json"


def _has_number(optimizer):
    """Whether the learning rate is a number, and not a schedule."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of a loss scale
    return isinstance(inner._learning_rate, keras.Variable)


def _kind(regularizer):
    """What about a regularizer is part of the traced step, as text."""
    config = regularizers.settings(regularizer)
    return repr(_without(config, lambda k, v: k == "temperature"))


def _kind_of_optimizer(optimizer):
    """The same of an optimizer: everything but a learning rate that is a number."""
    config = keras.optimizers.serialize(optimizer)
    return repr(
        _without(
            config,
            lambda k, v: k == "name" or (k == "learning_rate" and isinstance(v, float)),
        )
    )


def _without(config, dropped):
    if isinstance(config, dict):
        return {k: _without(v, dropped) for k, v in config.items() if not dropped(k, v)}
    if isinstance(config, (list, tuple)):
        return [_without(v, dropped) for v in config]
    return config


def _weigh(member, attention):
    member.set_attention_weights(
        ChannelAttention.from_scores(attention.scores, temperature=member.temperature)
    )


def _attended(regularizer):
    return [m for m in regularizers.members(regularizer) if isinstance(m, Attended)]


def state(model):
    """What a training changes: list of (variable, value)."""
    fixed = {id(v) for v in model.source.variables}
    found = {
        id(v): v
        for v in [*model.variables, *model.optimizer.variables]
        if id(v) not in fixed
    }
    return [(v, array(v)) for v in found.values()]


def _once(model):
    """Dict name -> variable: of the new layers, and the regularizer's.

    Strengths are not among them: they are the cell's.
    """
    layers = model.pairing.target.layers()
    new = [v for name in model.pairing.new_layers for v in layers[name].variables]
    members = regularizers.members(model.regularizer)
    strengths = {id(v) for m in members for v in m.strength_variables}
    rest = [v for v in model.regularizer.variables if id(v) not in strengths]
    return {
        **{f"head/{i}": v for i, v in enumerate(new)},
        **{f"regularizer/{i}": v for i, v in enumerate(rest)},
    }


def _short(made_for):
    return hashlib.blake2b(repr(made_for).encode(), digest_size=6).hexdigest()
