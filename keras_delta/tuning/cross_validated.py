"""Searches of Keras Tuner in which each trial is a cross-validation."""

import contextlib
import io
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import keras
import keras_tuner
import tensorflow as tf
from keras_tuner.engine.trial import TrialStatus
from keras_tuner.src.distribute import utils as distributed  # no public name
from keras_tuner.src.engine.metrics_tracking import infer_metric_direction

from keras_delta import _disk, caching, callbacks
from keras_delta._errors import invalid, unknown_name
from keras_delta._inputs import samples
from keras_delta._training import checks
from keras_delta.data.sampling import check_seed
from keras_delta.tuning import chief, results, status
from keras_delta.tuning.folds import cut
from keras_delta.tuning.hyper_model import DeltaHyperModel
from keras_delta.tuning.noise import hopeless
from keras_delta.tuning.oracles import GridOracle, GridSearch
from keras_delta.tuning.outcome import Outcome
from keras_delta.tuning.records import mean_metrics
from keras_delta.tuning.warm import WarmModels

ERRORS = ("loss", "error", "entropy", "divergence")  # in names of what is to be small


class Job(NamedTuple):
    """What `search` was asked to train."""

    data: Any
    epochs: Any
    callbacks: list
    validate: bool
    verbose: int


class CrossValidated(Outcome):
    """Mix-in for a tuner of Keras Tuner: each trial is trained once on each fold.

    `class MySearch(CrossValidated, keras_tuner.BayesianOptimization): ...` is all that
    it takes; ready made are `CrossValidatedGridSearch`, `-RandomSearch`,
    `-BayesianOptimization` and `-Hyperband`.

    A trial's score is the mean of the objective over the folds, each measured once
    after the last epoch on what the fold holds out: the best of all epochs would be
    too good. The folds are stratified, and the same for all cells, as are the first
    values of the head and the order of the data.

    Nothing is done twice: images are decoded once; attention, scales and head are
    computed once a fold, source maps once an image; one model is traced, and set back
    for each training; a training that is finished is never run again, whoever is
    killed. All of it is in the folder `directory/project_name`; run the same program
    again to go on.

    Args:
        hypermodel: a `DeltaHyperModel`.
        objective: name of what is searched for, or `keras_tuner.Objective`. Default:
            `"val_accuracy"`. `"val_loss"` is the task loss, without penalties.
        folds: number of folds, default 5.
        seed: of folds, heads, data order and the tuner's own choices.
        discard: a significance such as 0.05: a cell is given up after two folds or
            more if it is worse than the best so far (one-sided corrected resampled t
            test, Nadeau & Bengio 2003). Its score is an estimate then. Default: None,
            all cells run all folds.
        rule: `"best"`: the best mean wins, of equal ones the smaller alpha + beta.
            `"one_standard_error"`: the strongest regularization that is within one
            standard error of the best.
        directory, project_name: folder of the results.
        overwrite: whether to delete what is there.
        chief_timeout: seconds that a worker waits for the chief, default 600.
        **kwargs: of the tuner, such as `max_trials` or `distribution_strategy`.

    Raises:
        ValueError, TypeError: for bad arguments, and a folder that cannot be written.
    """

    def __init__(
        self,
        hypermodel,
        objective="val_accuracy",
        *,
        folds=5,
        seed=0,
        discard=None,
        rule="best",
        directory="search",
        project_name="alpha_beta",
        overwrite=False,
        chief_timeout=600,
        **kwargs,
    ):
        if not isinstance(hypermodel, DeltaHyperModel):
            expected = "a keras_delta.tuning.DeltaHyperModel"
            raise TypeError(invalid("hypermodel", expected, hypermodel))
        if not isinstance(objective, (str, keras_tuner.Objective)):
            expected = "the name of one metric, or a keras_tuner.Objective"
            raise TypeError(invalid("objective", expected, objective))
        if isinstance(objective, str):
            _check_direction(objective, hypermodel.metrics)
        samples.check_count("folds", folds)
        if folds is None or folds < 2:
            raise ValueError(invalid("folds", "an integer of 2 or more", folds))
        if discard is not None and not (
            isinstance(discard, float) and 0 < discard < 0.5
        ):
            raise ValueError(invalid("discard", "None or a number below 0.5", discard))
        if rule not in results.RULES:
            raise ValueError(unknown_name("rule", rule, results.RULES))
        if kwargs.get("executions_per_trial", 1) != 1:
            remedy = "Each fold is trained once; use more folds."
            given = kwargs["executions_per_trial"]
            raise ValueError(invalid("executions_per_trial", "1", given, remedy))
        if overwrite and status.launched():
            raise ValueError(
                "`overwrite=True` would delete the results in each process that the "
                "launcher starts. Delete the folder before, and pass overwrite=False."
            )
        check_seed(seed)
        self.folds, self.seed, self.discard, self.rule = folds, seed, discard, rule
        _check_writable(directory, project_name)
        # A cell that diverges is no sign that the next one will.
        kwargs.setdefault("max_consecutive_failed_trials", 10**9)
        chief.whole_files()
        with contextlib.redirect_stdout(io.StringIO()):  # "Reloading Tuner from"
            super().__init__(
                hypermodel=hypermodel,
                objective=objective,
                seed=seed + 1,  # Keras Tuner takes 0 for "any"
                directory=os.fspath(directory),
                project_name=project_name,
                overwrite=overwrite,
                **kwargs,
            )
        if self._is_worker():
            status.report(state="waiting for the chief")
            chief.connect(self.oracle, chief_timeout)
        else:
            self.oracle.verbose = 0  # we tell in our own way
        self._models = WarmModels(
            hypermodel, self._path / "once", seed, self.distribution_strategy
        )
        self._cache = self._job = None
        self._done = 0

    # Keras Tuner's hooks

    def _get_tuner_fname(self):
        return str(self._path / "oracle.json")  # a tuner has no state of its own

    def save(self):
        """See `keras_tuner.Tuner.save`."""
        if not self._is_worker():
            self.oracle.save()

    def reload(self):
        """See `keras_tuner.Tuner.reload`."""
        if self._is_worker():
            self._populate_initial_space()
        else:
            self.oracle.reload()
            chief.keep_ongoing(self.oracle, status.workers())

    def _populate_initial_space(self):
        space = self.oracle.get_space()
        self.hypermodel.declare_hyperparameters(space)
        self.oracle.update_space(space)

    def pre_create_trial(self):
        """See `keras_tuner.Tuner.pre_create_trial`."""
        status.report(state="waiting for a cell")

    def search(
        self,
        x,
        y=None,
        *,
        epochs,
        batch_size=16,
        image_size=None,
        protocol="default",
        views=4,
        batches=None,
        callbacks=None,
        source_maps="auto",
        validate=False,
        verbose="auto",
    ):
        """Search, or go on with a search.

        Args:
            x, y: all training data: a `keras_delta.data.ImageSet`, arrays `(x, y)`,
                or a `tf.data.Dataset` without augmentation.
            epochs: of each training. (With Hyperband its `max_epochs` decides.)
            batch_size: samples in a batch.
            image_size, protocol: see `ImageSet.batches`; default: what the target
                takes.
            views: number of fixed crops of each image, default 4; None draws new
                ones in each epoch, without a cache of source maps.
            batches: function `(part, training)` that gives what `fit` takes, in place
                of these: for augmentation of your own. It is called for each training
                and has to give the same each time.
            callbacks: list, copied for each training. `keras.callbacks.TensorBoard`
                gets a folder and HParams for each.
            source_maps: `"auto"` (cached where the data come back), `"compute"`,
                `"cache"` or a `SourceMapCache`.
            validate: whether to evaluate after each epoch as well, for callbacks that
                watch `val_` metrics. The score is that of the last weights anyway.
            verbose: 0 for silence, 1 a line a cell, 2 each epoch.

        Raises:
            ValueError: before any training, for too few samples in a class, an
                objective that is not logged, or a folder of another search.
        """
        if distributed.is_chief_oracle():
            with _told():
                self._warn_of_idle_workers()
                self.save()
                chief.serve(self.oracle)
                self._end()
            return
        with _told():
            job = self._prepare(
                (x, y),
                epochs,
                callbacks,
                validate,
                verbose,
                source_maps,
                batch_size=batch_size,
                image_size=image_size,
                protocol=protocol,
                views=views,
                batches=batches,
            )
            self._tell_what_is_done()
            try:
                super().search(job)
            except KeyboardInterrupt:
                if job.verbose and not status.launched():
                    print("\nInterrupted. Run the same program again to go on.")
                raise
            self._end()

    def _prepare(self, data, epochs, given, validate, verbose, source_maps, **options):
        """Everything that can go wrong before the first training."""
        samples.check_count("epochs", epochs)
        if epochs is None:
            raise ValueError(invalid("epochs", "a positive integer", epochs))
        samples.check_count("batch_size", options["batch_size"])
        hp = self._first_hyperparameters()
        model = self._models.need(hp)
        if options["image_size"] is None:
            options["image_size"] = _image_size(model)
        data = cut(*data, folds=self.folds, seed=self.seed, **options)
        checks.first_batch(model, data.train(0), None, options["batch_size"])
        self.hypermodel.check_taps(model)
        logs = self._evaluate(model, data, 0, most=8)
        if self.oracle.objective.name not in logs:
            raise keras_tuner.errors.FatalValueError(
                unknown_name("objective", self.oracle.objective.name, list(logs))
            )
        options["batches"] = options["batches"] is not None
        self._claim(
            {
                "tuner": type(self).__name__,
                "objective": self.oracle.objective.name,
                "folds": self.folds,
                "seed": self.seed,
                "discard": self.discard,
                "epochs": epochs,
                **options,
                "data": data.digest,
                "callbacks": [type(c).__name__ for c in given or ()],
                **self.hypermodel.description(hp),
            }
        )
        if source_maps == "auto":
            source_maps = self._cache_for(data.train(0), options["views"])
        self._cache = caching.get(source_maps)
        verbose = 1 if verbose == "auto" else verbose
        self._job = Job(data, epochs, list(given or ()), validate, verbose)
        return self._job

    def _first_hyperparameters(self):
        hp = keras_tuner.HyperParameters()
        self.hypermodel.declare_hyperparameters(hp)
        return hp

    def _claim(self, wanted):
        """Note what the folder is for, or refuse one of another search."""
        wanted = json.loads(json.dumps(wanted, default=str))
        path = self._path / "search.json"
        with _disk.lock(self._path / "lock"):
            found = status.read(path)
            if found is None:
                status.write(path, wanted)
                return
        differing = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
        if differing:
            what = "; ".join(
                line
                for k in differing
                for line in _differences(k, found.get(k), wanted.get(k))
            )
            raise keras_tuner.errors.FatalValueError(
                f"The folder '{self._path}' holds another search ({what}). Pass "
                "another `project_name` to keep it, or `overwrite=True` to delete it."
            )

    def _warn_of_idle_workers(self):
        cells = self._number_of_cells()
        count = len(status.workers())
        if cells is not None and count > cells:
            idle = count - cells
            status.report(
                note=f"{count} workers are more than the search has cells ({cells}): "
                f"{idle} of them will have nothing to do."
            )

    def _number_of_cells(self):
        """How many cells there are at most, or None."""
        oracle = getattr(self.oracle, "_oracle", self.oracle)  # behind a client
        if isinstance(oracle, GridOracle):
            return len(oracle.cells())
        return oracle.max_trials

    def _tell_what_is_done(self):
        ended = ("COMPLETED", "FAILED")
        found = [c.status for c in self.cells() if c.status in ended]
        if found and self._job.verbose:
            total = self._number_of_cells()
            of = f" of {total}" if total else ""
            failed = found.count("FAILED")
            but = f", {failed} of them failed" if failed else ""
            print(f"Going on in '{self._path}': {len(found)}{of} cells are done{but}.")

    def _end(self):
        if not self._is_worker():  # one process writes it, the chief if there is one
            with contextlib.suppress(ImportError):  # pandas is an extra
                table = self.results_frame()
                with _disk.replace_file(self._path / "results.csv") as temporary:
                    table.to_csv(temporary, index=False)
        status.report(state="done")
        if status.launched():
            sys.exit(0)  # the rest of the script is for one process
        found = self.cells()
        if found and all(c.status == "FAILED" for c in found):
            self.get_best_hyperparameters()  # says why there are none

    # One trial

    def _try_run_and_update_trial(self, trial, job):
        """As Keras Tuner's, but what is no matter of a cell ends the search."""
        try:
            self.oracle.update_trial(trial.trial_id, self.run_trial(trial, job))
            trial.status = TrialStatus.COMPLETED
        except keras_tuner.errors.FailedTrialError as e:
            trial.status, trial.message = TrialStatus.FAILED, str(e)
            self._line(trial, job, f"failed: {str(e).splitlines()[0]}")

    def run_trial(self, trial, job):
        """Train what is missing of a cell, and give its mean metrics."""
        record = self._record(trial)
        number = int(trial.trial_id) if trial.trial_id.isdigit() else 0
        with record.locked():
            # Not all workers begin with the same fold: what is computed once for a
            # fold is computed by one of them.
            for i in range(self.folds):
                if record.end:
                    break
                fold = (number + i) % self.folds
                if fold not in record.folds:
                    self._run_fold(trial, record, fold, job)
                    self._discard_if_hopeless(record)
        if "failed" in record.end:
            raise keras_tuner.errors.FailedTrialError(record.end["failed"])
        metrics = mean_metrics(record.folds)
        name = self.oracle.objective.name
        if "discarded" in record.end:
            metrics[name] = record.end["discarded"]
        self._line(trial, job, self._in_words(record, metrics[name]))
        status.report(score=metrics[name])
        return metrics

    def _run_fold(self, trial, record, fold, job):
        epochs = trial.hyperparameters.values.get("tuner/epochs", job.epochs)
        status.report(
            state="training",
            cell=int(trial.trial_id) + 1 if trial.trial_id.isdigit() else None,
            cells=self._number_of_cells(),
            values=self._values(trial.hyperparameters),
            fold=fold + 1,
            folds=self.folds,
            epochs=epochs,
            epoch=0,
        )
        began = time.monotonic()
        try:
            model = self._train(trial, fold, epochs, job)
            metrics = self._evaluate(model, job.data, fold)
            bad = [name for name, value in metrics.items() if not math.isfinite(value)]
            if bad:
                raise callbacks.LossNotFinite(f"{bad[0]} is {metrics[bad[0]]}.")
        except callbacks.LossNotFinite as e:
            record.ended(failed=f"Fold {fold}: {e}")
        except (MemoryError, tf.errors.ResourceExhaustedError) as e:
            self._models.drop()
            record.ended(failed=f"Fold {fold}: out of memory. {e}")
        else:
            record.add(fold, metrics, time.monotonic() - began, epochs)
            self._done += 1
            status.report(done=self._done)

    def _train(self, trial, fold, epochs, job):
        hp, data = trial.hyperparameters, job.data
        model = self._models.begin(
            hp, fold, lambda: data.train(fold), verbose=job.verbose > 1
        )
        copied = self._deepcopy_callbacks(job.callbacks)
        self._configure_tensorboard_dir(copied, trial, fold)
        model.fit(
            data.train(fold),
            epochs=epochs,
            validation_data=data.held_out(fold) if job.validate else None,
            shuffle=False,
            source_maps="compute" if self._cache is None else self._cache,
            callbacks=[
                *copied,
                callbacks.TerminateOnNaN(raise_error=True),
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: status.report(epoch=epoch + 1)
                ),
            ],
            verbose="auto" if job.verbose > 1 else 0,
        )
        if model.interrupted:
            raise KeyboardInterrupt
        return model

    def _evaluate(self, model, data, fold, most=None):
        """Metrics on what a fold holds out: dict `val_...` -> float."""
        held_out = data.held_out(fold)
        if most is not None:
            held_out = next(samples.batches(held_out, max_samples=most))
            logs = model.evaluate(*held_out, verbose=0, return_dict=True)
        else:
            logs = model.evaluate(held_out, verbose=0, return_dict=True)
        return {f"val_{name}": float(value) for name, value in logs.items()}

    def _discard_if_hopeless(self, record):
        """Give a cell up that is worse than the best one beyond doubt."""
        name, direction = self.oracle.objective.name, self.oracle.objective.direction
        if self.discard is None or record.end:
            return
        rivals = [c for c in self.cells() if len(c.scores) == self.folds]
        scores = {k: fold["metrics"][name] for k, fold in record.folds.items()}
        if not rivals or len(scores) == self.folds:
            return
        rival = results.ranked(rivals, direction)[0]
        if hopeless(scores, rival.scores, direction, self.discard, self.folds):
            # Folds differ in difficulty: what it lacks is measured on the same ones.
            lack = sum(scores[k] - rival.scores[k] for k in scores) / len(scores)
            mean = sum(rival.scores.values()) / len(rival.scores)
            record.ended(discarded=mean + lack)

    def _line(self, trial, job, what):
        if not job.verbose:
            return
        searched = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self._values(trial.hyperparameters).items()
        ]
        total = self._number_of_cells()
        number = f"{int(trial.trial_id) + 1}" if trial.trial_id.isdigit() else ""
        of = f"/{total}" if total else ""
        print(f"Cell {number}{of}  {'  '.join(searched)}  {what}", flush=True)

    def _in_words(self, record, score):
        name = self.oracle.objective.name
        values = [fold["metrics"][name] for fold in record.folds.values()]
        error = statistics.stdev(values) / math.sqrt(len(values))
        seconds = sum(fold["seconds"] for fold in record.folds.values())
        text = f"{name} {score:.4f} ± {error:.4f}"
        if "discarded" in record.end:
            text = f"discarded after {len(values)} folds, {name} about {score:.4f}"
        return f"{text}  {seconds:.0f} s"


class CrossValidatedGridSearch(CrossValidated, GridSearch):
    """Trains every cell of the grid on every fold, as the article does.

    Args:
        hypermodel: a `DeltaHyperModel`, mostly with lists. Of a range it takes
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

    Each of its rounds trains from the start: no weights of folds are kept.
    """


@contextlib.contextmanager
def _told():
    """Mistakes that a new start would only repeat are told to the launcher."""
    try:
        yield
    except (ValueError, TypeError, keras_tuner.errors.FatalError) as e:
        status.report(fatal=f"{type(e).__name__}: {e}")
        raise


def _check_direction(name, metrics):
    """Refuse the name of a metric that Keras Tuner would guess wrong, or not at all.

    It takes every metric that it knows nothing of, F1 for one, for an error.
    """
    direction = infer_metric_direction(name)
    is_error = any(word in name for word in ERRORS)
    if direction == "max" or (direction == "min" and is_error):
        return
    logged = ["val_loss", *(f"val_{_name_of(m)}" for m in metrics)]
    if name not in logged:
        raise ValueError(unknown_name("objective", name, logged))
    raise ValueError(
        f"Whether a larger `{name}` is better cannot be told from its name. Pass "
        f'`objective=keras_tuner.Objective("{name}", "max")`, or "min".'
    )


def _name_of(metric):
    return metric if isinstance(metric, str) else metric().name


def _check_writable(directory, project_name):
    if not isinstance(project_name, str) or not project_name:
        raise ValueError(invalid("project_name", "a name", project_name))
    folder = Path(directory) / project_name
    try:
        with _disk.replace_file(folder / "write_test") as temporary:
            temporary.write_text("", "utf-8")
        (folder / "write_test").unlink()
    except OSError as e:
        raise ValueError(
            invalid(
                "directory",
                "a folder that can be written",
                str(directory),
                f"Reason: {e}",
            )
        ) from e


def _image_size(model):
    shapes = [v.shape for v in keras.tree.flatten(model.target.inputs)]
    if len(shapes) == 1 and len(shapes[0]) == 4 and None not in shapes[0][1:3]:
        return tuple(shapes[0][1:3])
    return None


def _differences(name, there, now):
    """The parts in which two JSON values differ, as lines of text."""
    if isinstance(there, dict) and isinstance(now, dict):
        keys = list({**there, **now})
        pairs = [(k, there.get(k), now.get(k)) for k in keys]
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        # Hyperparameters have names.
        names = [
            v.get("name", i) if isinstance(v, dict) else i for i, v in enumerate(now)
        ]
        pairs = zip(names, there, now, strict=True)
        if not any(isinstance(v, (dict, list)) for v in [*there, *now]):
            pairs = None
    else:
        pairs = None
    if pairs is None:
        return [f"{name}: {_shown(there)} there, {_shown(now)} now"]
    return [
        line
        for part, a, b in pairs
        if a != b
        for line in _differences(f"{name}, {part}", a, b)
    ]


def _shown(value):
    text = str(value)
    return text if len(text) < 80 else f"{text[:77]}..."
