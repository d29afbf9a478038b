"""Hooks that `DeltaModel.fit` calls on callbacks in addition to Keras's."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_delta._training.session import Session


class SessionHooks:
    """Hooks around a `fit`: before the regularizer looks at the data, and at the end.

    `DeltaModel.fit` calls, on each callback that extends this class:

    1. `arrange(callbacks)`, after the arguments and the first batch were checked,
    2. `before_fit(session)`, before the regularizer looks at the training data,
    3. Keras's hooks, `on_train_begin` to `on_train_end`,
    4. `after_fit(session)`, always, even after errors and interruptions.

    The session is the `keras_delta._training.session.Session` of this `fit`.
    Callbacks may use

    - `session.model` and `session.data`: the `DeltaModel` and its `TrainingData`,
    - `session.interrupted`: whether Ctrl-C is ending this training,
    - `session.looks`: list of the numbers of samples requested each time that the
      training data were read before training, and `session.data_begin`, the epoch at
      which data that count theirs began; `session.repeat_looks(looks, data_begin)` (in
      `before_fit`) repeats these reads, so that shuffled data come in the order of
      the earlier training,
    - `session.failed`: in `after_fit`, whether an error has ended the training,
    - `session.go_on(epoch)` (in `on_train_begin`): sets the first epoch to train,
      counted from 0, in place of `initial_epoch`.
    """

    def arrange(self, callbacks: list[Any]) -> None:
        """Change the order of a training's callbacks, a list, in place."""

    def before_fit(self, session: "Session") -> None:
        """Raise errors early, or restore the state of an earlier training."""

    def after_fit(self, session: "Session") -> None:
        """Release resources held during training."""
