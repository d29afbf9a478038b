"""`ActivationMaps`: pictures of what source and target see, epoch by epoch."""

from typing import Any

import keras
import numpy as np

from keras_delta import _disk
from keras_delta._arguments import folder, integer
from keras_delta._errors import invalid
from keras_delta._types import ArrayLike, Channels, Logs, PathLike
from keras_delta.analysis import maps as analysis
from keras_delta.callbacks.base import Callback
from keras_delta.callbacks.summaries import Summaries


class ActivationMaps(Callback):
    """Draws channels of a tap, in source and target, for a few images.

    The pictures are those of `kd.analysis.activation_maps` (the article's Fig. 6),
    drawn at the end of epochs `every`, `2 * every`, ..., counted from 1, also in a
    resumed training. Files in `log_dir`: `activation_maps-0005.png`, and
    `activation_maps-0005.npz` with `images`, `channels`, `source` and `target`
    `(images, height, width, channels)` as drawn, and `source_raw` and `target_raw`
    before normalisation. Training is unaffected.

    Args:
        images: `(N, height, width, 1 or 3)`, as the model takes them; about four.
        log_dir: folder to write to; created if necessary.
        tap: one of `model.taps`; default: the last.
        channels: number of channels, taking those with the lowest mean source map over
            the images; or a list of channel numbers. Default 3.
        every: number of epochs between pictures, default 1.
        tensorboard: TensorBoard log folder for the pictures as well; default: none.

    Attributes:
        images: the images, an array.
        drawn: list of the channel numbers drawn last.

    Raises:
        ImportError: if matplotlib is missing.
        TypeError, ValueError: if an argument is invalid or, at the start of `fit`, if
            the model is not a `DeltaModel` or does not accept the images, or if the
            tap or a channel is unknown.
    """

    remembers = ("drawn",)

    def __init__(
        self,
        images: ArrayLike,
        log_dir: PathLike,
        tap: str | None = None,
        channels: Channels = 3,
        every: int = 1,
        tensorboard: PathLike | None = None,
    ) -> None:
        super().__init__()
        try:
            import matplotlib  # noqa: F401
        except ImportError as e:
            raise ImportError(
                "ActivationMaps draws with matplotlib, which is not installed. Run "
                '`pip install "matplotlib>=3.8"`.'
            ) from e
        self.images = analysis.checked_images(images)
        self.log_dir = folder("log_dir", log_dir)
        if tap is not None and not isinstance(tap, str):
            raise TypeError(invalid("tap", "the name of a tap", tap))
        self.tap = tap
        self.channels = analysis.checked_channels(channels)
        self.every = integer("every", every)
        self.summaries = Summaries(folder("tensorboard", tensorboard, optional=True))
        self.drawn = []

    def check(self, model: keras.Model) -> None:
        """Reject anything that cannot be drawn."""
        super().check(model)
        tap = analysis.check_fit(model, self.images, self.tap, self.channels)
        analysis.check_paired(model, tap)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Draw the maps if they are due."""
        if (epoch + 1) % self.every:
            return
        tap = self.tap or self.model.taps[-1]
        maps: Any
        maps = analysis.activation_maps(self.model, self.images, tap, self.channels)
        self.drawn = maps["channels"].tolist()
        if self.writes:
            path = self.log_dir / f"activation_maps-{epoch + 1:04d}.npz"
            with _disk.replace_file(path) as temporary:
                np.savez_compressed(temporary, **maps)
            title, png = f"{tap}, epoch {epoch + 1}", path.with_suffix(".png")
            analysis.plot_activation_maps(maps, png, title, dpi=100)
            self.summaries.write_picture(f"activation_maps/{tap}", png, epoch + 1)
