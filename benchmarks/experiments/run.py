"""Runs a `Plan`: in this process, or as one of several that the launcher started."""

import math
import os
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from keras_delta._errors import invalid
from keras_delta._runs import status
from experiments.plan import Plan
from experiments.store import ResultStore
from experiments.train import Trainer

POLL = 1.0  # seconds
# TensorFlow never gives back some 150 MB of each traced training: a worker then begins
# again as a new process.
CELLS_PER_PROCESS = 20


def run(plan, store, data_dir=None, verbose=1, trainer=None):
    """Train what is missing of a plan; returns when all of it is done.

    Interrupted or killed, whenever and however, the same call goes on: every result is
    a file of its own. In a process of the launcher it shares the work with the others
    and does not return.

    Args:
        plan: the `Plan`.
        store: the `ResultStore`.
        data_dir: folder of the data sets.
        verbose: 0 for silence, 1 for a line a cell, 2 for each epoch as well.
        trainer: what trains, for tests; default: a `Trainer`.

    Raises:
        RuntimeError: if another run works on the store.
    """
    if not isinstance(plan, Plan) or not isinstance(store, ResultStore):
        given = [type(v).__name__ for v in (plan, store)]
        raise TypeError(invalid("plan, store", "a Plan and a ResultStore", given))
    if status.launched():
        _share(plan, store, data_dir, verbose, trainer)
    with store.alone():
        if plan.pending(store):
            trainer = trainer or Trainer(store.once, data_dir, verbose > 1)
            _work(plan, store, trainer, verbose)


def _share(plan, store, data_dir, verbose, trainer):
    """Do this process's share of the work, and exit."""
    trainer = trainer or Trainer(store.once, data_dir)
    with status.tell_mistakes(ValueError, TypeError, OSError):
        _work(plan, store, trainer, verbose, CELLS_PER_PROCESS)
    if not plan.complete(store):
        os.execv(sys.executable, sys.orig_argv)
    status.report(state="done")
    sys.exit(0)


def rerun(cell, store, data_dir=None):
    """Train a cell again, attention included, and give (old record, new one).

    The store is left as it is.
    """
    if cell not in store:
        raise ValueError(invalid("cell", "one with a result in the store", str(cell)))
    with tempfile.TemporaryDirectory() as once:
        return store.get(cell), Trainer(Path(once), data_dir).run(cell)


def _work(plan, store, trainer, verbose, most=math.inf):
    """Train cells that nobody else trains, until none is left, or `most` of them."""
    seconds = []
    while not plan.complete(store) and len(seconds) < most:
        status.report(state="waiting for a cell")
        for cell in _ordered(plan.pending(store), trainer):
            with store.claimed(cell) as mine:
                if not mine or cell in store:
                    continue
                _report(cell, plan, store)
                began = time.monotonic()
                record = trainer.run(cell)
                store.put(cell, record)
            seconds.append(time.monotonic() - began)
            status.report(done=len(seconds), score=record.get("accuracy"))
            if verbose:
                print(_line(cell, record, plan, store, seconds), flush=True)
            break  # a choice may be made now
        else:
            time.sleep(POLL)


def _ordered(pending, trainer):
    """The cells in the order in which this process should try to train them.

    Those of the first stage; of these, those whose model is in memory; and of the
    others, workers begin at different places, so that each traces models of its own.
    """
    cells = list(pending)
    start = round(status.place() * len(cells))
    cells = cells[start:] + cells[:start]
    return sorted(cells, key=lambda cell: (pending[cell], not trainer.warm(cell)))


def _report(cell, plan, store):
    status.report(
        state="training",
        cell=len(store) + 1,
        cells=plan.size(),
        values={"what": str(cell)},
    )


def _line(cell, record, plan, store, seconds):
    """What became of a cell, and how long the rest will take."""
    what = (
        f"failed: {record['failed'].splitlines()[0]}"
        if "failed" in record
        else f"{record['accuracy']:.1%}"
    )
    left = max(plan.size() - sum(c in store for c in plan.staged(store)), 0)
    rest = statistics.mean(seconds) * left / max(1, len(status.workers()))
    return (
        f"{cell}: {what}  {seconds[-1]:.0f} s, {left} left, about "
        f"{timedelta(seconds=round(rest))}"
    )
