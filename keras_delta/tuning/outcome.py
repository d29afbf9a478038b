"""Results of a cross-validated search: cells, the best, table, picture."""

import contextlib
import numbers
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial

from keras_delta import _compat, _disk
from keras_delta._errors import invalid
from keras_delta._runs.models import scope_of
from keras_delta._types import Data, PathLike
from keras_delta.model import DeltaModel
from keras_delta.regularizers import Regularizer
from keras_delta.tuning import results, search
from keras_delta.tuning.hparams import write_hparams
from keras_delta.tuning.records import Record, mean_metrics
from keras_delta.tuning.summary import summary
from keras_delta.tuning.surface import plot_surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Outcome:
    """The part of `CrossValidated` that reads results from the folder.

    It works in any process, both during the search and afterwards.
    """

    @property
    def folder(self) -> Path:
        """`Path` of the folder of the search."""
        return Path(self.project_dir)

    def record_of(self, trial: Any) -> Record:
        """The `Record` of a trial's cell."""
        return Record(self.folder / "cells", trial.hyperparameters.values)

    def cells(self) -> list[results.Cell]:
        """Return all cells so far, a list of `results.Cell`, even during the search."""
        paths = sorted(self.folder.glob("trial_*/trial.json"))
        states = [state for p in paths if (state := _disk.read_json(p)) is not None]
        return [self._cell(Trial.from_state(state)) for state in states]

    def _cell(self, trial):
        record = self.record_of(trial)
        folds, end = record.folds, record.end
        name, metrics = self._objective[0], mean_metrics(folds)
        score = end.get("discarded", metrics.pop(name, None))
        return results.Cell(
            trial_id=trial.trial_id,
            values=self.searched_values(trial.hyperparameters),
            status=trial.status,
            scores={k: fold["metrics"][name] for k, fold in folds.items()},
            # Not the trial's score: workers send theirs to the chief as float32.
            score=score if trial.status == "COMPLETED" else None,
            discarded="discarded" in end,
            seconds=sum(fold["seconds"] for fold in folds.values()),
            message=end.get("failed") or trial.message,
            metrics=metrics,
        )

    @property
    def _objective(self):
        """(name, direction)."""
        objective = self.oracle.objective
        return objective.name, objective.direction

    def searched_values(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """Alpha, beta and any other searched values: dict name -> value."""
        searches = self.hypermodel.searches
        values = {
            name: value
            for name, value in self.hypermodel.settings(hp).items()
            if name in ("alpha", "beta") or searches(name)
        }
        own = {k: v for k, v in hp.values.items() if k.startswith("tuner/")}
        return {**values, **own}

    def get_best_hyperparameters(
        self, num_trials: int = 1
    ) -> list[keras_tuner.HyperParameters]:
        """See `keras_tuner.Tuner.get_best_hyperparameters`; `rule` picks the first."""
        cells, direction = self.cells(), self._objective[1]
        best = results.best(cells, direction, self.rule)
        rest = [c for c in results.ranked(cells, direction) if c is not best]
        paths = [
            self.folder / f"trial_{cell.trial_id}" / "trial.json"
            for cell in [best, *rest][:num_trials]
        ]
        return [Trial.from_state(_disk.read_json(p)).hyperparameters for p in paths]

    def get_best_models(self, num_models: int = 1) -> NoReturn:
        """Not supported: each model of the search has seen only part of the data.

        Raises:
            ValueError: always; the message recommends `fit_best`.
        """
        raise ValueError(
            "A cross-validated search keeps no models: each has only seen a part of "
            "the data. Use `tuner.fit_best(train)`, which trains on all of it with "
            "the best settings."
        )

    def best_regularizer(self) -> Regularizer:
        """Return a new regularizer with the best cell's settings, to pass to `fit`."""
        hp = self.get_best_hyperparameters()[0]
        return self.hypermodel.regularizer(self.hypermodel.settings(hp))

    def fit_best(
        self,
        x: Data = None,
        y: Data = None,
        *,
        batches: Callable[..., Data] | None = None,
        **kwargs: Any,
    ) -> DeltaModel:
        """Train with the best settings on all training data.

        Args:
            x, y: the data; default: those of `search`.
            batches: as in `search`; needed if `search` had it and `x` is given.
            **kwargs: arguments of `fit`, such as `validation_data`. Default: the epochs
                and callbacks of `search`.

        Returns:
            The trained `DeltaModel`; `model.history` contains its logs.
        """
        asked = _disk.read_json(self.folder / "search.json")
        if asked is None or (x is None and self._search is None):
            first = "Call `search` first, which returns at once if all is done, or pass"
            if _compat.tuner_processes.is_chief_oracle():
                first = "A chief has no data. Pass"
            raise ValueError(
                f"`fit_best` trains as `search` did. {first} the training data of the "
                "search: `fit_best(train)`."
            )
        if x is not None and asked["batches"] and batches is None:
            expected = "the function that `search` had, because data are given"
            raise ValueError(invalid("batches", expected, batches))
        hp = self.get_best_hyperparameters()[0]
        keras.utils.set_random_seed(self.seed)
        with scope_of(self.distribution_strategy):
            model = self.hypermodel.build(hp)
        if x is None:
            data, given = self._search.data, self._search.callbacks
        else:
            names = ("folds", "seed", "batch_size", "image_size", "protocol", "views")
            options = {name: asked[name] for name in names}
            data, given = self._cut(model, (x, y), {**options, "batches": batches}), []
        train = data.train(None)
        kwargs.setdefault("epochs", hp.values.get("tuner/epochs", asked["epochs"]))
        kwargs.setdefault("callbacks", _compat.copy_callbacks(self, given))
        cache = search.cache_for(model, "auto", train, asked["views"])
        kwargs.setdefault("source_maps", cache)
        model.fit(train, shuffle=False, **kwargs)
        return model

    def results_frame(self) -> "DataFrame":
        """Return all cells as a `pandas.DataFrame`, best first, as in `results.csv`."""
        return results.frame(self.cells(), *self._objective)

    def write_table(self) -> None:
        """Write `results.csv` if pandas is installed."""
        with contextlib.suppress(ImportError):
            table = self.results_frame()
            with _disk.replace_file(self.folder / "results.csv") as temporary:
                table.to_csv(temporary, index=False)

    def summary(self) -> str:
        """Return the results in plain words, and whether they exceed noise: a str."""
        cells, limits = self.cells(), self._limits()
        return summary(cells, *self._objective, self.rule, self.folds, limits)

    def _limits(self):
        """Limits of alpha and beta: dict name -> (least, largest)."""
        hp = keras_tuner.HyperParameters()
        self.hypermodel.declare_hyperparameters(hp)
        limits = {}
        for one in hp.space:
            if hasattr(one, "min_value"):
                limits[one.name] = one.min_value, one.max_value
            elif all(isinstance(v, numbers.Real) for v in getattr(one, "values", ())):
                limits[one.name] = min(one.values), max(one.values)
        return limits

    def results_summary(self, num_trials: int = 10) -> None:
        """Print `summary`."""
        print(self.summary())

    def plot_surface(self, path: PathLike | None = None) -> "Figure":
        """Plot the mean score over alpha and beta, as in the article's Fig. 4.

        Args:
            path: `.png`, `.pdf` or `.svg` file to write; None: no file.

        Returns:
            `matplotlib.figure.Figure`.
        """
        return plot_surface(self.cells(), *self._objective, path)

    def write_hparams(self, folder: PathLike) -> None:
        """Write all cells for TensorBoard's HParams page, one run each."""
        write_hparams(self.cells(), self._objective[0], folder)
