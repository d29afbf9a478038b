"""What `DeltaModel.fit` tells callbacks besides Keras's own hooks."""


class SessionHooks:
    """Hooks around a `fit`: before the data are looked at, and after everything.

    `DeltaModel.fit` calls, on each callback that extends this class:

    1. `arrange(callbacks)`, when nothing else has happened,
    2. `before_fit(session)`, before the regularizer looks at the training data,
    3. Keras's hooks, `on_train_begin` to `on_train_end`,
    4. `after_fit(session)`, always, after errors and interruptions as well.

    The session is the `keras_delta._training.session.Session` of this `fit`.
    Callbacks may use

    - `session.model` and `session.data`: the `DeltaModel` and its `TrainingData`,
    - `session.interrupted`: whether Ctrl-C is ending this training,
    - `session.looks`: list of the numbers of samples that were looked at so far,
      in a data set before training; `session.repeat_looks(numbers)` (in
      `before_fit`) looks again as an earlier training did, so that its order of the
      data comes back,
    - `session.go_on(epoch)` (in `on_train_begin`): the first epoch to train, from
      0, in place of `initial_epoch`.
    """

    def arrange(self, callbacks):
        """Change the order of a training's callbacks, a list, in place."""

    def before_fit(self, session):
        """Refuse early, or put back what an earlier training left."""

    def after_fit(self, session):
        """Let go of what was held during the training."""
