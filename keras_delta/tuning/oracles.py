"""The grid as an oracle of Keras Tuner that can be resumed."""

import itertools
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import hyperparameters as kinds

from keras_delta import _arguments, _compat


class GridOracle(keras_tuner.Oracle):
    """Proposes every cell of the grid once.

    Keras Tuner's own grid keeps its position only in memory, so an interrupted search
    cannot be resumed. This one stores no position: it proposes the first untried cell.
    The hyperparameter declared first changes fastest, except that one on which others
    depend (the variant, which needs a separate model) changes slowest.

    Args:
        objective: as in `keras_tuner.Oracle`.
        points: number of values for a range, evenly spaced in the logarithm.
        **kwargs: as in `keras_tuner.Oracle`.
    """

    def __init__(self, objective=None, points=5, **kwargs):
        super().__init__(objective=objective, **kwargs)
        self.points = _arguments.integer("points", points, least=2)

    def cells(self):
        """All cells, a list of dicts of active values."""
        space = self.get_space()
        parents = {c.name for hp in space.space for c in hp.conditions}
        names = dict.fromkeys(hp.name for hp in space.space)
        names = sorted(names, key=lambda name: name in parents)
        values = [self._values(name, space) for name in reversed(names)]
        cells = {}
        for chosen in itertools.product(*values):
            space.values = dict(zip(reversed(names), chosen, strict=True))
            active = {
                hp.name: space.values[hp.name]
                for hp in space.space
                if space.is_active(hp)
            }
            cells.setdefault(_compat.hash_of_values(self, active), active)
        return list(cells.values())

    def _values(self, name, space):
        hp = next(hp for hp in space.space if hp.name == name)
        if isinstance(hp, kinds.Float) and hp.step is None:
            return np.geomspace(hp.min_value, hp.max_value, self.points).tolist()
        return list(hp.values)

    def populate_space(self, trial_id):
        """Return the next cell; see `keras_tuner.Oracle.populate_space`."""
        for values in self.cells():
            if not _compat.has_been_tried(self, values):
                return {"status": "RUNNING", "values": values}
        return {"status": "STOPPED", "values": None}


class GridSearch(keras_tuner.Tuner):
    """A tuner with a `GridOracle`, constructed like those of Keras Tuner."""

    def __init__(
        self,
        hypermodel: Any = None,
        objective: Any = None,
        points: int = 5,
        max_trials: int | None = None,
        seed: int | None = None,
        max_consecutive_failed_trials: int = 3,
        **kwargs: Any,
    ) -> None:
        oracle = GridOracle(
            objective,
            points,
            max_trials=max_trials,
            seed=seed,
            max_consecutive_failed_trials=max_consecutive_failed_trials,
        )
        super().__init__(oracle=oracle, hypermodel=hypermodel, **kwargs)
