"""`PenaltyLogger`: what pulls at the weights, and how strongly, step by step."""

from pathlib import Path

import keras
import tensorflow as tf

from keras_delta._arguments import flag, folder, integer
from keras_delta._errors import invalid
from keras_delta._training.session import Session
from keras_delta._types import Logs, PathLike
from keras_delta.callbacks.base import Callback
from keras_delta.callbacks.step_table import StepTable

FIRST = ("epoch", "step", "task_loss", "feature_penalty", "head_penalty")
LAST = (
    "gradient_norm/task",
    "gradient_norm/feature",
    "gradient_norm/head",
    "gradient_angle",
)


class PenaltyLogger(Callback):
    """Writes the parts of the objective and their gradients to a CSV file.

    `fit` logs means over the epoch, and of the penalties only their sizes. Whether
    a penalty holds the weights back is told by its gradient: a row of
    `penalties.csv` has, of one step and its global batch,

    - `epoch`, from 0, and `step`, the optimizer's iteration before the step;
    - `task_loss`, `feature_penalty`, `head_penalty`, the latter two times alpha
      and beta;
    - `penalty/<tap>`, the part of each tap in `feature_penalty`, where the
      regularizer compares feature maps;
    - `gradient_norm/task`, `gradient_norm/feature`, `gradient_norm/head`;
    - `gradient_angle`, in degrees between the gradients of task and feature
      penalty: above 90 they pull against each other; nan where one is zero.

    Steps 0, `every`, `2 * every`, ... are logged, and each row is on the disk when
    its step is done. The training stays the same.

    The file is never overwritten. A resumed training (Keras's epoch above 0, or a
    backup that was put back) goes on with it, and drops the rows of steps that come
    again. A second `fit` of the same model appends. Any other training begins a new
    file and renames the old one to `penalties-1.csv`, `penalties-2.csv` and so on.

    Args:
        log_dir: folder to write to; made if need be.
        every: number of steps from one row to the next, default 10. At least the
            model's `steps_per_execution`.
        tensorboard: whether to write the same scalars for TensorBoard as well, to
            `log_dir`.

    Raises:
        TypeError, ValueError: for bad arguments here; at the start of `fit` for a
            model that is no `DeltaModel`, for an `every` below its
            `steps_per_execution`, and where the model is watched at other steps.
    """

    remembers = ("step",)
    left_behind = (*Callback.left_behind, "_writer")

    def __init__(
        self, log_dir: PathLike, every: int = 10, tensorboard: bool = False
    ) -> None:
        super().__init__()
        self.log_dir = folder("log_dir", log_dir)
        self.every = integer("every", every)
        self.tensorboard = flag("tensorboard", tensorboard)
        self.step: int | None = None  # the last one logged
        self._epoch = 0
        self._table = StepTable(self.path)
        self._writer = None

    @property
    def path(self) -> Path:
        """The CSV file, a `pathlib.Path`."""
        return self.log_dir / "penalties.csv"

    def check(self, model: keras.Model) -> None:
        """Refuse steps that cannot be seen one by one."""
        super().check(model)
        together = model.steps_per_execution
        if self.every < together:
            raise ValueError(
                invalid(
                    "every",
                    f"at least the model's steps_per_execution, {together}",
                    self.every,
                    "Callbacks see one step of an execution: log fewer steps, or "
                    "compile with a smaller `steps_per_execution`.",
                )
            )
        if model.watched is None and model.watch_every not in (None, self.every):
            raise ValueError(
                f"PenaltyLogger(every={self.every}) cannot log, because the model is "
                f"watched every {model.watch_every} steps already, by another "
                "PenaltyLogger or `model.watch`. Use the same `every`, or call "
                "`model.watch(None)` first."
            )

    def before_fit(self, session: Session) -> None:
        """Watch from the first step on."""
        super().before_fit(session)
        session.model.watch(self.every)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Watch, where `DeltaModel.fit` has not called `before_fit`."""
        super().on_train_begin(logs)
        if self.model.watch_every != self.every:
            self.model.watch(self.every)
            self.model.make_train_function()
        self.step, self._table = None, StepTable(self.path)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Before the first epoch, put the file where the training is."""
        self._epoch = epoch
        if not self._table.opened:
            step = int(self.model.optimizer.iterations.numpy())
            self._table.open(step, resumed=epoch > 0 or self.step is not None)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Write a row if the step was watched and not written yet."""
        watched = self.model.watched
        if watched is None or watched["step"] == self.step:
            return
        self.step = int(watched["step"])
        if self.step % self.every:
            return
        # Nine digits are all that float32 has.
        row = {name: float(f"{float(v):.9g}") for name, v in watched.items()}
        row.update(epoch=self._epoch, step=self.step)
        taps = [name for name in row if name.startswith("penalty/")]
        self._table.append({name: row[name] for name in (*FIRST, *taps, *LAST)})
        if self.tensorboard:
            self._write_summaries(row)

    def after_fit(self, session: Session) -> None:
        """Stop watching, after errors too."""
        session.model.watch(None)

    def on_train_end(self, logs: Logs = None) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write_summaries(self, row):
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        with self._writer.as_default(step=self.step):
            for name in row.keys() - {"epoch", "step"}:
                tf.summary.scalar(name, row[name])
        self._writer.flush()
