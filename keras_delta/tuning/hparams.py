"""Cells for TensorBoard's HParams page."""

import contextlib
import hashlib
import numbers
import os
import time
from pathlib import Path

import numpy as np

from keras_delta import _disk
from keras_delta.tuning.results import (
    DISCARDED,
    FAILED,
    FINISHED,
    STANDARD_ERROR,
    finite,
    names,
    standard_error,
    state,
)

OURS = ".keras_delta"  # ends the names of the event files that this module wrote


def write_hparams(cells, objective, folder):
    """Write the cells for TensorBoard's HParams: one run a trial.

    Each run has the hyperparameters and the scalars objective, `standard_error` and
    other metrics, at step 0. It is one file, replaced when it changes, and runs of
    trials that are not among the cells any more are removed; so it can be called as
    often as you like. Only files that this function wrote are touched.

    Args:
        cells: sequence of `Cell`.
        objective: its name, such as `"val_accuracy"`.
        folder: to look at with `tensorboard --logdir`; made if need be.
    """
    from tensorboard.plugins.hparams import api, api_pb2
    from tensorboard.plugins.hparams.summary import session_end_pb
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    folder = Path(folder)
    scalars = dict.fromkeys(n for c in cells for n in c.metrics)
    scalars = [objective, *(n for n in scalars if n != objective), STANDARD_ERROR]
    parameters = [api.HParam(name, _domain(api, name, cells)) for name in names(cells)]
    metrics = [api.Metric(name) for name in scalars]
    _write_run(folder, [api.hparams_config_pb(parameters, metrics, 0)])
    ends = {
        FINISHED: api_pb2.STATUS_SUCCESS,
        DISCARDED: api_pb2.STATUS_SUCCESS,
        FAILED: api_pb2.STATUS_FAILURE,
    }
    for cell in cells:
        values = {n: _plain(v) for n, v in cell.values.items() if v is not None}
        summaries = [api.hparams_pb(values, cell.trial_id, 0)]
        measured = {
            **cell.metrics,
            objective: cell.score,
            STANDARD_ERROR: standard_error(cell),
        }
        summaries += [scalar_pb(n, v) for n, v in measured.items() if finite(v)]
        if state(cell) in ends:
            summaries.append(session_end_pb(ends[state(cell)], cell.seconds))
        _write_run(folder / cell.trial_id, summaries)
    trials = {c.trial_id for c in cells}
    for path in folder.glob(f"*/*{OURS}"):
        if path.parent.name not in trials:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in there
                path.parent.rmdir()


def _write_run(folder, summaries):
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    # As bytes: TensorBoard has two classes for the same messages.
    summaries = [s.SerializeToString(deterministic=True) for s in summaries]
    digest = hashlib.sha256(b"".join(summaries)).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    before = list(folder.glob(f"*{OURS}"))
    if len(before) == 1 and before[0].name.endswith(f".{digest}{OURS}"):
        return
    now = time.time()
    # TensorBoard reads whatever has "tfevents" in its name, in the order of names.
    name = f"events.out.tfevents.{time.time_ns():020d}.{digest}{OURS}"
    whole = folder / "unread"
    with _disk.replace_file(whole) as temporary, open(temporary, "wb") as file:
        writer = RecordWriter(file)
        event = event_pb2.Event(wall_time=now, file_version="brain.Event:2")
        writer.write(event.SerializeToString())
        for summary_bytes in summaries:
            event = event_pb2.Event(wall_time=now)
            event.summary.MergeFromString(summary_bytes)
            writer.write(event.SerializeToString())
    for path in before:
        path.unlink(missing_ok=True)
    os.replace(whole, folder / name)


def _domain(api, name, cells):
    values = {_plain(c.values[name]) for c in cells if c.values.get(name) is not None}
    if len({type(v) for v in values}) != 1:
        return None
    return api.Discrete(sorted(values))


def _plain(value):
    """A value that HParams take: float, bool or string."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)
