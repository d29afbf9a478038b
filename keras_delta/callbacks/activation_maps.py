"""`ActivationMaps`: pictures of what source and target see in an image."""

import numpy as np

from keras_delta._errors import invalid, unknown_name
from keras_delta.callbacks.base import DeltaCallback, folder, positive_integer

HEADINGS = ("source", "target", "target − source")


class ActivationMaps(DeltaCallback):
    """Draws channels of a tap, of source and target, for a few images.

    Fine-tuning wakes channels that were of no use for the source's task; these
    pictures show which, and where they look (the article's Fig. 6). A row is a
    channel of an image: the image, the source's map, the target's map and their
    difference. Each map is normalised by itself, `a <- (a - min) / (max - min)` over
    its positions, a constant map to 0, so compare patterns and not strengths.

    It draws at the end of the epochs `every`, `2 * every`, ..., counted from 1 over a
    resumed training as well, into `log_dir`: `activation_maps-0005.png`, and
    `activation_maps-0005.npz` with `images`, `channels`, `source` and `target`
    `(images, height, width, channels)` as drawn, and `source_raw` and `target_raw`
    before they were normalised. Both networks run in inference mode and the training
    stays the same. Cost: one inference of the images, and about a second for a
    picture of twelve rows.

    Args:
        images: `(N, height, width, 1 or 3)`, as the model takes them; four or so.
        log_dir: folder to write to; made if need be.
        tap: which of `model.taps`; default: the last.
        channels: how many channels, those with the lowest mean source map over the
            images; or a list of their numbers. Default 3.
        every: number of epochs from one picture to the next, default 1.

    Attributes:
        drawn: list of the numbers of the channels that were drawn last.

    Raises:
        ImportError: where matplotlib is missing.
        TypeError, ValueError: for bad arguments here; at the start of `fit` for a
            model that is no `DeltaModel`, an unknown tap or channel, or images that
            the model does not take.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.4.

    Example:
        ```python
        maps = kd.callbacks.ActivationMaps(x[:4], "logs", every=5)
        model.fit(train, epochs=15, regularizer="delta", callbacks=[maps])
        ```
    """

    def __init__(self, images, log_dir, tap=None, channels=3, every=1):
        super().__init__()
        try:
            import matplotlib  # noqa: F401
        except ImportError as e:
            raise ImportError(
                "ActivationMaps draws with matplotlib, which is not installed. Run "
                '`pip install "matplotlib>=3.8"`.'
            ) from e
        self._images = _Kept(_checked_images(images))
        self.log_dir = folder("log_dir", log_dir)
        if tap is not None and not isinstance(tap, str):
            raise TypeError(invalid("tap", "the name of a tap", tap))
        self.tap = tap
        self.channels = _checked_channels(channels)
        self.every = positive_integer("every", every)
        self.drawn = []

    @property
    def images(self):
        """The images, `(N, height, width, 1 or 3)`."""
        return self._images.value

    def check(self, model):
        """Refuse what cannot be drawn."""
        super().check(model)
        tap = self._tap_of(model)
        graph = model.pairing.target
        if len(graph.inputs) != 1:
            raise ValueError(
                "ActivationMaps draws the images of a model with one input. The "
                f"target has {len(graph.inputs)}."
            )
        graph.feed(self.images[:1])
        shape = graph.output_of(tap).shape
        if len(shape) != 4:
            remedy = "Pick a tap of an image network, (batch, height, width, channels)."
            raise ValueError(
                invalid("tap", f"a map of images, not {shape}", tap, remedy)
            )
        wanted = self.channels
        if isinstance(wanted, list) and max(wanted) >= shape[-1]:
            expected = f"numbers below {shape[-1]}, the channels of '{tap}'"
            raise ValueError(invalid("channels", expected, wanted))

    def on_epoch_end(self, epoch, logs=None):
        """Draw, where it is time."""
        if (epoch + 1) % self.every:
            return
        tap = self._tap_of(self.model)
        # The source at every picture, because a backup may have brought another.
        source, target = (
            m.astype("float32") for m in maps(self.model, self.images, tap)
        )
        self.drawn = self._choose(source)
        source, target = source[..., self.drawn], target[..., self.drawn]
        shown = normalized(source), normalized(target)
        if not self.writes:
            return
        self.log_dir.mkdir(parents=True, exist_ok=True)
        path = self.log_dir / f"activation_maps-{epoch + 1:04d}.npz"
        np.savez_compressed(
            path,
            images=self.images,
            channels=np.asarray(self.drawn),
            source=shown[0],
            target=shown[1],
            source_raw=source,
            target_raw=target,
        )
        title = f"{tap}, epoch {epoch + 1}"
        figure = plot(self.images, *shown, self.drawn, title)
        figure.savefig(path.with_suffix(".png"), dpi=100)

    def _choose(self, source):
        if isinstance(self.channels, list):
            return self.channels
        return lowest(source, self.channels)

    def _tap_of(self, model):
        if self.tap is None:
            return model.taps[-1]
        if self.tap not in model.taps:
            raise ValueError(unknown_name("tap", self.tap, model.taps))
        return self.tap


class _Kept:
    """Holds what a backup of the training need not store."""

    def __init__(self, value):
        self.value = value


def maps(model, images, tap):
    """(source map, target map) of a tap, in inference mode, `(N, H, W, C)` each."""
    _, target = model(images, training=False, with_maps=True)
    return tuple(np.asarray(m[tap]) for m in (model.source_maps(images), target))


def lowest(source, count):
    """List of the channels with the lowest mean of `source` `(N, H, W, C)`."""
    means = source.astype("float64").mean(axis=(0, 1, 2))
    return np.argsort(means, kind="stable")[:count].tolist()


def normalized(feature_map):
    """`(a - min) / (max - min)` of each image and channel; a constant map is 0.

    Args:
        feature_map: `(N, H, W, C)`.

    Returns:
        The same shape, float32 from 0 to 1.
    """
    a = feature_map.astype("float64")
    low, high = a.min((1, 2), keepdims=True), a.max((1, 2), keepdims=True)
    span = high - low
    return ((a - low) / np.where(span > 0, span, 1.0)).astype("float32")


def plot(images, source, target, channels, title=""):
    """Draw images, normalised maps and their difference, a row a channel.

    Args:
        images: `(N, height, width, 1 or 3)`.
        source, target: normalised maps `(N, H, W, channels)`.
        channels: numbers of the channels.
        title: of the picture.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure  # loads slowly

    count = len(channels)
    rows = len(images) * count
    figure = Figure(figsize=(7.6, 1.75 * rows + 1.1), layout="constrained")
    figure.get_layout_engine().set(hspace=0.02, wspace=0.02)
    axes = figure.subplots(rows, 4, squeeze=False)
    kinds = ({"cmap": "gray", "vmin": 0, "vmax": 1},) * 2
    kinds = (*kinds, {"cmap": "RdBu_r", "vmin": -1, "vmax": 1})
    # Maps as tall and wide as the image that they belong to, whatever their grid.
    height, width = images.shape[1:3]
    extent = (0, width, height, 0)
    for row in range(rows):
        image, k = divmod(row, count)
        pair = source[image, ..., k], target[image, ..., k]
        if k == 0:
            axes[row, 0].imshow(displayed(images[image]), cmap="gray", extent=extent)
            axes[row, 0].set_title(f"image {image}", fontsize=9)
        else:
            axes[row, 0].set_visible(False)
        drawn = zip((*pair, pair[1] - pair[0]), kinds, axes[row, 1:], strict=True)
        last = [
            axis.imshow(a, extent=extent, interpolation="nearest", **kind)
            for a, kind, axis in drawn
        ]
        axes[row, 1].set_ylabel(f"channel {channels[k]}", fontsize=9)
        for axis, heading in zip(axes[row, 1:], HEADINGS, strict=True):
            if k == 0:
                axis.set_title(heading, fontsize=9)
        for axis in axes[row]:
            axis.set_xticks([])
            axis.set_yticks([])
    bar = {"orientation": "horizontal", "fraction": 0.08, "pad": 0.01}
    for picture, columns, ticks in (
        (last[0], (1, 2), (0, 1)),
        (last[2], (3,), (-1, 1)),
    ):
        figure.colorbar(
            picture, ax=axes[:, columns].ravel().tolist(), ticks=ticks, **bar
        )
    figure.suptitle(title, fontsize=10)
    return figure


def displayed(image):
    """An image as matplotlib shows it: floats from 0 to 1, without a single channel.

    Values from 0 to 255 are divided by 255; others than these and those from 0 to 1
    are stretched.
    """
    image = np.asarray(image, "float64")
    low, high = image.min(), image.max()
    if low < 0 or high > 255:
        image = (image - low) / max(high - low, 1e-12)
    elif high > 1:
        image = image / 255
    return image[..., 0] if image.shape[-1] == 1 else image


def _checked_images(images):
    expected = "an array (N, height, width, 1 or 3)"
    if hasattr(images, "element_spec") or isinstance(images, (str, bytes, dict)):
        remedy = "Of a data set, pass a batch: `next(iter(data))[0][:4]`."
        raise TypeError(invalid("images", expected, images, remedy))
    try:
        images = np.asarray(images)
        fine = np.issubdtype(images.dtype, np.number)
    except ValueError:  # images of different sizes
        fine = False
    if not fine:
        raise TypeError(invalid("images", expected, images))
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        remedy = "A single image is `image[None]`."
        shape = f"an array {images.shape}"
        raise ValueError(invalid("images", expected, shape, remedy))
    if not np.isfinite(images).all():
        raise ValueError(invalid("images", f"{expected} of finite numbers", images))
    return images


def _checked_channels(channels):
    if isinstance(channels, (list, tuple, np.ndarray)):
        numbers = [_number(c) for c in channels]
        if numbers and None not in numbers:
            return numbers
    elif _number(channels):
        return int(channels)
    expected = "a positive integer or a list of channel numbers, from 0"
    raise ValueError(invalid("channels", expected, channels))


def _number(value):
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return int(value) if whole and value >= 0 else None
