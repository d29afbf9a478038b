"""Writes cells for TensorBoard's HParams page."""

import numbers
from pathlib import Path

import numpy as np

from keras_delta.tuning import results

OURS = ".keras_delta"  # suffix of the event files that this module writes


def write_hparams(cells, objective, folder):
    """Write the cells for TensorBoard's HParams page, one run per trial.

    Each run has the hyperparameters and the scalars objective, `standard_error` and
    other metrics, at step 0. A second call replaces the runs of the first and touches
    no other files.

    Args:
        cells: sequence of `Cell`.
        objective: name of the objective, such as `"val_accuracy"`.
        folder: folder for `tensorboard --logdir`; created if necessary.
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api, api_pb2
    from tensorboard.plugins.hparams.summary import session_end_pb

    folder = Path(folder)
    for path in [*folder.glob(f"*{OURS}"), *folder.glob(f"*/*{OURS}")]:
        path.unlink()
        if path.parent != folder and not any(path.parent.iterdir()):
            path.parent.rmdir()

    def run(name):
        writer = tf.summary.create_file_writer(str(folder / name), filename_suffix=OURS)
        return writer.as_default(step=0)

    scalars = [objective, *(n for c in cells for n in c.metrics)]
    scalars = dict.fromkeys([*scalars, results.STANDARD_ERROR])
    parameters = [api.HParam(n, _domain(api, n, cells)) for n in results.names(cells)]
    with run(""):
        api.hparams_config(parameters, [api.Metric(name) for name in scalars])
    for cell in cells:
        measured = {**cell.metrics, objective: cell.score}
        measured[results.STANDARD_ERROR] = results.standard_error(cell)
        with run(cell.trial_id):
            values = {n: _plain(v) for n, v in cell.values.items() if v is not None}
            api.hparams(values, cell.trial_id, 0)
            for name, value in measured.items():
                if results.finite(value):
                    tf.summary.scalar(name, value)
            state = results.state(cell)
            if state != results.RUNNING:
                end = "FAILURE" if state == results.FAILED else "SUCCESS"
                end = session_end_pb(getattr(api_pb2, f"STATUS_{end}"), cell.seconds)
                tf.summary.experimental.write_raw_pb(end.SerializeToString())


def _domain(api, name, cells):
    values = {_plain(c.values[name]) for c in cells if c.values.get(name) is not None}
    if len({type(v) for v in values}) != 1:
        return None
    return api.Discrete(sorted(values))


def _plain(value):
    """A value that HParams accepts: float, bool or string."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)
