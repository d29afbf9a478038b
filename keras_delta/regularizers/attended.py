"""Regularizers that weight channels by attention: where the weights come from."""

import os

import keras
import numpy as np
from keras import ops

from keras_delta._errors import invalid
from keras_delta._inputs.samples import check_count
from keras_delta.attention import ChannelAttention, normalize
from keras_delta.regularizers.base import array

FORMS = '"auto", "uniform", a ChannelAttention, a dict tap -> weights, or a path'


class Attended:
    """Mix-in for a `Regularizer`: the argument `attention` and its variables.

    Args:
        attention: `"auto"`, `"uniform"`, a `ChannelAttention`, a dict tap -> `(C,)`
            weights, or the path of a saved `ChannelAttention`.
        attention_samples: how many training samples `"auto"` looks at; None: all.
        temperature: of the softmax that makes weights of the scores of `"auto"`.
        **kwargs: the arguments of the class mixed with.
    """

    def __init__(
        self, attention="auto", attention_samples=256, temperature=5.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.attention = _attention(attention)
        check_count("attention_samples", attention_samples)
        self.attention_samples = attention_samples
        normalize.weights([0.0, 1.0], temperature=temperature)  # fail early
        self.temperature = float(temperature)
        self.computed_attention = None
        self._attention_variables = {}

    def bind(self, pairing, taps):
        """See `Regularizer.bind`; makes a variable for the weights of each tap."""
        given = isinstance(self.attention, ChannelAttention)
        if given:
            self.attention.check_taps({tap: shape[-1] for tap, shape in taps.items()})
        super().bind(pairing, taps)
        for i, (tap, shape) in enumerate(taps.items()):
            initial = np.zeros(shape[-1], "float32")
            if given:
                initial += self.attention.weights[tap]
            elif self.attention == "uniform":
                initial += 1 / shape[-1]
            variable = self.add_weight(
                name=f"attention_{i}",
                shape=initial.shape,
                initializer="zeros",
                trainable=False,
            )
            variable.assign(initial)
            self._attention_variables[tap] = variable

    @property
    def ready(self):
        """Whether the attention is known, and what the other base asks for."""
        return super().ready and self._attention_known

    @property
    def _attention_known(self):
        variables = self._attention_variables.values()
        return all(array(v).any() for v in variables)

    def prepare(self, model, samples, verbose=True):
        """Compute the attention from training data where it is `"auto"`."""
        super().prepare(model, samples, verbose)
        if self._attention_known:
            return
        self.computed_attention = ChannelAttention.compute(
            model,
            samples(self.attention_samples),
            temperature=self.temperature,
            train_head="auto",
            progress=verbose,
        )
        for tap, weights in self.computed_attention.weights.items():
            self._attention_variables[tap].assign(weights)

    def set_attention_weights(self, attention):
        """Use other weights from now on, also while training.

        The weights are variables: nothing is traced again, and they are saved with
        the model.

        Args:
            attention: a `ChannelAttention` with every tap of the model.

        Raises:
            ValueError: if no model uses the regularizer yet, or the attention was
                made for other taps.
        """
        if not self._attention_variables:
            raise ValueError(
                "No model uses this regularizer yet. Pass the weights as "
                "`attention=` when making it, or give it to a DeltaModel first."
            )
        variables = self._attention_variables
        attention.check_taps({tap: v.shape[-1] for tap, v in variables.items()})
        for tap, variable in variables.items():
            variable.assign(attention.weights[tap])
        self.computed_attention = attention

    def attention_weights(self):
        """Dict tap -> `(C,)` weights in use; None before `fit` has computed them."""
        if not self._attention_variables or not self._attention_known:
            return None
        return {t: array(v) for t, v in self._attention_variables.items()}

    def tap_weights(self, tap, channels):
        """Weights of one tap, `(C,)`, also before a model uses the regularizer."""
        if tap in self._attention_variables:
            return ops.convert_to_tensor(self._attention_variables[tap])
        if self.attention == "auto":
            raise ValueError(
                "`attention='auto'` is computed by `fit` from the training data and "
                "is not known yet. Pass `attention='uniform'` or a ChannelAttention "
                "to use the distance by itself."
            )
        if self.attention == "uniform":
            return ops.full((channels,), 1.0 / channels)
        self.attention.check_taps({tap: channels})
        return ops.convert_to_tensor(self.attention.weights[tap])

    def get_config(self):
        """See `Regularizer.get_config`."""
        attention = self.attention
        if isinstance(attention, ChannelAttention):
            attention = keras.saving.serialize_keras_object(attention)
        return {
            **super().get_config(),
            "attention": attention,
            "attention_samples": self.attention_samples,
            "temperature": self.temperature,
        }


def _attention(attention):
    if isinstance(attention, ChannelAttention):
        return attention
    if isinstance(attention, str) and attention in ("auto", "uniform"):
        return attention
    if isinstance(attention, dict) and "class_name" in attention:
        return keras.saving.deserialize_keras_object(attention)
    if isinstance(attention, dict):
        return ChannelAttention.from_weights(attention)
    if isinstance(attention, (str, os.PathLike)):
        if not os.path.exists(attention):
            remedy = "No file of that name exists."
            raise ValueError(invalid("attention", FORMS, attention, remedy))
        return ChannelAttention.load(attention)
    raise TypeError(invalid("attention", FORMS, attention))
