"""What comes out of a cross-validated search: cells, the best, table, picture."""

import numbers
from pathlib import Path

import keras
import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.engine.tuner import maybe_distribute

from keras_delta.caching import SourceMapCache
from keras_delta.tuning import results, status
from keras_delta.tuning.folds import cut
from keras_delta.tuning.hparams import write_hparams
from keras_delta.tuning.records import Record, mean_metrics
from keras_delta.tuning.summary import summary
from keras_delta.tuning.surface import plot_surface


class Outcome:
    """The half of `CrossValidated` that reads what is in the folder.

    It works in any process, while others search, and after the search.
    """

    @property
    def _path(self):
        return Path(self.project_dir)

    def _record(self, trial):
        return Record(self._path / "cells", trial.hyperparameters.values)

    def cells(self):
        """All cells so far, a list of `results.Cell`, also while others search."""
        found = []
        for path in sorted(self._path.glob("trial_*/trial.json")):
            state = status.read(path)
            if state is None:
                continue
            trial = Trial.from_state(state)
            record = self._record(trial)
            folds, end = record.folds, record.end
            metrics = mean_metrics(folds)
            name = self.oracle.objective.name
            found.append(
                results.Cell(
                    trial_id=trial.trial_id,
                    values=self._values(trial.hyperparameters),
                    status=trial.status,
                    scores={k: fold["metrics"][name] for k, fold in folds.items()},
                    # Not the trial's: a worker's went to the chief as float32.
                    score=end.get("discarded", metrics.get(name))
                    if trial.status == TrialStatus.COMPLETED
                    else None,
                    discarded="discarded" in end,
                    seconds=sum(fold["seconds"] for fold in folds.values()),
                    message=end.get("failed") or trial.message,
                    metrics={k: v for k, v in metrics.items() if k != name},
                )
            )
        return found

    def _values(self, hp):
        """Alpha, beta and what else is searched: dict name -> value."""
        searches = self.hypermodel.searches
        found = {
            name: value
            for name, value in self.hypermodel.settings(hp).items()
            if name in ("alpha", "beta") or searches(name)
        }
        own = {k: v for k, v in hp.values.items() if k.startswith("tuner/")}
        return {**found, **own}

    def get_best_hyperparameters(self, num_trials=1):
        """See `keras_tuner.Tuner.get_best_hyperparameters`; the first is by `rule`."""
        cells, direction = self.cells(), self.oracle.objective.direction
        best = results.best(cells, direction, self.rule)
        rest = [c for c in results.ranked(cells, direction) if c is not best]
        found = []
        for cell in [best, *rest][:num_trials]:
            state = status.read(self._path / f"trial_{cell.trial_id}" / "trial.json")
            found.append(Trial.from_state(state).hyperparameters)
        return found

    def get_best_models(self, num_models=1):
        """Not for a cross-validation, whose models have seen a part of the data each.

        Raises:
            ValueError: always; names `fit_best`.
        """
        raise ValueError(
            "A cross-validated search keeps no models: each has seen a part of the "
            "data alone. Use `tuner.fit_best(train)`, which trains on all of it with "
            "the best settings."
        )

    def best_regularizer(self):
        """The best cell's regularizer, new, to pass to `fit`."""
        hp = self.get_best_hyperparameters()[0]
        return self.hypermodel.regularizer(self.hypermodel.settings(hp))

    def fit_best(self, x=None, y=None, *, batches=None, **kwargs):
        """Train with the best settings on all training data.

        Args:
            x, y: the data; default: those of `search`.
            batches: as in `search`; where that had it and `x` is given.
            **kwargs: of `fit`, such as `validation_data`. Default: the epochs and
                callbacks of `search`.

        Returns:
            The trained `DeltaModel`; `model.history` tells how it went.
        """
        asked = status.read(self._path / "search.json")
        if asked is None or (x is None and self._job is None):
            raise ValueError(
                "`fit_best` trains as `search` did. Call `search` first, which returns "
                "at once where everything is done, or pass the training data of a "
                "search that was run before: `fit_best(train)`."
            )
        if x is None:
            data, given = self._job.data, self._job.callbacks
        else:
            names = ("folds", "seed", "batch_size", "image_size", "protocol", "views")
            options = {name: asked[name] for name in names}
            data, given = cut(x, y, batches=batches, **options), []
        hp = self.get_best_hyperparameters()[0]
        train = data.train(None)
        keras.utils.set_random_seed(self.seed)
        with maybe_distribute(self.distribution_strategy):
            model = self.hypermodel.build(hp)
        kwargs.setdefault("epochs", hp.values.get("tuner/epochs", asked["epochs"]))
        kwargs.setdefault("callbacks", self._deepcopy_callbacks(given))
        kwargs.setdefault("source_maps", self._cache_for(train, asked["views"]))
        model.fit(train, shuffle=False, **kwargs)
        return model

    def results_frame(self):
        """All cells as a `pandas.DataFrame`, the best first; as in `results.csv`."""
        objective = self.oracle.objective
        return results.frame(self.cells(), objective.name, objective.direction)

    def summary(self):
        """What was found, in plain words, and whether it is more than noise: a str."""
        objective = self.oracle.objective
        return summary(
            self.cells(),
            objective.name,
            objective.direction,
            self.rule,
            self.folds,
            self._limits(),
        )

    def _limits(self):
        """What alpha and beta may be: dict name -> (least, largest)."""
        hp = keras_tuner.HyperParameters()
        self.hypermodel.declare_hyperparameters(hp)
        found = {}
        for one in hp.space:
            if hasattr(one, "min_value"):
                found[one.name] = one.min_value, one.max_value
            elif all(isinstance(v, numbers.Real) for v in getattr(one, "values", ())):
                found[one.name] = min(one.values), max(one.values)
        return found

    def results_summary(self, num_trials=10):
        """Print `summary`."""
        print(self.summary())

    def plot_surface(self, path=None):
        """Mean score over alpha and beta, as the article's Fig. 4.

        Args:
            path: `.png`, `.pdf` or `.svg` file to write; None for none.

        Returns:
            `matplotlib.figure.Figure`.
        """
        objective = self.oracle.objective
        return plot_surface(self.cells(), objective.name, objective.direction, path)

    def write_hparams(self, folder):
        """All cells for TensorBoard's HParams page, a run each."""
        write_hparams(self.cells(), self.oracle.objective.name, folder)

    def _cache_for(self, dataset, views):
        """What to pass as `source_maps`: a cache, if these data come back."""
        cache = SourceMapCache(views=max(views or 1, 2))
        try:
            cache.check_data(dataset)
        except ValueError:
            return "compute"
        return "compute" if self.hypermodel.jit_compile is True else cache
