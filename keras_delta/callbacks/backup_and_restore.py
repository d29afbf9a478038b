"""`BackupAndRestore`: resumes a training that was killed."""

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
    """Backs up the training after each epoch, so that `fit` resumes from there.

    Like `keras.callbacks.BackupAndRestore`, but for a `DeltaModel`, and

    - the backup is a single file that is replaced atomically: whenever the process is
      killed, the file holds the state at the end of one epoch and nothing else;
    - it contains the complete state: weights, optimizer, random seeds of layers, the
      regularizer's computed values, `History`, and the state of other callbacks. The
      position in the data is restored;
    - of the frozen source, it contains only a digest.

    So a training that was killed and restarted in a new process with the same script
    ends bit for bit like an uninterrupted one, provided that its data and operations
    are reproducible: call `keras.utils.set_random_seed` first.

    It moves itself to the front of the callbacks. For the others, it saves the result
    of `get_state()` and passes it to `set_state(state)`; for Keras's own, it saves
    their state, including the file of a `CSVLogger`. Any other callback starts afresh,
    with a warning when a training resumes.

    After Ctrl-C the backup is kept. A training that has ended, by itself or through
    `EarlyStopping`, leaves nothing behind unless `delete_checkpoint=False`: running it
    again then trains no further, and more `epochs` continue from there.

    Only one process may use a folder at a time. With several workers, all of them read
    the backup and the first writes it: the folder must be visible to all of them.

    Args:
        backup_dir: a separate folder for the backup; created if necessary.
        save_freq: `"epoch"`; Keras's other choices raise an error. A state in mid-epoch
            would need the position in the data, which data sets do not provide.
        delete_checkpoint: whether to delete the backup when training has ended.

    Raises:
        TypeError, ValueError: if an argument is invalid or, at the start of `fit`, if
            the folder is not writable, the model is not a `DeltaModel`, or the backup
            is damaged or was made for another source, target, optimizer or
            regularizer.
        RuntimeError: at the start of `fit`, if another process uses the folder.
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
                "A backup in mid-epoch would need the position in the "
                "data, which data sets do not provide. For more frequent backups, make "
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
        self._keep, self._done, self._rate = False, False, None
        self._begun, self._ended = False, 0

    def arrange(self, callbacks: list[keras.callbacks.Callback]) -> None:
        """Move to the front.

        The state saved for the others is then that between two epochs, before any of
        them has begun the next one.
        """
        callbacks.remove(self)
        callbacks.insert(0, self)
        self._callbacks = callbacks

    def before_fit(self, session: Session) -> None:
        """Lock the folder, and restore variables before the data are read.

        Raises:
            TypeError, ValueError, RuntimeError: see the class.
        """
        super().before_fit(session)
        model = session.model
        self.set_model(model)
        self._session, self._stack = session, contextlib.ExitStack()
        self._backup, self._keep, self._begun = None, False, False
        self._done = False
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
            session.repeat_looks(state["looks"], state.get("data_begin"))
            session.follow(state.get("recipe"))

    def after_fit(self, session: Session) -> None:
        """Delete the backup of what has ended well, and release the folder."""
        stack = self._stack or contextlib.ExitStack()
        self._callbacks = self._session = self._stack = self._backup = None
        with stack:
            if self._done and not session.failed:
                self._checkpoint.path.unlink(missing_ok=True)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Tell Keras the epoch to resume from."""
        super().on_train_begin(logs)
        if self._session is None:
            raise ValueError("BackupAndRestore only works within `DeltaModel.fit`.")
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
                    f"`epochs={epochs}`, but the backup in '{self.backup_dir}' is "
                    f"already at epoch {done}. Nothing is trained; the backup is kept. "
                    "Pass more `epochs` to continue, or another `backup_dir` for a "
                    "separate training."
                )
        else:
            self._session.go_on(done)
            message = f"Resuming with epoch {done + 1} of {epochs}."
        if self.params.get("verbose"):
            print_msg(f"{message} (Backup: '{self.backup_dir}'.)")

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Restore everything at the first epoch; back it up at the others."""
        if not self._begun and self._put_back():
            self._tell_who_forgets()
        else:
            self._save(epoch)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Record how far training has progressed."""
        self._ended = epoch + 1

    def on_train_end(self, logs: Logs = None) -> None:
        """Write the last backup, or let it be deleted; after Ctrl-C keep it.

        Not deleted here: other callbacks may have a report to write, and fail.
        """
        interrupted = self._session.interrupted
        if not self._begun:
            self._put_back()  # no epoch was left to train
        elif not interrupted and not self.delete_checkpoint:
            self._save(self._ended, stopped=self.model.stop_training)
        if not interrupted:
            training_state.end(self.model)
            self._done = self.delete_checkpoint and self.writes and not self._keep

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
                    f"The backup does not contain the state of the callback "
                    f"{name.split()[0]}: {error}. It would start afresh."
                )
        attention = [
            m.computed_attention for m in with_attention(self.model.regularizer)
        ]
        state = {
            "epoch": epoch,
            "stopped": bool(stopped),
            "looks": list(self._session.looks),
            "data_begin": self._session.data_begin,
            "learning_rate": self._rate,
            "recipe": self.model.recipe and self.model.recipe.get_config(),
            "callbacks": states,
            "attention": [a and encode(a.get_config(), store) for a in attention],
        }
        text = json.dumps(state).encode()
        return {"state": np.frombuffer(text, np.uint8), **arrays, **store.added}

    def _put_back(self):
        """Restore at the first epoch, after all have begun; False if new."""
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
        """Record the rate that the training began with; warn if it has changed."""
        if before is None or self._rate is None:
            return
        # If the process is the same, callbacks may have changed it.
        fresh = int(self.model.optimizer.iterations.numpy()) == 0
        if fresh and not math.isclose(before, self._rate, rel_tol=1e-6):
            warn(
                f"The learning rate is now {self._rate:g}, but was {before:g} when the "
                "backed-up training began. Training continues with the rate from the "
                "backup. Pass another `backup_dir` for a separate training."
            )
        self._rate = before

    def _tell_who_forgets(self):
        if names := callback_states.forgetful(self._others().values()):
            warn(
                "The training resumes, but the backup does not contain the state of "
                f"{', '.join(sorted(set(names)))}: these callbacks start afresh. "
                "To save a callback's state, give it `get_state()`, which returns a "
                "dict, and `set_state(state)`."
            )

    # --- the folder ----------------------------------------------------------------

    def _take_folder(self):
        """Create the folder, check for space, and keep other processes out."""
        size = training_state.size(self.model)
        _disk.check_writable("backup_dir", self.backup_dir, size)
        lock = self.backup_dir / "lock"
        what = f"The folder '{self.backup_dir}'"
        remedy = (
            "Two trainings cannot back up to the same folder at once: pass another "
            "`backup_dir`, or wait until that process has ended."
        )
        if self.delete_checkpoint:
            self._stack.callback(_remove_empty, self.backup_dir)
        self._stack.enter_context(_disk.occupy(lock, what, remedy))
        self._stack.callback(lock.unlink, missing_ok=True)


def _remove_empty(path):
    with contextlib.suppress(OSError):
        path.rmdir()
