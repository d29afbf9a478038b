"""StochNorm: BatchNormalization that mixes batch and moving statistics at random."""

from typing import Any

import keras
from keras import ops

from keras_delta import _arguments
from keras_delta._types import Tensor


@keras.saving.register_keras_serializable("keras_delta")
class StochNorm(keras.layers.BatchNormalization):
    """BatchNormalization that draws at random which statistics each channel uses.

    In training, drawn again for each channel in each step,

        y = gamma [(1 - s) x_moving + s x_batch] + beta,    s ~ Bernoulli(probability)

    where `x_batch` is `x` normalised by the statistics of the batch, and `x_moving` by
    the moving ones before this step updates them. In inference it equals
    BatchNormalization. It replaces that layer in a pretrained network:
    `keras_delta.attach_head(source, classes, stochastic_norm=0.5)`. With fixed
    statistics (`Recipe`'s default) it has no effect: train with
    `Recipe(batch_norm="training")`, or `recipe="none"`.

    Args:
        probability: of using the batch's statistics (the paper's p); default 0.5. 1 is
            BatchNormalization.
        seed: of the draws; None for a new one.
        **kwargs: as for `keras.layers.BatchNormalization`.

    Raises:
        ValueError: if `probability` is not between 0 and 1.

    Source: Kou et al., "Stochastic normalization", NeurIPS 2020;
    github.com/thuml/StochNorm. (In thuml/Transfer-Learning-Library the probability
    is always 0.5, even if another is requested.)
    """

    takes_place_of = keras.layers.BatchNormalization
    """The source's layer type that this layer is paired with."""

    def __init__(
        self, probability: float = 0.5, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.probability = _arguments.number("probability", probability, most=1)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """See `keras.layers.BatchNormalization`."""
        if not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        # Before the statistics move.
        of_moving = super().call(inputs, training=False, mask=mask)
        of_batch = super().call(inputs, training=True, mask=mask)
        shape = [1] * len(inputs.shape)
        shape[self.axis] = inputs.shape[self.axis]
        drawn = keras.random.uniform(shape, seed=self.seed_generator)
        return ops.where(drawn < self.probability, of_batch, of_moving)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        own = {"probability": self.probability, "seed": self.seed}
        return {**super().get_config(), **own}


def replace_batch_norm(probability):
    """Conversion for `copy_model` that replaces BatchNormalization with `StochNorm`.

    Args:
        probability: see `StochNorm`.

    Returns:
        Function of a layer and its config; it returns None to keep the layer's class.
    """

    def convert(layer, config):
        if type(layer) is not keras.layers.BatchNormalization:
            return None
        return StochNorm.from_config({**config, "probability": probability})

    return convert
