"""A model that is reset for each training, and values computed once per fold."""

import keras
import keras_tuner

from keras_delta import _compat, _disk, regularizers
from keras_delta._checkpoint import Checkpoint
from keras_delta._compat import array
from keras_delta._network import fingerprint
from keras_delta._network.graph import Graph
from keras_delta._runs import models
from keras_delta._runs.store import digest, once
from keras_delta.attention import ChannelAttention


class WarmModels:
    """The model of a search, and the values computed once for each fold.

    One model serves all cells and folds: alpha, beta, a constant learning rate and
    the attention are variables. Only other taps, another variant, or a learning rate
    that is part of a schedule need another model.

    The first process to reach a fold computes the initial values of the head, the
    attention, and the scales of the source's maps, and stores them in files.
    """

    def __init__(self, hypermodel, folder, seed, strategy=None):
        self._hypermodel, self._folder = hypermodel, folder
        self._seed, self._strategy = seed, strategy
        self._models = models.Models(1, strategy)
        self._networks = None

    def begin(self, hp, fold, data, verbose=0):
        """The model, ready to train a cell on a fold."""
        model, settings = self.need(hp), self._hypermodel.settings(hp)
        wanted = self._hypermodel.regularizer(settings)
        model.regularizer.take_strengths(wanted)
        pairs = map(regularizers.with_attention, (model.regularizer, wanted))
        for ours, theirs in zip(*pairs, strict=True):
            ours.temperature = theirs.temperature
        optimizer = self._hypermodel.optimizer(settings)
        if _has_number(optimizer):  # the function may have changed the cell's rate
            model.optimizer.learning_rate = float(array(optimizer.learning_rate))
        values = self._computed_once(model, hp, fold, data, verbose)
        for name, variable in _variables_of_fold(model).items():
            variable.assign(values[name])
        models.set_seeds(self._seed)
        return model

    def drop(self):
        """Release the model."""
        self._models.drop()

    def need(self, hp):
        """A model that fits a cell; a new one if none exists."""
        settings = self._hypermodel.settings(hp)
        key = [
            settings.get("taps"),
            models.kind_of_regularizer(self._hypermodel.regularizer(settings)),
            models.kind_of_optimizer(self._hypermodel.optimizer(settings)),
        ]
        return self._models.begin(key, lambda: self._build(hp, self._seed))

    def _build(self, hp, seed):
        keras.utils.set_random_seed(seed)
        with models.scope_of(self._strategy):
            model = self._hypermodel.build(hp)
            model.optimizer.build(model.trainable_variables)
        self._check_networks(model)
        _check_own(regularizers.members(model.regularizer))
        return model

    def _check_networks(self, model):
        """Reject networks that differ from those at the start of the search."""
        found = {
            # Variables would include the random state of dropout.
            "source": fingerprint.digest([array(v) for v in model.source.weights]),
            "target": fingerprint.of_structure(Graph(model.target)),
        }
        if self._networks is None:
            path = self._folder / "networks.json"
            self._networks = once(
                self._folder / "lock",
                lambda: _disk.read_json(path),
                lambda: found,
                lambda value: _disk.write_json(path, value),
            )
        for argument, what in (
            ("source", "other weights"),
            ("target", "another network"),
        ):
            if found[argument] != self._networks[argument]:
                raise keras_tuner.errors.FatalValueError(
                    f"The function `{argument}` returned {what} than before, so "
                    "trainings cannot be compared. A source must load pretrained "
                    "weights or start with `keras.utils.set_random_seed(0)`. If you "
                    "changed the function, pass another `project_name`, or "
                    "`overwrite=True`."
                )

    def _computed_once(self, model, hp, fold, data, verbose):
        """Values of `_variables_of_fold`: dict name -> array."""
        name = "all" if fold is None else f"fold_{fold}"
        attended = regularizers.with_attention(model.regularizer)
        made_for = {
            "taps": model.taps,
            "regularizer": models.kind_of_regularizer(model.regularizer),
            "temperature": [member.temperature for member in attended],
            "variables": list(_variables_of_fold(model)),
        }
        path = self._folder / f"{digest(made_for)}_{name}.npz"
        file = Checkpoint(path, made_for)
        return once(
            # Of the fold: several temperatures and variants share its attention.
            self._folder / f"{name}.lock",
            file.load,
            lambda: self._compute(hp, fold, name, data, verbose),
            lambda values: file.save(lambda: values, now=True),
        )

    def _compute(self, hp, fold, name, data, verbose):
        model = self._build(hp, self._seed + (0 if fold is None else 1 + fold))
        asking = [
            member
            for member in regularizers.with_attention(model.regularizer)
            if member.attention == "auto"
        ]
        for member in asking:
            path = self._scores(model, member, name)
            if path.exists():  # since another temperature, or variant
                member.attention_weights.take_scores(ChannelAttention.load(path))
        model.prepare(data(), verbose=verbose)
        for member in asking:
            path = self._scores(model, member, name)
            if not path.exists():
                member.computed_attention.save(path)
            # As later from the file, whose scores are rounded.
            member.attention_weights.take_scores(ChannelAttention.load(path))
        variables = _variables_of_fold(model)
        return {name: array(variable) for name, variable in variables.items()}

    def _scores(self, model, member, name):
        made_for = [model.taps, member.attention_samples]
        return self._folder / f"{digest(made_for)}_{name}_attention.json"


def _check_own(members):
    """Refuse methods that prepare once, and so for the first fold alone."""
    base = regularizers.Regularizer
    for kind in map(type, members):
        if kind.prepare is not base.prepare and kind.ready is base.ready:
            raise keras_tuner.errors.FatalValueError(
                f"{kind.__name__} defines `prepare` but not `ready`. A search trains "
                "one model on all folds and sets its variables back in between. Keep "
                "what `prepare` computes in variables (`add_weight` in `bind`); the "
                "property `ready` says whether they have their values."
            )


def _has_number(optimizer):
    """Whether the learning rate is a number, and not a schedule."""
    return isinstance(_compat.learning_rate(optimizer), keras.Variable)


def _variables_of_fold(model):
    """Dict name -> variable: of the new layers, BatchNorm's statistics, the method's.

    Strengths are not included: they belong to the cell.
    """
    layers = model.pairing.target.layers()
    new = [v for name in model.pairing.new_layers for v in layers[name].variables]
    members = regularizers.members(model.regularizer)
    strengths = {id(v) for m in members for v in m.strength_variables}
    rest = [v for v in model.regularizer.variables if id(v) not in strengths]
    return {
        **{f"head/{i}": v for i, v in enumerate(new)},
        **{f"statistics/{i}": v for i, (v, _) in enumerate(model.pairing.statistics)},
        **{f"regularizer/{i}": v for i, v in enumerate(rest)},
    }
