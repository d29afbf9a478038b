"""Pictures of results: which points are drawn, what is said of repeats, refusals."""

import math

import numpy as np
import pandas as pd
import pytest
from experiments.figures import COLOURS, curves, few_shot_curves, strength_curve
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection


def row(method="delta", dataset="cub", per_class=10, seed=0, accuracy=0.5, **given):
    values = {
        "dataset": dataset,
        "per_class": per_class,
        "network": "efficientnet_lite0",
        "augmentation": "default",
        "schedule": "step",
        "method": method,
        "alpha": 0.01,
        "beta": 0.01,
        "seed": seed,
        "accuracy": accuracy,
    }
    return {**values, **given}


def frame(*rows):
    return pd.DataFrame(list(rows))


def line(axis, colour):
    found = [
        x for x in axis.lines if x.get_color() == colour and x.get_linestyle() != "None"
    ]
    (found,) = [x for x in found if x.get_marker() not in ("|", "_")]
    return found.get_xdata(), found.get_ydata()


def whole(figure):
    """Every text lies within the picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())  # inches
    width, height = figure.get_size_inches()
    assert drawn.x0 >= -0.01 and drawn.y0 >= -0.01
    assert drawn.x1 <= width + 0.01 and drawn.y1 <= height + 0.01


def with_curves():
    return frame(
        row(seed=0, curve=[[1, 0.2], [2, 0.4], [3, 0.5]]),
        row(seed=1, curve=[[1, 0.4], [2, 0.4], [4, 0.6]]),
        row("l2", curve=[[1, 0.1], [2, 0.3]]),
        row("l2", seed=1, curve=None),
        row("l2", schedule="exponential", curve=[[1, 0.2], [2, 0.3]]),
        row("delta", "food101", curve=[[1, 0.3], [2, 0.5]]),
    )


def test_curves(tmp_path):
    figure = curves(with_curves(), tmp_path / "curves.png")
    titles = [a.get_title(loc="left") for a in figure.axes]
    assert titles == [
        "CUB-200-2011, 10 a class, step",
        "CUB-200-2011, 10 a class, exponential",
        "Food-101, 10 a class, step",
        "Food-101, 10 a class, exponential",
    ]
    axis = figure.axes[0]
    x, y = line(axis, COLOURS["delta"])
    assert list(x) == [1, 2]  # epochs 3 and 4 have one repeat each
    assert list(y) == pytest.approx([0.3, 0.4])
    (band,) = [c for c in axis.collections if isinstance(c, PolyCollection)]
    heights = band.get_paths()[0].vertices[:, 1]
    spread = 0.2 / math.sqrt(2)  # of 0.2 and 0.4
    assert heights.min() == pytest.approx(0.3 - spread)
    assert heights.max() == pytest.approx(max(0.3 + spread, 0.4))
    assert list(line(axis, COLOURS["l2"])[1]) == [0.1, 0.3]
    assert not figure.axes[1].collections  # one repeat has no band
    assert [t.get_text() for t in figure.axes[3].texts] == ["no training"]
    assert figure.get_suptitle() == "mean and standard deviation of 1 to 2 repeats"
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["L2", "DELTA"]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    whole(figure)


def test_no_curves():
    text = "`frame`. Expected at least one finished training with `curve`"
    with pytest.raises(ValueError, match=text):
        curves(frame(row()))


def test_few_shot_curves(tmp_path):
    given = frame(
        row(per_class=5, seed=0, accuracy=0.4),
        row(per_class=5, seed=1, accuracy=0.6),
        row(per_class=50, accuracy=0.7),
        row(per_class=None, accuracy=0.9),
        row("mine", per_class=5, accuracy=0.3),
        row("mine", "food101", per_class=5, accuracy=0.2),
    )
    figure = few_shot_curves(given, tmp_path / "few.pdf")
    axis, other = figure.axes
    assert [t.get_text() for t in axis.get_xticklabels()] == ["5", "50", "all"]
    ticks = axis.get_xticks()
    assert ticks[1] - ticks[0] == pytest.approx(1)  # a decade
    assert ticks[2] == pytest.approx(math.log10(50) + 0.25)
    x, y = line(axis, COLOURS["delta"])
    assert list(y) == pytest.approx([0.5, 0.7, 0.9])
    np.testing.assert_allclose(x, ticks, atol=0.03)
    (bars,) = axis.containers  # only one point has two repeats
    (ends,) = bars.lines[2][0].get_segments()
    spread = 0.2 / math.sqrt(2)
    assert list(ends[:, 1]) == pytest.approx([0.5 - spread, 0.5 + spread])
    assert other.get_title(loc="left") == "Food-101"
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["DELTA", "mine"]
    assert (tmp_path / "few.pdf").read_bytes()[:4] == b"%PDF"
    whole(figure)


def test_four_data_sets_take_two_rows():
    sets = ("cub", "food101", "indoor67", "flowers12")
    figure = few_shot_curves(frame(*(row(dataset=d) for d in sets)))
    assert [a.get_visible() for a in figure.axes] == [True] * 4 + [False] * 2
    whole(figure)


def test_strength_curve():
    given = frame(
        *(
            row(alpha=a, seed=s, dataset=d, accuracy=0.5 + a / 1000 + s / 10)
            for a in (0, 0.1, 10)
            for s in (0, 1)
            for d in ("cub", "food101")
        )
    )
    figure = strength_curve(given)
    (axis,) = figure.axes
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0", "0.1", "10"]
    lines = [x for x in axis.lines if x.get_label().startswith(("CUB", "Food"))]
    assert len(lines) == 2
    assert list(lines[0].get_ydata()) == pytest.approx([0.55, 0.5501, 0.56])
    x = lines[0].get_xdata()
    assert x[2] - x[1] == pytest.approx(2)  # decades
    assert axis.get_title(loc="left") == "DELTA, 2 repeats"
    assert len(axis.containers) == 6
    whole(figure)


@pytest.mark.parametrize("change", [{"method": "l2"}, {"beta": 0.1}])
def test_strengths_of_one_method(change):
    given = frame(row(), row(alpha=0.1, **change))
    (name,) = change
    with pytest.raises(ValueError, match=f"trainings with one value of `{name}`"):
        strength_curve(given)


def test_other_mixtures():
    with pytest.raises(ValueError, match="one value of `schedule`"):
        few_shot_curves(frame(row(), row(seed=1, schedule="exponential")))
    with pytest.raises(ValueError, match="each seed once in a cell"):
        curves(frame(row(), row()))
