"""`Callback`: what the callbacks of this package have in common."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_delta._training.hooks import SessionHooks
from keras_delta._training.session import Session
from keras_delta._types import Logs
from keras_delta.model import DeltaModel


class Callback(SessionHooks, keras.callbacks.Callback):
    """A Keras callback that works on a `DeltaModel`; the base of those here.

    A subclass may define, besides Keras's hooks,

    - `check(model)`, which refuses what it cannot work on before anything else
      happens; call `super().check(model)` first;
    - `remembers`, the names of attributes that `BackupAndRestore` keeps, or
      `get_state()` and `set_state(state)` for what takes more than that;
    - `arrange(callbacks)`, `before_fit(session)` and `after_fit(session)`, around
      everything else that `fit` does; see `SessionHooks`.

    It can be copied and pickled, as Keras Tuner does; the model stays behind.
    """

    left_behind: tuple[str, ...] = ("_model", "params")
    """Attributes that copies and pickles have as None."""

    remembers: tuple[str, ...] = ()
    """Attributes that a training that was killed and goes on has again."""

    def __getstate__(self):
        return {**self.__dict__, **dict.fromkeys(self.left_behind)}

    @property
    def writes(self) -> bool:
        """Whether this process writes files: of several workers, the first alone."""
        return self.model.hosts.is_first

    def check(self, model: keras.Model) -> None:
        """Refuse a model that the callback cannot work on.

        Raises:
            TypeError: for a model that is no `DeltaModel`.
        """
        if not isinstance(model, DeltaModel):
            raise TypeError(
                f"{type(self).__name__} works on a DeltaModel. Received: a "
                f"{type(model).__name__}. Train with "
                "`keras_delta.DeltaModel(target, source=source).fit(...)`."
            )

    def before_fit(self, session: Session) -> None:
        """Refuse early, before the regularizer looks at the data."""
        self.check(session.model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Refuse, where training began in another way than by `DeltaModel.fit`."""
        self.check(self.model)

    def get_state(self) -> dict[str, Any]:
        """What a backup is to keep.

        Returns:
            Dict of None, booleans, numbers, strings, NumPy arrays, and lists, tuples
            and dicts of these.
        """
        return {name: getattr(self, name) for name in self.remembers}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Put it back, after `on_train_begin` and before the first epoch."""
        for name, value in state.items():
            setattr(self, name, value)
