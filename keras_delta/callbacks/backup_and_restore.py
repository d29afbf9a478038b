"""`BackupAndRestore`: a training that is killed goes on where it was."""

import contextlib
import json
import math
from typing import Any, Literal

import keras
import numpy as np

from keras_delta import _disk
from keras_delta._arguments import flag, folder
from keras_delta._checkpoint import Checkpoint
from keras_delta._compat import print_msg
from keras_delta._errors import invalid, warn
from keras_delta._training.session import Session
from keras_delta._types import Logs, PathLike
from keras_delta.attention import ChannelAttention
from keras_delta.callbacks import callback_states, training_state
from keras_delta.callbacks.base import Callback
from keras_delta.callbacks.plain_values import ArrayStore, decode, encode
from keras_delta.regularizers import with_attention


class BackupAndRestore(Callback):
    """Backs the training up after each epoch; run again, `fit` goes on from there.

    As `keras.callbacks.BackupAndRestore`, for a `DeltaModel`, and

    - the backup is one file that is replaced as a whole or not at all: whenever the
      process is killed, the file holds the end of one epoch and nothing else;
    - all of the state is in it: weights, optimizer, random seeds of layers, what the
      regularizer has computed, `History`, and what other callbacks remember. The
      data are put where they were;
    - of the frozen source it holds a digest only.

    So a training that was killed and started again, in a new process by the same
    script, ends with the same bits as one that was not, as far as its data and
    operations are reproducible at all: call `keras.utils.set_random_seed` first.

    It takes the first place among the callbacks. Of the others it keeps what their
    `get_state()` returns, to give it to `set_state(state)`, and of Keras's own what
    they remember; the file of a `CSVLogger` is in it as well. A callback of neither
    kind begins again, which is told with a warning where a training goes on.

    After Ctrl-C the backup stays. A training that has come to its end, by itself or
    by `EarlyStopping`, leaves nothing behind, unless `delete_checkpoint=False`: then
    running it again trains no more, and more `epochs` go on from there.

    One process at a time may use a folder. With several workers, all read the
    backup and the first writes it: the folder has to be one that all of them see.

    Args:
        backup_dir: a folder of its own; made if it is not there.
        save_freq: `"epoch"`; Keras's other choices are refused. A state in the
            midst of an epoch would need the position in data that cannot tell it.
        delete_checkpoint: whether to delete the backup when training has ended.

    Raises:
        TypeError, ValueError: for bad arguments here; at the start of `fit` for a
            folder that cannot be written, a model that is no `DeltaModel`, and a
            backup that is damaged or was made for another source, target, optimizer
            or regularizer.
        RuntimeError: at the start of `fit`, for a folder that another process uses.
    """

    left_behind = (
        *Callback.left_behind,
        "_callbacks",
        "_checkpoint",
        "_backup",
        "_session",
        "_stack",
    )

    def __init__(
        self,
        backup_dir: PathLike,
        save_freq: Literal["epoch"] = "epoch",
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        if "://" in str(backup_dir):
            raise ValueError(invalid("backup_dir", "a local folder", backup_dir))
        self.backup_dir = folder("backup_dir", backup_dir)
        if save_freq != "epoch":
            remedy = (
                "A backup in the midst of an epoch would need the position in the "
                "data, which data sets cannot tell. For more frequent backups make "
                "the epochs shorter: `fit(train.repeat(), steps_per_epoch=100)`."
            )
            raise ValueError(invalid("save_freq", '"epoch"', save_freq, remedy))
        self.save_freq = save_freq
        self.delete_checkpoint = flag("delete_checkpoint", delete_checkpoint)
        self._callbacks: Any = None
        self._session: Any = None
        self._checkpoint: Any = None
        self._stack: Any = None
        self._backup: Any = None  # this and the next: see `before_fit`
        self._keep, self._rate = False, None
        self._begun, self._ended = False, 0

    def arrange(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Take the first place.

        What is kept of the others is then their state between two epochs, before
        any of them has begun the next one.
        """
        callbacks.remove(self)
        callbacks.insert(0, self)
        self._callbacks = callbacks

    def before_fit(self, session: Session) -> None:
        """Take the folder, and put variables back before the data are looked at.

        Raises:
            TypeError, ValueError, RuntimeError: see the class.
        """
        super().before_fit(session)
        model = session.model
        self.set_model(model)
        self._session, self._stack = session, contextlib.ExitStack()
        self._backup, self._keep, self._begun = None, False, False
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        if self.writes:
            self._take_folder()
        path = self.backup_dir / "state.npz"
        made_for = training_state.made_for(model, goes_on=path.exists())
        self._checkpoint = Checkpoint(path, made_for)
        arrays = self._checkpoint.load()
        self._rate = training_state.learning_rate(model)
        if arrays is not None:
            state = json.loads(arrays.pop("state").tobytes())
            self._backup = state, arrays
            self._compare_rate(state["learning_rate"])
            training_state.put_back(model, arrays)
            session.repeat_looks(state["looks"])
            session.follow(state.get("recipe"))

    def after_fit(self, session: Session) -> None:
        """Let go of the folder, also after an error."""
        if self._stack is not None:
            self._stack.close()
        self._callbacks = self._session = self._stack = self._backup = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Tell Keras the epoch to go on with."""
        super().on_train_begin(logs)
        if self._session is None:
            raise ValueError("BackupAndRestore works inside of `DeltaModel.fit` alone.")
        if self._backup is None:
            return
        state, epochs = self._backup[0], self.params["epochs"]
        done = state["epoch"]
        if state["stopped"] or done >= epochs:
            self._session.go_on(max(epochs, 1))
            self.model.stop_training = True
            message = f"The training ended after epoch {done}; nothing is left to do."
            if done > epochs and not state["stopped"]:
                self._keep = True
                warn(
                    f"`epochs={epochs}`, but the backup in '{self.backup_dir}' is of "
                    f"epoch {done} already. Nothing is trained, and the backup stays. "
                    "Pass more `epochs` to go on, or another `backup_dir` for a "
                    "training of its own."
                )
        else:
            self._session.go_on(done)
            message = f"Going on with epoch {done + 1} of {epochs}."
        if self.params.get("verbose"):
            print_msg(f"{message} (Backup: '{self.backup_dir}'.)")

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Put everything back at the first epoch, back it up at the others."""
        if not self._begun and self._put_back():
            self._tell_who_forgets()
        else:
            self._save(epoch)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Note how far the training has come."""
        self._ended = epoch + 1

    def on_train_end(self, logs: Logs = None) -> None:
        """Delete the backup, or write the last one; after Ctrl-C keep it."""
        interrupted = self._session.interrupted
        if not self._begun:
            self._put_back()  # there was no epoch to train
        elif not interrupted and not self.delete_checkpoint:
            self._save(self._ended, stopped=self.model.stop_training)
        if not interrupted:
            training_state.end(self.model)
            if self.delete_checkpoint and self.writes and not self._keep:
                self._checkpoint.path.unlink(missing_ok=True)

    # --- the state -----------------------------------------------------------------

    def _others(self):
        """Dict name -> callback, of those that may remember something."""
        callbacks = [c for c in self._callbacks if c is not self]
        return callback_states.named([*callbacks, self.model.history])

    def _save(self, epoch, stopped=False):
        if self.writes:
            self._checkpoint.save(lambda: self._state(epoch, stopped), now=True)

    def _state(self, epoch, stopped):
        arrays = training_state.arrays(self.model)
        # `EarlyStopping.best_weights` has the source's as well.
        store = ArrayStore(arrays, lambda: training_state.source_arrays(self.model))
        states = {}
        for name, callback in self._others().items():
            try:
                if state := callback_states.state_of(callback):
                    states[name] = encode(state, store)
            except TypeError as error:
                warn(
                    f"The backup does not hold what the callback {name.split()[0]} "
                    f"remembers: {error}. It would begin again."
                )
        attention = [
            m.computed_attention for m in with_attention(self.model.regularizer)
        ]
        state = {
            "epoch": epoch,
            "stopped": bool(stopped),
            "looks": list(self._session.looks),
            "learning_rate": self._rate,
            "recipe": self.model.recipe and self.model.recipe.get_config(),
            "callbacks": states,
            "attention": [a and encode(a.get_config(), store) for a in attention],
        }
        text = json.dumps(state).encode()
        return {"state": np.frombuffer(text, np.uint8), **arrays, **store.added}

    def _put_back(self):
        """At the first epoch, when all have begun; False for a new training."""
        self._begun = True
        if self._backup is None:
            return False
        (state, arrays), self._backup = self._backup, None
        training_state.put_back(self.model, arrays)
        arrays = {**arrays, **training_state.source_arrays(self.model)}
        for name, callback in self._others().items():
            if name in state["callbacks"]:
                code = state["callbacks"][name]
                callback_states.put_back(callback, decode(code, arrays))
        members = with_attention(self.model.regularizer)
        for member, code in zip(members, state["attention"], strict=True):
            config = decode(code, arrays)
            member.computed_attention = config and ChannelAttention.from_config(config)
        return True

    # --- what is told --------------------------------------------------------------

    def _compare_rate(self, before):
        """Note the rate that the training began with; warn if this one is another."""
        if before is None or self._rate is None:
            return
        # In a process that goes on, callbacks may have changed it.
        fresh = int(self.model.optimizer.iterations.numpy()) == 0
        if fresh and not math.isclose(before, self._rate, rel_tol=1e-6):
            warn(
                f"The learning rate is {self._rate:g} now and was {before:g} when the "
                "training began that the backup is of. It goes on with the rate of the "
                "backup. Pass another `backup_dir` for a training of its own."
            )
        self._rate = before

    def _tell_who_forgets(self):
        if names := callback_states.forgetful(self._others().values()):
            warn(
                f"The training goes on, but what {', '.join(sorted(set(names)))} "
                "remembered of it is not in the backup: these callbacks begin again. "
                "Give a callback `get_state()`, which returns a dict, and "
                "`set_state(state)`; then it is kept."
            )

    # --- the folder ----------------------------------------------------------------

    def _take_folder(self):
        """Make the folder, see that a backup fits, and keep other processes out."""
        size = training_state.size(self.model)
        _disk.check_writable("backup_dir", self.backup_dir, size)
        lock = self.backup_dir / "lock"
        what = f"The folder '{self.backup_dir}'"
        remedy = (
            "Two trainings cannot back up to one folder at once: pass another "
            "`backup_dir`, or wait until that process has ended."
        )
        if self.delete_checkpoint:
            self._stack.callback(_remove_empty, self.backup_dir)
        self._stack.enter_context(_disk.occupy(lock, what, remedy))
        self._stack.callback(lock.unlink, missing_ok=True)


def _remove_empty(path):
    with contextlib.suppress(OSError):
        path.rmdir()
