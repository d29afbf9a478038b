"""Channels of a tap in source and target, for a few images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_delta._arguments import integer
from keras_delta._errors import invalid, unknown_name
from keras_delta._plotting import save_figure
from keras_delta._types import ArrayLike, Channels, PathLike
from keras_delta.model import DeltaModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


HEADINGS = ("source", "target", "target − source")


def activation_maps(
    model: DeltaModel,
    images: ArrayLike,
    tap: str | None = None,
    channels: Channels = 3,
) -> dict[str, np.ndarray]:
    """Maps of some channels, from source and target.

    Fine-tuning activates channels that were of no use for the source's task; the maps
    show which, and where they look (the article's Fig. 6). Each is normalised
    separately, `a <- (a - min) / (max - min)` over its positions, a constant map to 0,
    so compare patterns, not strengths. Both networks run in inference mode.

    Args:
        model: a `DeltaModel`.
        images: `(N, height, width, 1 or 3)`, as the model takes them; about four.
        tap: one of `model.taps`; default: the last.
        channels: number of channels, chosen by the lowest mean source map over the
            images; or a list of channel numbers.

    Returns:
        Dict of arrays: `images`; `channels`, the numbers; `source` and `target`
        `(N, H, W, channels)`, normalised; `source_raw` and `target_raw`, unnormalised.

    Raises:
        TypeError, ValueError: if the model has another type, a tap or channel is
            unknown, or the model does not take the images.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, section 4.4.
    """
    if not isinstance(model, DeltaModel):
        raise TypeError(invalid("model", "a DeltaModel", model))
    images, channels = checked_images(images), checked_channels(channels)
    tap = check_paired(model, check_fit(model, images, tap, channels))
    _, found = model.outputs_and_maps(images, training=False)
    source = np.asarray(model.source_maps(images)[tap]).astype("float32")
    target = np.asarray(found[tap]).astype("float32")
    chosen = channels if isinstance(channels, list) else lowest(source, channels)
    source, target = source[..., chosen], target[..., chosen]
    return {
        "images": images,
        "channels": np.asarray(chosen),
        "source": normalized(source),
        "target": normalized(target),
        "source_raw": source,
        "target_raw": target,
    }


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


# --- what can be drawn --------------------------------------------------------------


def checked_images(images):
    """Images as an array; raises an error for anything else."""
    expected = "an array (N, height, width, 1 or 3)"
    if hasattr(images, "element_spec") or isinstance(images, (str, bytes, dict)):
        remedy = "For a data set, pass a batch: `next(iter(data))[0][:4]`."
        raise TypeError(invalid("images", expected, images, remedy))
    try:
        images = np.asarray(images)
        numeric = np.issubdtype(images.dtype, np.number)
    except ValueError:  # images of different sizes
        numeric = False
    if not numeric:
        raise TypeError(invalid("images", expected, images))
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        remedy = "A single image is `image[None]`."
        shape = f"an array {images.shape}"
        raise ValueError(invalid("images", expected, shape, remedy))
    if not np.isfinite(images).all():
        raise ValueError(invalid("images", f"{expected} of finite numbers", images))
    return images


def checked_channels(channels):
    """A number of channels or a list of channel numbers, as ints; checked."""
    if not isinstance(channels, (list, tuple, np.ndarray)):
        return integer("channels", channels)
    if not len(channels):
        raise ValueError(invalid("channels", "at least one number", channels))
    return [integer("channels", c, least=0) for c in channels]


def check_fit(model, images, tap, channels):
    """The tap, after checks that the model has it and that channels and images fit."""
    graph = model.pairing.target
    if not model.taps:
        raise ValueError(invalid("model", "a DeltaModel with taps", model.name))
    if tap is None:
        tap = model.taps[-1]
    if tap not in model.taps:
        raise ValueError(unknown_name("tap", tap, model.taps))
    if len(graph.inputs) != 1:
        raise ValueError(
            "Activation maps need a model with a single image input. The target "
            f"has {len(graph.inputs)}."
        )
    graph.feed(images[:1])
    shape = graph.output_of(tap).shape
    if len(shape) != 4:
        remedy = "Pick a tap of an image network, (batch, height, width, channels)."
        raise ValueError(invalid("tap", f"a map of images, not {shape}", tap, remedy))
    if isinstance(channels, list) and max(channels) >= shape[-1]:
        expected = f"numbers below {shape[-1]}, the channels of '{tap}'"
        raise ValueError(invalid("channels", expected, channels))
    return tap


def check_paired(model, tap):
    """The tap, after a check that the source has the same."""
    if model.networks.mismatch or tap not in (model.networks.taps or ()):
        expected = "one that the source has as well"
        remedy = "For the target alone: `keras_delta.analysis.compare_activation_maps`."
        raise ValueError(invalid("tap", expected, tap, remedy))
    return tap


# --- the picture --------------------------------------------------------------------


def plot_activation_maps(
    maps: Mapping[str, np.ndarray],
    path: PathLike | None = None,
    title: str = "",
    dpi: float = 150,
) -> "Figure":
    """Plot images, normalised maps and their difference, one row per channel.

    Args:
        maps: result of `activation_maps`.
        path: also write the figure to this file (PNG, PDF or SVG by its suffix).
        title: of the figure.
        dpi: dots per inch of a PNG file.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure  # loads slowly

    images, count = maps["images"], len(maps["channels"])
    rows = len(images) * count
    figure = Figure(figsize=(7.6, 1.75 * rows + 1.1), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(hspace=0.02, wspace=0.02)
    axes = figure.subplots(rows, 4, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    for row in range(rows):
        pictures = _draw_row(axes[row], maps, *divmod(row, count))
    bar: dict[str, Any] = {"orientation": "horizontal", "fraction": 0.08, "pad": 0.01}
    for picture, columns, ticks in (
        (pictures[0], (1, 2), (0, 1)),
        (pictures[2], (3,), (-1, 1)),
    ):
        below = axes[:, columns].ravel().tolist()
        figure.colorbar(picture, ax=below, ticks=ticks, **bar)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path, dpi)


def _draw_row(axes, maps, image, k):
    """Draw the k-th channel of an image; returns the pictures of its maps."""
    first, *others = axes
    # Maps are drawn as tall and wide as their image, for any grid.
    height, width = maps["images"].shape[1:3]
    extent = (0, width, height, 0)
    if k == 0:
        shown = displayed(maps["images"][image])
        first.imshow(shown, cmap="gray", extent=extent)
        first.set_title(f"image {image}", fontsize=9)
        for axis, heading in zip(others, HEADINGS, strict=True):
            axis.set_title(heading, fontsize=9)
    else:
        first.set_visible(False)
    others[0].set_ylabel(f"channel {maps['channels'][k]}", fontsize=9)
    source, target = maps["source"][image, ..., k], maps["target"][image, ..., k]
    plain = {"cmap": "gray", "vmin": 0, "vmax": 1}
    signed = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
    drawn = ((source, plain), (target, plain), (target - source, signed))
    return [
        axis.imshow(a, extent=extent, interpolation="nearest", **kind)
        for axis, (a, kind) in zip(others, drawn, strict=True)
    ]


def displayed(image):
    """An image for matplotlib: floats from 0 to 1, a single channel dropped.

    Values from 0 to 1 are kept, values from 0 to 255 are divided by 255, and others
    are stretched.
    """
    image = np.asarray(image, "float64")
    low, high = image.min(), image.max()
    if low < 0 or high > 255:
        image = (image - low) / max(high - low, 1e-12)
    elif high > 1:
        image = image / 255
    return image[..., 0] if image.shape[-1] == 1 else image
