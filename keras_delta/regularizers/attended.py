"""The name that was a mix-in of regularizers with attention."""


class _HasAttention(type):
    def __instancecheck__(cls, regularizer):
        return hasattr(regularizer, "attention_weights")


class Attended(metaclass=_HasAttention):
    """Use `regularizers.with_attention`."""
