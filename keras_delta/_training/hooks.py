"""What `DeltaModel.fit` tells callbacks besides Keras's own hooks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_delta._training.session import Session


class SessionHooks:
    """Hooks around a `fit`: before the regularizer looks at the data, and at the end.

    `DeltaModel.fit` calls, on each callback that extends this class:

    1. `arrange(callbacks)`, once the arguments and the first batch were checked,
    2. `before_fit(session)`, before the regularizer looks at the training data,
    3. Keras's hooks, `on_train_begin` to `on_train_end`,
    4. `after_fit(session)`, always, after errors and interruptions as well.

    The session is the `keras_delta._training.session.Session` of this `fit`.
    Callbacks may use

    - `session.model` and `session.data`: the `DeltaModel` and its `TrainingData`,
    - `session.interrupted`: whether Ctrl-C is ending this training,
    - `session.looks`: list of how many samples were asked for, each time that the
      training data were read before training; `session.repeat_looks(looks)` (in
      `before_fit`) reads them in the same way again, so that shuffled data come in
      the order of the earlier training,
    - `session.go_on(epoch)` (in `on_train_begin`): the first epoch to train, from
      0, in place of `initial_epoch`.
    """

    def arrange(self, callbacks: list[Any]) -> None:
        """Change the order of a training's callbacks, a list, in place."""

    def before_fit(self, session: "Session") -> None:
        """Refuse early, or put back what an earlier training left."""

    def after_fit(self, session: "Session") -> None:
        """Let go of what was held during the training."""
