"""`BackupAndRestore`: a training that is killed goes on where it was."""

import contextlib
import json
import math
import os
import socket
import weakref
from collections import Counter

import keras
import numpy as np
from keras.src.random import seed_generator  # no public way to the global one
from keras.src.utils.io_utils import print_msg

from keras_delta import regularizers
from keras_delta._checkpoint import Checkpoint
from keras_delta._errors import invalid, warn
from keras_delta._network import fingerprint
from keras_delta.callbacks import plain_values
from keras_delta.callbacks.base import DeltaCallback, folder

try:
    import fcntl
except ImportError:  # Windows: there, two runs in one folder go unnoticed
    fcntl = None

FORMAT = "keras_delta.backup/1"
LONGEST = 60  # characters of a setting that are kept as they are


class BackupAndRestore(DeltaCallback):
    """Backs the training up after each epoch; run again, `fit` goes on from there.

    As `keras.callbacks.BackupAndRestore`, for a `DeltaModel`, and

    - the backup is one file that is replaced as a whole or not at all: whenever the
      process is killed, the file holds the end of one epoch and nothing else;
    - all of the state is in it: weights, optimizer, random seeds of layers, what the
      regularizer has computed (channel attention is not computed again), `History`,
      and what other callbacks remember, such as the best value and the patience
      that is left of `EarlyStopping`. The data are put where they were;
    - of the frozen source it holds a digest only.

    So a training that was killed and started again, in a new process by the same
    script, ends with the same bits as one that was not, as far as its data and
    operations are reproducible at all: call `keras.utils.set_random_seed` first.
    Only the epoch that was under way is repeated. What cannot be reproduced:
    `shuffle` without any seed, random numbers drawn by several threads, operations
    that are not deterministic (`tf.config.experimental.enable_op_determinism`).

    It takes the first place among the callbacks. Of the others it keeps attributes
    that changed since training began and consist of numbers, strings, None, lists,
    dicts and NumPy arrays; everything else is as in a new callback. The file of a
    `CSVLogger` keeps its rows.

    After Ctrl-C the backup stays, and the next run repeats the epoch that was
    interrupted. A training that has come to its end, by itself or by
    `EarlyStopping`, leaves nothing behind, unless `delete_checkpoint=False`: then
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

    Example:
        ```python
        keras.utils.set_random_seed(0)
        ...
        backup = kd.callbacks.BackupAndRestore("runs/flowers/backup")
        model.fit(train, epochs=30, regularizer="delta", callbacks=[backup])
        ```
    """

    left_behind = (
        *DeltaCallback.left_behind,
        "_callbacks",
        "_checkpoint",
        "_found",
        "_fresh",
        "_overwriting",
    )

    def __init__(self, backup_dir, save_freq="epoch", delete_checkpoint=True):
        super().__init__()
        if not str(backup_dir) or "://" in str(backup_dir):
            raise ValueError(invalid("backup_dir", "a local folder", backup_dir))
        self.backup_dir = folder("backup_dir", backup_dir)
        if save_freq != "epoch":
            remedy = (
                "A backup in the midst of an epoch would need the position in the "
                "data, which data sets cannot tell. For more frequent backups make "
                "the epochs shorter: `fit(train.repeat(), steps_per_epoch=100)`."
            )
            raise ValueError(invalid("save_freq", '"epoch"', save_freq, remedy))
        if not isinstance(delete_checkpoint, bool):
            raise TypeError(
                invalid("delete_checkpoint", "True or False", delete_checkpoint)
            )
        self.save_freq, self.delete_checkpoint = save_freq, delete_checkpoint
        self._rate, self._keep = None, False
        self._callbacks = self._checkpoint = self._found = self._fresh = None
        self._overwriting, self._ended = [], 0

    def arrange(self, callbacks):
        """Take the first place; `DeltaModel.fit` calls this with its callbacks.

        What is kept of the others is then their state between two epochs, before
        any of them has begun the next one.
        """
        callbacks.remove(self)
        callbacks.insert(0, self)
        self._callbacks = callbacks

    def before_fit(self, model):
        """Take the folder, and put variables back before the data are looked at.

        Raises:
            TypeError, ValueError, RuntimeError: see the class.
        """
        super().before_fit(model)
        self.set_model(model)
        self._fresh, self._overwriting = None, []
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        if self.writes:
            self._take_folder()
        self._checkpoint = _Backup(self.backup_dir / "state.npz", model)
        try:
            arrays = self._checkpoint.load()
        except ValueError:
            _unlock(self.backup_dir / "lock")
            raise
        self._found, self._keep = None, False
        self._rate = _learning_rate(model)
        if arrays is not None:
            self._found = json.loads(arrays.pop("state").tobytes()), arrays
            self._compare_rate(self._found[0].get("learning_rate"))
            self._put_variables()
            model.reads = list(self._found[0]["reads"])

    def on_train_begin(self, logs=None):
        """Tell Keras the epoch to go on with."""
        super().on_train_begin(logs)
        if self._callbacks is None:
            raise ValueError("BackupAndRestore works inside of `DeltaModel.fit` alone.")
        if self._found is None:
            return
        state, epochs = self._found[0], self.params["epochs"]
        done = state["epoch"]
        if state["stopped"] or done >= epochs:
            self.model._initial_epoch = max(epochs, 1)
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
            self.model._initial_epoch = done
            message = f"Going on with epoch {done + 1} of {epochs}."
        if self.params.get("verbose"):
            print_msg(f"{message} (Backup: '{self.backup_dir}'.)")
        for key, callback in self._others():
            size = state["log_sizes"].get(key)
            if size is not None and isinstance(callback, keras.callbacks.CSVLogger):
                self._keep_rows(callback, size)

    def on_epoch_begin(self, epoch, logs=None):
        """Put everything back at the first epoch, back it up at the others."""
        if self._fresh is not None or not self._begin():
            self._save(epoch)

    def on_epoch_end(self, epoch, logs=None):
        """Note how far the training has come."""
        self._ended = epoch + 1

    def on_train_end(self, logs=None):
        """Delete the backup, or write the last one; after Ctrl-C keep it."""
        if self._fresh is None:
            self._begin()  # there was no epoch to train
        elif not self.model.interrupted and not self.delete_checkpoint:
            self._save(self._ended, stopped=self.model.stop_training)
        if not self.model.interrupted:
            if self.model.regularizer is not None:
                _began_with.pop(self.model.regularizer, None)
            if self.delete_checkpoint and self.writes and not self._keep:
                self._checkpoint.path.unlink(missing_ok=True)
        self._leave_folder()

    def after_fit(self, model):
        """Let go of the folder, also after an error."""
        _unlock(self.backup_dir / "lock")

    def _begin(self):
        """See how the others begin, and put back what they were; False if new."""
        self._fresh = {k: plain_values.attributes(c)[0] for k, c in self._others()}
        for callback in self._overwriting:
            callback.append = False
        if self._found is None:
            return False
        self._put_variables()
        self._put_callbacks()
        self._found = None
        return True

    def _others(self):
        """Pairs (name, callback); the name is of its class, so that others may come."""
        count = Counter()
        for callback in (*self._callbacks, self.model.history):
            name = type(callback).__name__
            if callback is not self:
                yield f"{name} {count[name]}", callback
                count[name] += 1

    # --- the state -----------------------------------------------------------------

    def _save(self, epoch, stopped=False):
        if self.writes:
            self._checkpoint.save(lambda: self._state(epoch, stopped), now=True)

    def _state(self, epoch, stopped):
        arrays = {
            f"{part}/{i}": variable.value.numpy()
            for part, variables in _variables(self.model).items()
            for i, variable in enumerate(variables)
        }
        changed, used, log_sizes = {}, {}, {}
        for key, callback in self._others():
            codes, found = plain_values.attributes(callback)
            fresh = self._fresh.get(key, {})
            changed[key] = {
                name: code
                for name, code in codes.items()
                if name not in fresh or fresh[name] != code
            }
            used.update(found)
            if isinstance(callback, keras.callbacks.CSVLogger):
                with contextlib.suppress(OSError):
                    log_sizes[key] = os.path.getsize(callback.filename)
        # `EarlyStopping.best_weights` has the source's as well, which never change.
        names = {}
        if used:
            known = [*arrays.items(), *_source_arrays(self.model)]
            names = {fingerprint.digest(v): name for name, v in known}
        text = json.dumps(changed)
        for digest, array in used.items():
            if digest not in names and digest in text:
                names[digest] = f"callbacks/{digest}"
                arrays[f"callbacks/{digest}"] = array
        state = {
            "epoch": epoch,
            "stopped": bool(stopped),
            "reads": list(self.model.reads),
            "learning_rate": self._rate,
            "callbacks": changed,
            "arrays": {digest: names[digest] for digest in used if digest in names},
            "log_sizes": log_sizes,
            "attention": [
                plain_values.encoded(member.computed_attention, {})
                for member in _attended(self.model.regularizer)
            ],
        }
        text = json.dumps(state).encode()
        return {"state": np.frombuffer(text, np.uint8), **arrays}

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

    def _put_variables(self):
        arrays = self._found[1]
        if "global_seed/0" in arrays:
            seed_generator.global_seed_generator()  # makes it
        for part, variables in _variables(self.model).items():
            for i, variable in enumerate(variables):
                if (name := f"{part}/{i}") in arrays:
                    # What is no type of NumPy's, as bfloat16, comes back as bytes.
                    value = arrays[name].view(variable.value.numpy().dtype)
                    variable.assign(value)

    def _put_callbacks(self):
        state, arrays = self._found
        arrays = {**arrays, **dict(_source_arrays(self.model))}
        arrays = {digest: arrays[name] for digest, name in state["arrays"].items()}
        for key, callback in self._others():
            for name, code in state["callbacks"].get(key, {}).items():
                setattr(callback, name, plain_values.decoded(code, arrays))
        members = _attended(self.model.regularizer)
        for member, code in zip(members, state["attention"], strict=True):
            member.computed_attention = plain_values.decoded(code, {})

    def _keep_rows(self, callback, size):
        """The rows of a CSV file up to the backup; it would be written anew."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(callback.filename) > size:
                os.truncate(callback.filename, size)
        if not callback.append:
            callback.append = True
            self._overwriting.append(callback)

    # --- the folder ----------------------------------------------------------------

    def _take_folder(self):
        """Make the folder and lock it for this process; see that it can be written."""
        try:
            self.backup_dir.mkdir(parents=True, exist_ok=True)
            _lock(self.backup_dir / "lock")
            _try_writing(self.backup_dir / "write_test", _bytes(self.model))
        except OSError as e:
            expected = "a folder that can be written"
            remedy = f"Make room, or pass another folder. Reason: {e}"
            shown = str(self.backup_dir)
            raise ValueError(invalid("backup_dir", expected, shown, remedy)) from e

    def _leave_folder(self):
        if not self.writes:
            return
        _unlock(self.backup_dir / "lock")
        if self.delete_checkpoint:
            with contextlib.suppress(OSError):
                self.backup_dir.rmdir()  # if there is nothing else in it


class _Backup(Checkpoint):
    """The checkpoint of a training.

    Args:
        path: of the file.
        model: the `DeltaModel` with its regularizer, before anything is put back.
    """

    def __init__(self, path, model):
        regularizer, optimizer = model.regularizer, model.optimizer
        settings = "none"
        if regularizer is not None:
            # In this process they may have moved on since, as a schedule does.
            if regularizer not in _began_with or not path.exists():
                _began_with[regularizer] = _settings(
                    regularizers.serialize(regularizer)
                )
            settings = _began_with[regularizer]
        made_for = {
            "backup": FORMAT,
            "source": model.source_fingerprint,
            "target": fingerprint.of_structure(model._target_graph),
            "target's weights": _of_variables(model.target.variables),
            "optimizer": f"{type(optimizer).__name__}, "
            f"{_of_variables(optimizer.variables, names=False)}",
            "regularizer": settings,
        }
        super().__init__(path, made_for)


def _learning_rate(model):
    """The optimizer's learning rate where it is a number; None for a schedule."""
    given = model.optimizer._learning_rate
    schedule = keras.optimizers.schedules.LearningRateSchedule
    return None if isinstance(given, schedule) else float(given.value.numpy())


def _variables(model):
    """Dict part -> list of variables, in an order that is the same in each process."""
    regularizer = model.regularizer
    parts = {
        "target": model.target.variables,
        "regularizer": [] if regularizer is None else regularizer.variables,
        "optimizer": model.optimizer.variables,
    }
    known = {id(v) for part in parts.values() for v in part}
    known.update(id(v) for v in model.source.variables)
    parts["rest"] = [v for v in model.variables if id(v) not in known]
    name = seed_generator.GLOBAL_SEED_GENERATOR
    generator = seed_generator.global_state.get_global_attribute(name)
    parts["global_seed"] = [] if generator is None else [generator.state]
    return parts


def _source_arrays(model):
    for i, variable in enumerate(model.source.variables):
        yield f"source/{i}", variable.value.numpy()


def _of_variables(variables, names=True):
    """What tells lists of variables apart; Keras numbers layers as a process goes."""
    found = [
        (v.path.split("/")[-1] if names else "", tuple(v.shape), v.dtype)
        for v in variables
    ]
    count = sum(int(np.prod(shape)) for _, shape, _ in found)
    return f"{len(found)} variables of {count} values, {_digest(repr(found))[:8]}"


def _bytes(model):
    """About as many as a backup takes."""
    parts = _variables(model).values()
    return 2**16 + sum(v.value.numpy().nbytes for variables in parts for v in variables)


def _attended(regularizer):
    """The regularizers that have computed attention, also inside of sums."""
    members = getattr(regularizer, "members", [regularizer])
    return [m for m in members if hasattr(m, "computed_attention")]


# Settings of a regularizer as its training began, until that ends.
_began_with = weakref.WeakKeyDictionary()


def _settings(config):
    """A config as a line of text, names apart, what is long as a digest."""
    if isinstance(config, dict) and "class_name" in config:
        inner = ", ".join(
            f"{k}={_settings(v)}" for k, v in config["config"].items() if k != "name"
        )
        return f"{config['class_name']}({inner})"
    if isinstance(config, list):
        return f"[{', '.join(map(_settings, config))}]"
    text = repr(config)
    return text if len(text) <= LONGEST else _digest(text)


def _digest(text):
    return fingerprint.digest(np.frombuffer(text.encode(), np.uint8))


_locks = {}  # path -> file


def _lock(path):
    """Lock a file for this process, until it ends or `_unlock`s.

    A training that ended with an error leaves its lock to the next one in the same
    process. The lock is the process's and not the open file's, so that a child
    that outlives it does not hold it.

    Raises:
        RuntimeError: where another process has it.
    """
    path = path.resolve()
    if fcntl is None or path in _locks:
        return
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            user = file.read().strip() or "another process"
            file.close()
            raise RuntimeError(
                f"The folder '{path.parent}' is in use by {user}. Two trainings cannot "
                "back up to one folder at once: pass another `backup_dir`, or wait "
                "until that process has ended."
            ) from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # the one who had it has deleted it just now
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _locks[path] = file


def _unlock(path):
    file = _locks.pop(path.resolve(), None)
    if file is not None:
        path.unlink(missing_ok=True)
        file.close()


def _try_writing(path, size):
    """Write and delete as much as a backup takes, so that a full disk shows now."""
    try:
        with open(path, "wb") as file:
            for start in range(0, size, 2**24):
                file.write(bytes(min(2**24, size - start)))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
