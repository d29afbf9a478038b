"""The preprocessing of keras.applications as a layer inside the model."""

import keras

from keras_delta import _arguments

MODES = ("caffe", "tf", "torch")


@keras.saving.register_keras_serializable("keras_delta")
class ImageNetPreprocessing(keras.layers.Layer):
    """Raw RGB pixels to what a network of keras.applications was trained on.

    Preprocessing inside the model cannot be forgotten, nor done twice: the
    model takes photographs as they are decoded.

    Args:
        mode: `"caffe"` (RGB to BGR, the ImageNet mean subtracted; ResNet),
            `"tf"` (scaled to -1..1; Inception) or `"torch"` (scaled to 0..1,
            then normalised by ImageNet's mean and standard deviation).

    Input:
        `(..., 3)` images, values 0..255, any dtype.

    Output:
        The same shape in the layer's compute dtype. The arithmetic is in
        float32 also under mixed precision, where 16-bit pixels would be rounded.

    Raises:
        ValueError: for an unknown mode.

    Source: `keras.applications.imagenet_utils.preprocess_input`.
    """

    def __init__(self, mode="caffe", **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.mode = _arguments.choice("mode", mode, MODES)

    def call(self, images):
        """Images, values 0..255, as the network was trained on them."""
        images = keras.ops.cast(images, "float32")
        images = keras.applications.imagenet_utils.preprocess_input(
            images, mode=self.mode
        )
        return keras.ops.cast(images, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        """The shape of the input."""
        return input_shape

    def get_config(self):
        """Arguments of the layer, for saving."""
        return {**super().get_config(), "mode": self.mode}
