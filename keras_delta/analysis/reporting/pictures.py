"""Pictures inside a page: photographs, maps over them, charts."""

import base64
import io
import re

from PIL import Image

from keras_delta.analysis.overlays import overlaid, rgb

SIDE = 160  # of a photograph
QUALITY = 82
INK = "#010203"  # becomes the page's own colour of text, as dark greys do
DARK = re.compile(rf"{INK}|#([0-7][0-9a-f])\1\1\b")
LINES = ("#3987d6", "#d4762c", "#2f9e79", "#b565a7", "#8a8f98")


def photograph(image, box=None):
    """A data URI of an image as the model takes it, or of a box (top, left, ...)."""
    pixels = rgb(image)
    if box is not None:
        top, left, bottom, right = box
        pixels = pixels[top:bottom, left:right]
    return _uri(pixels)


def overlay(image, heat):
    """A data URI of an image with a map `(h, w)` from 0 to 1 over it."""
    return _uri(overlaid(image, heat))


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
        columns: number of axes side by side.
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
    """A figure as SVG for a page; dark parts take the page's text colour."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = DARK.sub("currentColor", text)
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)


def _cycle():
    from cycler import cycler

    return cycler(color=LINES) + cycler(linestyle=["-", "--", "-.", ":", "-"])
