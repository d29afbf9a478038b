"""Pictures inside of a page: photographs, maps over them, charts."""

import base64
import io
import re

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_delta.analysis.maps import displayed

SIDE = 160  # of a photograph
QUALITY = 82
HEAT = 0.7  # how much of the colours covers the photograph where a map is 1
INK = "#010203"  # becomes the page's own colour of text
LINES = ("#3987d6", "#d4762c", "#2f9e79", "#b565a7", "#8a8f98")


def photograph(image, box=None):
    """A data URI of an image as the model takes it; of a part (top, left, ...)."""
    pixels = rgb(image)
    if box is not None:
        top, left, bottom, right = box
        pixels = pixels[top:bottom, left:right]
    return _uri(pixels)


def overlay(image, heat):
    """A data URI of an image in grey, with a map `(h, w)` from 0 to 1 over it.

    Dark to light colours as well as hues (`inferno`): readable without colours.
    """
    from matplotlib import colormaps

    pixels = rgb(image).astype("float64") / 255
    grey = pixels.mean(-1, keepdims=True)
    heat = np.asarray(heat, "float32")[..., None]
    heat = tf.image.resize(heat, pixels.shape[:2]).numpy()
    share = HEAT * np.clip(heat, 0, 1)
    colours = colormaps["inferno"](0.25 + 0.75 * np.clip(heat[..., 0], 0, 1))[..., :3]
    return _uri((255 * ((1 - share) * 0.8 * grey + share * colours)).astype("uint8"))


def rgb(image):
    """An image as the model takes it, as `(height, width, 3)` uint8."""
    shown = displayed(image)
    shown = np.repeat(shown[..., None], 3, -1) if shown.ndim == 2 else shown
    return np.rint(255 * shown).astype("uint8")


def _uri(pixels):
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def chart(draw, width=5.6, height=3.2, columns=1):
    """The SVG of a figure in the page's colours, a string.

    Args:
        draw: function of the axes (of a list of them for several columns).
        width, height: in inches.
        columns: how many axes are side by side.
    """
    import matplotlib
    from matplotlib.figure import Figure

    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color")
    settings = dict.fromkeys((*colours, "ytick.color"), INK)
    settings |= {"svg.fonttype": "none", "font.size": 9, "text.parse_math": False}
    settings |= {"svg.hashsalt": "report", "axes.prop_cycle": _cycle()}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25, color="#8a8f98")
        draw(axes if columns > 1 else axes[0])
        return svg(figure)


def svg(figure):
    """A figure as SVG inside of a page, black in it in the page's colour of text."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for black in (INK, "#000000"):
        text = text.replace(black, "currentColor")
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)


def _cycle():
    from cycler import cycler

    return cycler(color=LINES) + cycler(linestyle=["-", "--", "-.", ":", "-"])
