"""`PenaltyLogger`: penalties and their gradients, step by step."""

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

    `fit` logs means over the epoch, and only the values of the penalties. Whether
    a penalty holds the weights back shows in its gradient. A row of `penalties.csv`
    contains, for one step and its global batch,

    - `epoch`, from 0, and `step`, the optimizer's iteration before the step;
    - `task_loss`, `feature_penalty`, `head_penalty`, the latter two multiplied by
      alpha and beta;
    - `penalty/<tap>`, each tap's part of `feature_penalty`, if the regularizer
      compares feature maps;
    - `gradient_norm/task`, `gradient_norm/feature`, `gradient_norm/head`;
    - `gradient_angle`, the angle in degrees between the gradients of task and feature
      penalty: above 90 they oppose each other; nan if one of them is zero.

    Steps 0, `every`, `2 * every`, ... are logged, and each row is on disk when its
    step is done. Training is unaffected.

    The file is never overwritten. A resumed training (Keras's epoch above 0, or a
    restored backup) continues it and drops the rows of steps that are repeated. A
    second `fit` of the same model appends. Any other training starts a new file and
    renames the old one to `penalties-1.csv`, `penalties-2.csv` and so on.

    Args:
        log_dir: folder to write to; created if necessary.
        every: number of steps between rows, default 10. At least the model's
            `steps_per_execution`.
        tensorboard: whether to also write the same scalars for TensorBoard, to
            `log_dir`.

    Raises:
        TypeError, ValueError: if an argument is invalid or, at the start of `fit`, if
            the model is not a `DeltaModel`, `every` is below its
            `steps_per_execution`, or the model is already watched at other steps.
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
        """Reject steps that cannot be observed individually."""
        super().check(model)
        together = model.steps_per_execution
        if self.every < together:
            raise ValueError(
                invalid(
                    "every",
                    f"at least the model's steps_per_execution, {together}",
                    self.every,
                    "Callbacks see one step per execution: log less often, or "
                    "compile with a smaller `steps_per_execution`.",
                )
            )
        if model.watched is None and model.watch_every not in (None, self.every):
            raise ValueError(
                f"PenaltyLogger(every={self.every}) cannot log, because the model is "
                f"already watched every {model.watch_every} steps, by another "
                "PenaltyLogger or `model.watch`. Use the same `every`, or call "
                "`model.watch(None)` first."
            )

    def before_fit(self, session: Session) -> None:
        """Start watching at the first step."""
        super().before_fit(session)
        session.model.watch(self.every)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Start watching if `DeltaModel.fit` has not called `before_fit`."""
        super().on_train_begin(logs)
        if self.model.watch_every != self.every:
            self.model.watch(self.every)
            self.model.make_train_function()
        self.step, self._table = None, StepTable(self.path)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Before the first epoch, align the file with the current step."""
        self._epoch = epoch
        if not self._table.opened:
            step = int(self.model.optimizer.iterations.numpy())
            self._table.open(step, resumed=epoch > 0 or self.step is not None)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Write a row if the step was watched and is not yet written."""
        watched = self.model.watched
        if watched is None or watched["step"] == self.step:
            return
        self.step = int(watched["step"])
        if self.step % self.every:
            return
        # float32 has no more than nine digits.
        row = {name: float(f"{float(v):.9g}") for name, v in watched.items()}
        row.update(epoch=self._epoch, step=self.step)
        taps = [name for name in row if name.startswith("penalty/")]
        self._table.append({name: row[name] for name in (*FIRST, *taps, *LAST)})
        if self.tensorboard:
            self._write_summaries(row)

    def after_fit(self, session: Session) -> None:
        """Stop watching, even after an error."""
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
