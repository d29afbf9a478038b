"""The preprocessing of keras.applications inside the model, with Keras's own layers.

Preprocessing inside the model can be neither forgotten nor done twice: the model takes
photographs as they are decoded. It only uses Keras's own layers, so that a model can be
loaded without this package.
"""

from typing import Any

import keras

from keras_delta import _arguments
from keras_delta._types import Shape, Tensor

MODES = ("caffe", "tf", "torch")

# ImageNet statistics: mean of blue, green and red as pixel values; mean and standard
# deviation of red, green and blue as fractions of 255.
MEAN_BGR = (103.939, 116.779, 123.68)
MEAN, STANDARD_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocess(images, mode):
    """Preprocesses raw RGB pixels, a KerasTensor, for a keras.applications network.

    It uses float32 even with mixed precision, where 16-bit pixels would be rounded.

    Args:
        images: KerasTensor `(B, height, width, 3)`, values 0 to 255.
        mode: `"caffe"` (RGB to BGR, the ImageNet mean subtracted; ResNet), `"tf"`
            (scaled to -1..1; Inception) or `"torch"` (scaled to 0..1, then normalised
            by ImageNet's mean and standard deviation).

    Source: `keras.applications.imagenet_utils.preprocess_input`.
    """
    _arguments.choice("mode", mode, MODES)
    if mode == "caffe":
        images = keras.ops.flip(images, axis=-1)
        scale, offset = 1.0, [-m for m in MEAN_BGR]
    elif mode == "tf":
        scale, offset = 1 / 127.5, -1.0
    else:
        moments = list(zip(MEAN, STANDARD_DEVIATION, strict=True))
        scale, offset = (
            [1 / (255 * s) for _, s in moments],
            [-m / s for m, s in moments],
        )
    layer = keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")
    return layer(images)


@keras.saving.register_keras_serializable("keras_delta")
class ImageNetPreprocessing(keras.layers.Layer):
    """The form of `preprocess` until version 0.1, for loading files from then.

    Args:
        mode: see `preprocess`.
    """

    def __init__(self, mode: str = "caffe", **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.mode = _arguments.choice("mode", mode, MODES)

    def call(self, images: Tensor) -> Tensor:
        """Return images with values 0 to 255 in the form used in training."""
        images = keras.ops.cast(images, "float32")
        images = keras.applications.imagenet_utils.preprocess_input(
            images, mode=self.mode
        )
        return keras.ops.cast(images, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the layer, for saving."""
        return {**super().get_config(), "mode": self.mode}
