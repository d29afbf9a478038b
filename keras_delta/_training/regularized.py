"""The regularizer of a `DeltaModel`, and the variables to train with it."""

import keras

from keras_delta import regularizers
from keras_delta._types import RegularizerLike


class Regularized:
    """Mix-in for `DeltaModel`: one regularizer at a time."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # A list: Keras keeps tracking a layer whose attribute is deleted.
        self._regularizers = []

    @property
    def regularizer(self) -> regularizers.Regularizer | None:
        """The regularizer in use, or None."""
        return self._regularizers[0] if self._regularizers else None

    @property
    def trains_features(self) -> bool:
        """Whether more than the target's new layers is trained."""
        return self.regularizer is None or self.regularizer.trains_features

    @property
    def trainable(self) -> bool:
        """Whether the target trains; the source never does."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.Model.trainable.fset(self, value)
        self.source.trainable = False

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """See `keras.Model`; without those that the regularizer's optimizer trains."""
        return self._without_source(super().trainable_variables)

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The same; Keras writes an optimizer's averages into these."""
        return self._without_source(super().trainable_weights)

    @property
    def variables_to_train(self) -> list[keras.Variable]:
        """The variables that a step updates."""
        if self.trains_features:
            return self.trainable_variables
        own = self._without_source(self.regularizer.trainable_variables)
        return self.pairing.new_variables + own

    def _without_source(self, variables):
        adapting = self.regularizer and self.regularizer.find_adapting()
        apart = {id(v) for v in adapting.source_variables} if adapting else ()
        return [v for v in variables if id(v) not in apart]

    def set_regularizer(self, regularizer: RegularizerLike) -> None:
        """Use a regularizer from now on; `"none"` or None for none.

        A regularizer that another model uses is copied, without the values computed
        for that model. A name or config of the current one keeps it and sets the
        strengths.
        """
        new = regularizers.get(regularizer)
        if new is not regularizer and regularizers.alike(new, self.regularizer):
            if new is not None:
                self.regularizer.take_strengths(new)
            return
        if new is not None:
            new = new.for_model(self.pairing)
        if new is self.regularizer:
            return
        self.networks.serve(new)
        if new is not None and not new.bound:
            try:
                with self.distribute_strategy.scope():
                    new.bind(self.networks)
            except Exception:  # of any kind: the model is left unchanged
                self.networks.serve(self.regularizer)
                raise
        self._regularizers.clear()  # Keras would keep tracking an attribute's old value
        self._regularizers.extend([] if new is None else [new])
        self.train_function = None
