"""The channel weights of regularizers that use attention."""

import os

import keras
import numpy as np
from keras import ops

from keras_delta import _arguments
from keras_delta._compat import array
from keras_delta._errors import invalid
from keras_delta.attention import ChannelAttention

FORMS = '"auto", "uniform", a ChannelAttention, a dict tap -> weights, or a path'


class AttentionWeights:
    """The part of a regularizer that holds the weights of each tap's channels.

    The regularizer keeps it as `attention_weights` and calls its `bind`, `ready`,
    `prepare` and `get_config` in its methods. The variables are the regularizer's, so
    they are saved with it.

    Args:
        attention, attention_samples, temperature: see `Delta`.

    Attributes:
        computed_attention: the `ChannelAttention` computed or set last, or None.
    """

    def __init__(self, attention="auto", attention_samples=256, temperature=5.0):
        self.attention = _attention(attention)
        self.attention_samples = _arguments.integer(
            "attention_samples", attention_samples, optional=True
        )
        self.temperature = _arguments.number("temperature", temperature, above=0)
        self.computed_attention = None
        self._by_tap = {}

    def check(self, taps):
        """Refuse an attention that was made for other taps; see `Regularizer.bind`."""
        if isinstance(self.attention, ChannelAttention):
            self.attention.check_taps({tap: shape[-1] for tap, shape in taps.items()})

    def bind(self, taps, add_weight):
        """Make a variable for the weights of each tap, with the given `add_weight`."""
        for i, (tap, shape) in enumerate(taps.items()):
            initial = np.zeros(shape[-1], "float32")
            if isinstance(self.attention, ChannelAttention):
                initial += self.attention.weights[tap]
            elif self.attention == "uniform":
                initial += 1 / shape[-1]
            self._by_tap[tap] = add_weight(
                name=f"attention_{i}",
                shape=initial.shape,
                initializer="zeros",
                trainable=False,
            )
            self._by_tap[tap].assign(initial)

    @property
    def ready(self):
        """Whether the weights are known."""
        return all(array(v).any() for v in self._by_tap.values())

    def prepare(self, model, samples, verbose=True):
        """Compute the attention if it is `"auto"`; see `Regularizer.prepare`."""
        if not self.ready:
            attention = ChannelAttention.compute(
                model,
                samples.batches(self.attention_samples),
                temperature=self.temperature,
                train_head="auto",
                progress=verbose,
            )
            self.set_attention_weights(attention)

    def set_attention_weights(self, attention):
        """Use other weights from now on, even during training.

        The weights are variables: nothing is retraced, and they are saved with
        the model.

        Args:
            attention: a `ChannelAttention` with every tap of the model.

        Raises:
            ValueError: if no model uses the regularizer yet, or the attention was
                made for other taps.
        """
        if not self._by_tap:
            raise ValueError(
                "No model uses this regularizer yet. Pass the weights as "
                "`attention=` when creating it, or pass it to a DeltaModel first."
            )
        channels = {tap: v.shape[-1] for tap, v in self._by_tap.items()}
        attention.check_taps(channels)
        for tap, variable in self._by_tap.items():
            variable.assign(attention.weights[tap])
        self.computed_attention = attention

    def take_scores(self, attention):
        """Use the weights of an attention's scores, at the temperature set here."""
        if attention.temperature != self.temperature:
            scored = attention.scores, attention.normalization, self.temperature
            attention = ChannelAttention.from_scores(*scored, attention.samples)
        self.set_attention_weights(attention)

    def __call__(self):
        """Dict tap -> `(C,)` weights in use; None before `fit` has computed them."""
        if not self._by_tap or not self.ready:
            return None
        return {tap: array(v) for tap, v in self._by_tap.items()}

    def of_tap(self, tap, channels):
        """Weights of one tap, `(C,)`, even before a model uses the regularizer."""
        if tap in self._by_tap:
            return ops.convert_to_tensor(self._by_tap[tap])
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
        """The arguments, as entries of the regularizer's config."""
        attention = self.attention
        if isinstance(attention, ChannelAttention):
            attention = keras.saving.serialize_keras_object(attention)
        return {
            "attention": attention,
            "attention_samples": self.attention_samples,
            "temperature": self.temperature,
        }


def of_part(name):
    """A property that forwards to the regularizer's `attention_weights`."""
    return property(
        lambda self: getattr(self.attention_weights, name),
        lambda self, value: setattr(self.attention_weights, name, value),
        doc=f"See `AttentionWeights.{name}`.",
    )


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
