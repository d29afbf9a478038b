"""A layer's weights, whether Keras's LoRA has added some to them or not."""

import keras

from keras_delta import _compat

BASES = ("kernel", "embeddings")  # what LoRA adds a product of two matrices to


def own_weights(layer):
    """The layer's weights without those of LoRA."""
    return [v for v in layer.weights if not v.name.startswith("lora_")]


def values(layer):
    """`own_weights` as the layer computes with them: a base with LoRA's product.

    Where there is no LoRA these are the variables themselves. A product is a tensor,
    through which gradients reach LoRA's matrices.
    """
    merged = _merged(layer)
    return [merged.get(id(v), v) for v in own_weights(layer)]


def arrays(layer):
    """`values` as NumPy arrays."""
    return [getattr(v, "value", v).numpy() for v in values(layer)]


def trained_values(layer):
    """Positions in `own_weights` of what training moves, by itself or by LoRA."""
    trained, merged = {id(v) for v in layer.trainable_variables}, _merged(layer)
    by_lora = any(v.name.startswith("lora_") for v in layer.trainable_variables)
    return [
        i
        for i, v in enumerate(own_weights(layer))
        if id(v) in trained or (by_lora and id(v) in merged)
    ]


def draw_again(layer):
    """Draw LoRA's first matrix again where both are zero, as from a file.

    Keras saves the base with LoRA's product and zeros both matrices when it loads.
    Their gradients would be zero for ever; this way the second one's is not, and the
    layer computes the same.
    """
    for seed, part in enumerate(_compat.flatten_layers(layer)):
        if getattr(part, "lora_enabled", False):
            a, b = (v for v in part.weights if v.name.startswith("lora_"))
            if not _compat.array(a).any() and not _compat.array(b).any():
                # A seed: on several hosts all draw the same.
                a.assign(keras.initializers.HeUniform(seed)(a.shape, a.dtype))


def _merged(layer):
    """Dict from the id of a base to the tensor that LoRA makes of it."""
    merged = {}
    for part in _compat.flatten_layers(layer):
        if getattr(part, "lora_enabled", False):
            base = next(v for v in part.weights if v.name in BASES)
            merged[id(base)] = getattr(part, base.name)
    return merged
