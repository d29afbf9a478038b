"""Channel attention: which channels of the taps matter for the task."""

from keras_delta.attention.channel_attention import ChannelAttention as ChannelAttention
