"""Keras callbacks that work on a `DeltaModel`."""

from keras_delta.callbacks.channel_attention_callback import (
    ChannelAttentionCallback as ChannelAttentionCallback,
)
