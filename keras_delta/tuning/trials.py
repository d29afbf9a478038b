"""Trains the missing folds of a cell, and stores the results."""

import contextlib
import math
import statistics
import time

import keras
import tensorflow as tf

from keras_delta import _compat, callbacks
from keras_delta._inputs import samples
from keras_delta._runs import status
from keras_delta.tuning import results
from keras_delta.tuning.noise import hopeless


class Trials:
    """Trains the cells of a `CrossValidated` tuner."""

    def __init__(self, tuner, models):
        self._tuner, self._models = tuner, models
        self._done = 0  # trainings of this process

    def run(self, trial, search):
        """Train the missing folds of a cell, and return its `Record`."""
        record, folds = self._tuner.record_of(trial), self._tuner.folds
        with record.locked():
            # Workers begin with different folds, so that values computed once per
            # fold are computed by different workers.
            for i in range(folds):
                fold = ((number_of(trial) or 1) - 1 + i) % folds
                if not record.end and fold not in record.folds:
                    self._run_fold(trial, record, fold, search)
                    self._discard_if_hopeless(record)
        return record

    def _run_fold(self, trial, record, fold, search):
        epochs = trial.hyperparameters.values.get("tuner/epochs", search.epochs)
        status.report(
            state="training",
            cell=number_of(trial),
            cells=self._tuner.number_of_cells(),
            values=self._tuner.searched_values(trial.hyperparameters),
            fold=fold + 1,
            folds=self._tuner.folds,
            epochs=epochs,
            epoch=0,
        )
        began = time.monotonic()
        try:
            model = self._train(trial, fold, epochs, search)
            metrics = self.evaluate(model, search.data.held_out(fold))
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

    def _train(self, trial, fold, epochs, search):
        data = search.data
        model = self._models.begin(
            trial.hyperparameters,
            fold,
            lambda: data.train(fold),
            verbose=search.verbose > 1,
        )
        copies = _compat.copy_callbacks(self._tuner, search.callbacks, trial, fold)
        model.fit(
            data.train(fold),
            epochs=epochs,
            validation_data=data.held_out(fold) if search.validate else None,
            shuffle=False,
            source_maps=search.source_maps,
            callbacks=[
                *copies,
                callbacks.TerminateOnNaN(raise_error=True),
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: status.report(epoch=epoch + 1)
                ),
            ],
            verbose="auto" if search.verbose > 1 else 0,
        )
        if model.interrupted:
            raise KeyboardInterrupt
        return model

    def evaluate(self, model, held_out, most=None):
        """Metrics on the held-out part of a fold: dict `val_...` -> float."""
        if most is None:
            logs = model.evaluate(held_out, verbose=0, return_dict=True)
        else:
            few = next(samples.batches(held_out, max_samples=most))
            logs = model.evaluate(*few, verbose=0, return_dict=True)
        return {f"val_{name}": float(value) for name, value in logs.items()}

    def _discard_if_hopeless(self, record):
        """Abandon a cell that is clearly worse than the best one."""
        tuner, objective = self._tuner, self._tuner.oracle.objective
        folds = record.folds.items()
        scores = {k: fold["metrics"][objective.name] for k, fold in folds}
        if tuner.discard is None or record.end or len(scores) == tuner.folds:
            return
        rivals = [c for c in tuner.cells() if len(c.scores) == tuner.folds]
        if not rivals:
            return
        rival = results.ranked(rivals, objective.direction)[0].scores
        if hopeless(scores, rival, objective.direction, tuner.discard, tuner.folds):
            # Folds differ in difficulty: compare on the same ones.
            lack = statistics.fmean(scores[k] - rival[k] for k in scores)
            record.ended(discarded=statistics.fmean(rival.values()) + lack)


def number_of(trial):
    """The number of a trial's cell, from 1; None if its id does not contain it."""
    with contextlib.suppress(ValueError):
        return int(trial.trial_id) + 1
    return None


def in_words(record, name, score):
    """The result of a cell, as the end of a line."""
    values = [fold["metrics"][name] for fold in record.folds.values()]
    seconds = sum(fold["seconds"] for fold in record.folds.values())
    if "discarded" in record.end:
        text = f"discarded after {len(values)} folds, {name} about {score:.4f}"
    else:
        error = statistics.stdev(values) / math.sqrt(len(values))
        text = f"{name} {score:.4f} ± {error:.4f}"
    return f"{text}  {seconds:.0f} s"
