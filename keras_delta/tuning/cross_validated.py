"""Searches of Keras Tuner in which each trial is a cross-validation."""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import keras_tuner

from keras_delta import _arguments, _compat, _disk
from keras_delta._errors import invalid, unknown_name
from keras_delta._inputs import outputs
from keras_delta._inputs.training_data import TrainingData
from keras_delta._runs import status
from keras_delta._training import checks
from keras_delta._types import (
    Data,
    ImageSize,
    PathLike,
    ProtocolName,
    SourceMaps,
    Verbose,
)
from keras_delta.tuning import alone, objectives, part, results, search
from keras_delta.tuning.folds import cut
from keras_delta.tuning.hyper_model import DeltaHyperModel
from keras_delta.tuning.oracles import GridOracle, GridSearch
from keras_delta.tuning.outcome import Outcome
from keras_delta.tuning.records import mean_metrics
from keras_delta.tuning.trials import Trials, in_words, number_of
from keras_delta.tuning.warm import WarmModels


class CrossValidated(Outcome, _compat.TunerHooks):
    """Mix-in for a tuner of Keras Tuner: each trial is trained once on each fold.

    To use it, write `class MySearch(CrossValidated, keras_tuner.BayesianOptimization):
    ...`; predefined are `CrossValidatedGridSearch`, `-RandomSearch`,
    `-BayesianOptimization` and `-Hyperband`.

    A trial's score is the mean of the objective over the folds, each measured once
    after the last epoch on the held-out part: the best of all epochs would be
    optimistic. The folds are stratified and the same for all cells, as are the initial
    values of the head and the order of the data.

    No work is repeated: images are decoded once; attention, scales and head are
    computed once per fold, source maps once per image; one model is traced and reset
    for each training; a finished training is never rerun, whichever process is
    killed. Everything is stored in the folder `directory/project_name`; run the same
    program again to resume.

    Args:
        hypermodel: a `DeltaHyperModel`.
        objective: name of the objective, or `keras_tuner.Objective`. Default:
            `"val_accuracy"`. `"val_loss"` is the task loss, without penalties.
        folds: number of folds, default 5.
        seed: seed of folds, heads, data order and the tuner's own choices.
        discard: significance level such as 0.05: a cell is abandoned after three or
            more folds if it is worse than the best so far (one-sided corrected
            resampled t test, Nadeau & Bengio 2003). Its score is then an estimate.
            Default: None, all cells run all folds.
        rule: `"best"`: the best mean wins; ties go to the smaller alpha + beta.
            `"one_standard_error"`: the strongest regularization that is within one
            standard error of the best, in its variant.
        directory, project_name: folder of the results.
        overwrite: whether to delete existing results.
        chief_timeout: seconds that a worker waits for the chief, default 600.
        **kwargs: arguments of the tuner, such as `max_trials` or
            `distribution_strategy`.

    Raises:
        ValueError, TypeError: if an argument is invalid or the folder is not writable.
    """

    def __init__(
        self,
        hypermodel: DeltaHyperModel,
        objective: str | keras_tuner.Objective = "val_accuracy",
        *,
        folds: int = 5,
        seed: int = 0,
        discard: float | None = None,
        rule: Literal["best", "one_standard_error"] = "best",
        directory: PathLike = "search",
        project_name: str = "alpha_beta",
        overwrite: bool = False,
        chief_timeout: float = 600,
        **kwargs: Any,
    ) -> None:
        if not isinstance(hypermodel, DeltaHyperModel):
            expected = "a keras_delta.tuning.DeltaHyperModel"
            raise TypeError(invalid("hypermodel", expected, hypermodel))
        if isinstance(objective, str):
            objectives.check_direction(objective, hypermodel.metrics)
        elif not isinstance(objective, keras_tuner.Objective):
            expected = "the name of one metric, or a keras_tuner.Objective"
            raise TypeError(invalid("objective", expected, objective))
        self.folds = _arguments.integer("folds", folds, least=2)
        self.seed = _arguments.integer("seed", seed, least=0)
        self.discard = _arguments.number(
            "discard", discard, above=0, most=0.5, optional=True
        )
        self.rule = _arguments.choice("rule", rule, results.RULES)
        if kwargs.get("executions_per_trial", 1) != 1:
            remedy = "Each fold is trained once; use more folds."
            given = kwargs["executions_per_trial"]
            raise ValueError(invalid("executions_per_trial", "1", given, remedy))
        if overwrite and _compat.tuner_processes.has_chief_oracle():
            raise ValueError(
                "`overwrite=True` would delete the results whenever a process of the "
                "search starts. Delete the folder first, and pass overwrite=False."
            )
        _disk.check_writable("directory", Path(directory) / project_name)
        # One diverging cell does not mean that the next one diverges.
        kwargs.setdefault("max_consecutive_failed_trials", 10**9)
        alone.whole_files()
        self._part = part.part()
        with contextlib.redirect_stdout(io.StringIO()):  # "Reloading Tuner from"
            super().__init__(
                hypermodel=hypermodel,
                objective=objective,
                seed=self.seed + 1,  # Keras Tuner takes 0 for "any"
                directory=os.fspath(directory),
                project_name=project_name,
                overwrite=overwrite,
                **kwargs,
            )
        self._part.join(self.oracle, chief_timeout)
        self._models = WarmModels(
            hypermodel, self.folder / "once", self.seed, self.distribution_strategy
        )
        self._trials, self._search = Trials(self, self._models), None

    # Keras Tuner's hooks

    def state_file(self) -> str:
        """See `_compat.TunerHooks`; a tuner has no separate state."""
        return str(self.folder / "oracle.json")

    def declare_space(self) -> None:
        """See `_compat.TunerHooks`."""
        space = self.oracle.get_space()
        self.hypermodel.declare_hyperparameters(space)
        self.oracle.update_space(space)

    def save(self) -> None:
        """See `keras_tuner.Tuner.save`."""
        self._part.save(self.oracle)

    def reload(self) -> None:
        """See `keras_tuner.Tuner.reload`."""
        self._part.reload(self)

    def pre_create_trial(self) -> None:
        """See `keras_tuner.Tuner.pre_create_trial`."""
        status.report(state="waiting for a cell")

    def search(
        self,
        x: Data,
        y: Data = None,
        *,
        epochs: int,
        batch_size: int = 16,
        image_size: ImageSize | None = None,
        protocol: ProtocolName = "default",
        views: int | None = 4,
        batches: Callable[..., Data] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        source_maps: SourceMaps = "auto",
        validate: bool = False,
        verbose: Verbose = "auto",
    ) -> None:
        """Start or resume the search.

        Args:
            x, y: all training data: a `keras_delta.data.ImageSet`, arrays `(x, y)`,
                or a `tf.data.Dataset` without augmentation.
            epochs: epochs of each training. (Hyperband uses its `max_epochs`.)
            batch_size: samples in a batch.
            image_size, protocol: see `ImageSet.batches`; default: the target's.
            views: number of fixed crops of each image, default 4; None draws new
                ones in each epoch, without a cache of source maps.
            batches: function `(part, training)` that returns data for `fit`, instead
                of these arguments: for custom augmentation. It is called for each
                training and must return the same data each time.
            callbacks: list, copied for each training. `keras.callbacks.TensorBoard`
                gets a folder and HParams for each.
            source_maps: `"auto"` (cached if the data are repeated), `"compute"`,
                `"cache"` or a `SourceMapCache`.
            validate: whether to evaluate after each epoch as well, for callbacks that
                watch `val_` metrics. The score is still that of the last weights.
            verbose: 0 for silence, 1 for a line per cell, 2 for each epoch.

        Raises:
            ValueError: before any training, if a class has too few samples, the
                objective is not logged, or the folder contains another search.
        """
        options: dict[str, Any]
        options = {"batch_size": batch_size, "image_size": image_size}
        options |= {"protocol": protocol, "views": views, "batches": batches}
        given = (epochs, callbacks, source_maps, validate, verbose)
        fatal = (ValueError, TypeError, keras_tuner.errors.FatalError)
        with status.tell_mistakes(*fatal):
            self._part.search(self, lambda: self._train((x, y), given, options))
            status.report(state="done")
        self._part.leave()
        cells = self.cells()
        if cells and all(c.status == "FAILED" for c in cells):
            self.get_best_hyperparameters()  # says why there are none

    def _train(self, data, given, options):
        """Run the search in a process that trains."""
        self._search = self._prepare(data, *given, options)
        self._tell_what_is_done()
        try:
            super().search(self._search)
        except KeyboardInterrupt:
            if self._search.verbose and not status.launched():
                print("\nInterrupted. Run the same program again to resume.")
            raise

    def _prepare(
        self, data, epochs, callbacks, source_maps, validate, verbose, options
    ):
        """A `Search`, with every check that can run before the first training."""
        _arguments.integer("epochs", epochs)
        _arguments.integer("batch_size", options["batch_size"])
        hp = keras_tuner.HyperParameters()
        self.hypermodel.declare_hyperparameters(hp)
        model = self._models.need(hp)
        if options["image_size"] is None:
            options["image_size"] = search.image_size(model)
        objectives.check_task(self.oracle.objective.name, model)
        data = self._cut(model, data, options)
        first_fold = TrainingData(data.train(0), batch_size=options["batch_size"])
        checks.data_fits(model, first_fold)
        self.hypermodel.check_taps(model)
        logs = self._trials.evaluate(model, data.held_out(0), most=8)
        objective = self.oracle.objective.name
        if objective not in logs:
            message = unknown_name("objective", objective, list(logs))
            raise keras_tuner.errors.FatalValueError(message)
        callbacks = list(callbacks or ())
        wanted = {
            "tuner": type(self).__name__,
            "objective": objective,
            "folds": self.folds,
            "seed": self.seed,
            "discard": self.discard,
            "epochs": epochs,
            **options,
            "batches": options["batches"] is not None,
            "data": data.digest,
            "callbacks": [type(callback).__name__ for callback in callbacks],
            **self.hypermodel.description(hp),
        }
        search.claim(self.folder, wanted)
        given = model, source_maps, data.train(0), options["views"]
        source_maps = search.cache_for(*given)
        verbose = 1 if verbose == "auto" else verbose
        return search.Search(data, epochs, callbacks, source_maps, validate, verbose)

    def _cut(self, model, data, options):
        """The folds of the data; checks that all labels fit the model."""
        tasks = outputs.tasks(model.loss, model.networks.target)
        return cut(
            *data,
            task=tasks[0] if len(tasks) == 1 else None,
            check=lambda y: checks.labels_fit(model, y, complete=True),
            **{"folds": self.folds, "seed": self.seed, **options},
        )

    def number_of_cells(self) -> int | None:
        """The maximum number of cells, or None."""
        oracle = _compat.oracle_of(self)
        if isinstance(oracle, GridOracle):
            return len(oracle.cells())
        return oracle.max_trials

    def _tell_what_is_done(self):
        ended = [c.status for c in self.cells() if c.status in ("COMPLETED", "FAILED")]
        if ended and self._search.verbose:
            total, failed = self.number_of_cells(), ended.count("FAILED")
            of = f" of {total}" if total else ""
            but = f", {failed} of them failed" if failed else ""
            print(f"Resuming in '{self.folder}': {len(ended)}{of} cells are done{but}.")

    # One trial

    def run_and_update(self, trial: Any, job: Any) -> None:
        """As in Keras Tuner, but an error not specific to a cell ends the search."""
        try:
            self.oracle.update_trial(trial.trial_id, self.run_trial(trial, job))
            trial.status = "COMPLETED"
        except keras_tuner.errors.FailedTrialError as e:
            trial.status, trial.message = "FAILED", str(e)
            self._tell(trial, job, f"failed: {str(e).splitlines()[0]}")

    def run_trial(self, trial: Any, job: Any) -> dict[str, float]:
        """Train the missing folds of a cell, and return its mean metrics."""
        record = self._trials.run(trial, job)
        if "failed" in record.end:
            raise keras_tuner.errors.FailedTrialError(record.end["failed"])
        name, metrics = self.oracle.objective.name, mean_metrics(record.folds)
        metrics[name] = record.end.get("discarded", metrics[name])
        self._tell(trial, job, in_words(record, name, metrics[name]))
        status.report(score=metrics[name])
        return metrics

    def _tell(self, trial, job, what):
        if not job.verbose:
            return
        values = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.searched_values(trial.hyperparameters).items()
        ]
        total = self.number_of_cells()
        of = f"/{total}" if total else ""
        cell = f"Cell {number_of(trial) or ''}{of}"
        print(f"{cell}  {'  '.join(values)}  {what}", flush=True)


class CrossValidatedGridSearch(CrossValidated, GridSearch):
    """Trains every cell of the grid on every fold, as the article does.

    Args:
        hypermodel: a `DeltaHyperModel`, usually with lists. A range is replaced by
            `points` values (default 5), evenly spaced in the logarithm.
        objective and others: see `CrossValidated`.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.1: 5 folds,
    {1e-4, 1e-3, 1e-2, 0.1, 0.2} for alpha and for beta.

    Example:
        ```python
        tuner = kd.tuning.CrossValidatedGridSearch(space, directory="search")
        tuner.search(train_set, epochs=15)
        print(tuner.summary())
        model = tuner.fit_best()
        ```
    """


class CrossValidatedRandomSearch(CrossValidated, keras_tuner.RandomSearch):
    """`keras_tuner.RandomSearch`, cross-validated; see `CrossValidated`."""


class CrossValidatedBayesianOptimization(
    CrossValidated, keras_tuner.BayesianOptimization
):
    """`keras_tuner.BayesianOptimization`, cross-validated; see `CrossValidated`."""


class CrossValidatedHyperband(CrossValidated, keras_tuner.Hyperband):
    """`keras_tuner.Hyperband`, cross-validated; see `CrossValidated`.

    Each of its rounds trains from scratch: no weights of folds are kept.
    """
