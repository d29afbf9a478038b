"""`PenaltyLogger`: what pulls at the weights, and how strongly, step by step."""

import csv
import os

import tensorflow as tf

from keras_delta._errors import invalid
from keras_delta.callbacks.base import DeltaCallback, folder, positive_integer

FIRST = ("epoch", "step", "task_loss", "feature_penalty", "head_penalty")
LAST = (
    "gradient_norm/task",
    "gradient_norm/feature",
    "gradient_norm/head",
    "gradient_angle",
)


class PenaltyLogger(DeltaCallback):
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
    its step is done. The training stays the same; in half precision with a sum of
    regularizers up to rounding, because TensorFlow may add in another order.

    The file is never overwritten. A resumed training (Keras's epoch above 0, or a
    backup that was put back) goes on with it; rows from the step on at which it
    resumes are dropped, because these steps come again. A second `fit` of the same
    model appends. Any other training begins a new file and renames the old one to
    `penalties-1.csv`, `penalties-2.csv` and so on.

    Cost: a logged step goes backwards four times and takes about two and a half
    times as long, which at `every=10` is a seventh more. The step is traced anew
    for each `fit`.

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

    Example:
        ```python
        logger = kd.callbacks.PenaltyLogger("logs", every=20)
        model.fit(train, epochs=15, regularizer="delta", callbacks=[logger])
        table = pandas.read_csv("logs/penalties.csv")
        ```
    """

    left_behind = (*DeltaCallback.left_behind, "_writer")

    def __init__(self, log_dir, every=10, tensorboard=False):
        super().__init__()
        self.log_dir = folder("log_dir", log_dir)
        self.every = positive_integer("every", every)
        if not isinstance(tensorboard, bool):
            raise TypeError(invalid("tensorboard", "True or False", tensorboard))
        self.tensorboard = tensorboard
        self.step = None  # the last one logged; a backup puts it back
        self._epoch = 0
        self._file = Table(self.path)
        self._writer = None

    @property
    def path(self):
        """The CSV file, a `pathlib.Path`."""
        return self.log_dir / "penalties.csv"

    def check(self, model):
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
        fresh = model.watched is None
        if fresh and model.watch_every not in (None, self.every):
            raise ValueError(
                f"PenaltyLogger(every={self.every}) cannot log, because the model is "
                f"watched every {model.watch_every} steps already, by another "
                "PenaltyLogger or `model.watch`. Use the same `every`, or call "
                "`model.watch(None)` first."
            )

    def before_fit(self, model):
        """Watch from the first step on."""
        self.check(model)
        model.watch(self.every)

    def on_train_begin(self, logs=None):
        """Watch, where `DeltaModel.fit` has not called `before_fit`."""
        super().on_train_begin()
        if self.model.watch_every != self.every:
            self.model.watch(self.every)
            self.model.make_train_function()
        self.step, self._file = None, Table(self.path)

    def on_epoch_begin(self, epoch, logs=None):
        """Before the first epoch, put the file where the training is."""
        self._epoch = epoch
        if not self._file.opened:
            step = int(self.model.optimizer.iterations.numpy())
            self._file.open(step, resumed=epoch > 0 or self.step is not None)

    def on_train_batch_end(self, batch, logs=None):
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
        self._file.append({name: row[name] for name in (*FIRST, *taps, *LAST)})
        if self.tensorboard:
            self._write_summaries(row)

    def on_train_end(self, logs=None):
        """Stop watching."""
        self.model.watch(None)
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


class Table:
    """A CSV file with a column `step`, that a resumed training goes on with.

    Args:
        path: of the file, a `pathlib.Path`.

    Attributes:
        opened: whether `open` was called.
    """

    def __init__(self, path):
        self._path = path
        self._columns = None
        self.opened = False

    def open(self, step, resumed):
        """Make the file end before a step.

        Args:
            step: the first step to come.
            resumed: whether rows from that step on are to be dropped. Otherwise a
                file that has such rows belongs to another training and is renamed.
        """
        self.opened = True
        if not self._path.exists():
            return
        with open(self._path, newline="") as f:
            columns, *rows = list(csv.reader(f)) or [[]]
        at = columns.index("step") if "step" in columns else None
        # A crash may have cut the last row off.
        whole = [r for r in rows if len(r) == len(columns)]
        if at is None or not all(r[at].isdecimal() for r in whole):
            self._put_aside()
            return
        before = [r for r in whole if int(r[at]) < step]
        if len(before) < len(whole) and not resumed:
            self._put_aside()
            return
        self._columns = columns
        if len(before) < len(rows):
            part = self._path.with_name(self._path.name + ".part")
            with open(part, "w", newline="") as f:
                csv.writer(f).writerows([columns, *before])
            os.replace(part, self._path)

    def append(self, row):
        """Write a row, a dict from column to number, and close the file again."""
        columns = list(row)
        if self._columns not in (None, columns):  # another regularizer, other taps
            self._put_aside()
        begins = self._columns is None
        self._columns = columns
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", newline="") as f:
            csv.writer(f).writerows([columns] * begins + [row.values()])

    def _put_aside(self):
        number = 1
        while (free := self._numbered(number)).exists():
            number += 1
        self._path.rename(free)
        self._columns = None

    def _numbered(self, number):
        return self._path.with_name(f"{self._path.stem}-{number}{self._path.suffix}")
