"""`Callback`: the base class of the callbacks in this package."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_delta._training.hooks import SessionHooks
from keras_delta._training.session import Session
from keras_delta._types import Logs
from keras_delta.model import DeltaModel


class Callback(SessionHooks, keras.callbacks.Callback):
    """Base class of the Keras callbacks in this package, which need a `DeltaModel`.

    In addition to Keras's hooks, a subclass may define

    - `check(model)`, which rejects unsuitable models before anything else happens;
      call `super().check(model)` first;
    - `remembers`, the names of attributes that `BackupAndRestore` saves, or
      `get_state()` and `set_state(state)` for more complex state;
    - `arrange(callbacks)`, `before_fit(session)` and `after_fit(session)`, which run
      before and after everything else that `fit` does; see `SessionHooks`.

    It can be copied and pickled, as Keras Tuner does, but without the model.
    """

    left_behind: tuple[str, ...] = ("_model", "params")
    """Attributes that are None in copies and pickles."""

    remembers: tuple[str, ...] = ()
    """Attributes that are restored when an interrupted training resumes."""

    def __getstate__(self):
        return {**self.__dict__, **dict.fromkeys(self.left_behind)}

    @property
    def writes(self) -> bool:
        """Whether this process writes files; with several workers, only the first."""
        return self.model.hosts.is_first

    def check(self, model: keras.Model) -> None:
        """Reject a model that the callback does not support.

        Raises:
            TypeError: if the model is not a `DeltaModel`.
        """
        if not isinstance(model, DeltaModel):
            raise TypeError(
                f"{type(self).__name__} requires a DeltaModel. Received: a "
                f"{type(model).__name__}. Train with "
                "`keras_delta.DeltaModel(target, source=source).fit(...)`."
            )

    def before_fit(self, session: Session) -> None:
        """Check the model early, before the regularizer reads the data."""
        self.check(session.model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Check the model, in case `DeltaModel.fit` did not start the training."""
        self.check(self.model)

    def get_state(self) -> dict[str, Any]:
        """Return the state to back up.

        Returns:
            Dict of None, booleans, numbers, strings, NumPy arrays, and lists, tuples
            and dicts of these.
        """
        return {name: getattr(self, name) for name in self.remembers}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state, after `on_train_begin` and before the first epoch."""
        for name, value in state.items():
            setattr(self, name, value)
