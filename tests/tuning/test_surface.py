"""Pictures of a search: which kind, what is written where, and no overlaps."""

import itertools
import math
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from keras_delta._plotting import LogScale
from keras_delta.tuning.results import Cell
from keras_delta.tuning.surface import MARK, plot_surface

GRID = (1e-4, 1e-3, 1e-2, 0.1, 0.2)


def cell(trial, scores=None, status=None, discarded=False, **values):
    scores = dict(enumerate(scores or []))
    return Cell(
        trial_id=f"{trial:04d}",
        values=values,
        status=status or ("COMPLETED" if scores else "FAILED"),
        scores=scores,
        score=sum(scores.values()) / len(scores) if scores else None,
        discarded=discarded,
        seconds=1.0,
        message=None,
        metrics={},
    )


def grid(alphas, betas):
    """Scores that no two cells share, best at the last alpha and beta."""
    pairs = itertools.product(alphas, betas)
    return [
        cell(i, [0.5 + i / 400, 0.52 + i / 400], alpha=a, beta=b)
        for i, (a, b) in enumerate(pairs)
    ]


def texts(figure):
    return {t.get_text(): t for t in figure.axes[0].texts}


def ticks(axis):
    return [t.get_text() for t in axis.get_ticklabels()]


def boxes(figure):
    """Dict (column, row) -> colour of a heat map's cells."""
    (mesh,) = figure.axes[0].collections
    mesh.update_scalarmappable()
    rows, columns = mesh.get_array().shape
    places = itertools.product(range(rows), range(columns))
    colours = mesh.get_facecolor()
    return {(x, y): tuple(c) for (y, x), c in zip(places, colours, strict=True)}


def test_a_heat_map_is_written_in_its_cells():
    cells = [
        cell(0, [0.8, 0.9], alpha=0.1, beta=0.0),
        cell(1, [0.6, 0.6], alpha=1.0, beta=0.0),
        cell(2, [0.7, 0.7], alpha=0.1, beta=2.0, discarded=True),
        cell(3, alpha=1.0, beta=2.0),
        cell(4, [0.7], status="RUNNING", alpha=3.0, beta=2.0)._replace(score=None),
    ]
    figure = plot_surface(cells, "val_accuracy", "max")
    assert isinstance(figure, Figure)
    axis = figure.axes[0]
    assert ticks(axis.xaxis) == ["0.1", "1", "3"]
    assert ticks(axis.yaxis) == ["0", "2"]
    where = {text: t.get_position() for text, t in texts(figure).items()}
    assert where == {
        "85.0%\n±5.0%": (0, 0),
        "60.0%\n±0.0%": (1, 0),
        "<": (0, 1),
        "failed": (1, 1),
        "not\nfinished": (2, 1),
    }
    colours = matplotlib.colormaps["viridis"]
    drawn = boxes(figure)
    assert drawn[0, 0] == pytest.approx(colours(1.0))
    assert drawn[1, 0] == pytest.approx(colours(0.0))
    for place in ((0, 1), (1, 1), (2, 1), (2, 0)):
        assert drawn[place] == pytest.approx(to_rgba("0.88"))
    marks = [p for p in axis.patches if p.get_edgecolor() == to_rgba(MARK)]
    (centre,) = [m.get_center() for m in marks]
    np.testing.assert_allclose(centre, [0, 0], atol=1e-9)
    title = axis.get_title(loc="left")
    assert "val_accuracy, mean ± standard error over 2 folds" in title
    assert "best: alpha = 0.1, beta = 0: 85.0% ± 5.0%" in title


def test_small_is_bright_where_small_is_good():
    cells = [
        cell(0, [2.0], alpha=0.1, beta=0.1),
        cell(1, [1.0], alpha=1.0, beta=0.1),
        cell(2, [1.5], alpha=0.1, beta=1.0, discarded=True),
    ]
    figure = plot_surface(cells, "val_loss", "min")
    brightest = matplotlib.colormaps["viridis"](1.0)
    assert boxes(figure)[1, 0] == pytest.approx(brightest)
    assert {"2", "1", ">"} == set(texts(figure))


def test_an_outlier_does_not_hide_the_others():
    cells = grid((0.1, 1.0), (0.1, 1.0, 10.0))
    cells[0] = cell(0, [0.01, 0.01], alpha=0.1, beta=0.1)
    figure = plot_surface(cells, "val_accuracy", "max")
    drawn = boxes(figure)
    best, worst = matplotlib.colormaps["viridis"]([1.0, 0.0])
    assert drawn[1, 2] == pytest.approx(best) and drawn[0, 0] == pytest.approx(worst)
    # The others, 0.51 to 0.52, are told apart: 0.2 of the range and more.
    assert np.abs(np.subtract(drawn[0, 1], drawn[1, 2])).max() > 0.2


@pytest.mark.parametrize(
    ("alphas", "betas"),
    [(GRID, GRID), (GRID[:3], GRID[:2])],
)
@pytest.mark.parametrize("scale", [1, 12345])
def test_nothing_overlaps(alphas, betas, scale):
    cells = [
        c._replace(
            scores={k: scale * v for k, v in c.scores.items()}, score=scale * c.score
        )
        for c in grid(alphas, betas)
    ]
    cells[0] = cell(0, alpha=alphas[0], beta=betas[0])
    cells[1] = cells[1]._replace(discarded=True)
    figure = plot_surface(cells, "val_accuracy", "max")
    renderer = rendered(figure)
    axis = figure.axes[0]
    assert len(axis.texts) == len(cells)
    for text in axis.texts:
        inner = text.get_window_extent(renderer)
        place = np.array(text.get_position())
        low, high = axis.transData.transform([place - 0.5, place + 0.5])
        assert low[0] < inner.x0 and inner.x1 < high[0], text.get_text()
        assert low[1] < inner.y0 and inner.y1 < high[1], text.get_text()
    apart([*axis.xaxis.get_ticklabels()], renderer)
    apart([*axis.yaxis.get_ticklabels()], renderer)
    title = axis.get_tightbbox(renderer)
    assert title.x0 >= 0 and title.x1 <= figure.bbox.x1


def rendered(figure):
    """The renderer that knows where things are."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def apart(labels, renderer):
    extents = [t.get_window_extent(renderer) for t in labels if t.get_text()]
    for a, b in itertools.combinations(extents, 2):
        assert not a.overlaps(b)


def random_cells(count=30):
    rng = np.random.default_rng(0)
    values = 10 ** rng.uniform(-4, 0, (count, 2))
    values[0, 1] = 0.0
    return [
        cell(i, [float(i)], alpha=float(a), beta=float(b))
        for i, (a, b) in enumerate(values)
    ]


def test_scattered_values_are_points():
    cells = random_cells()
    cells[3] = cell(3, **cells[3].values)
    cells[4] = cells[4]._replace(discarded=True)
    figure = plot_surface(cells, "score", "max")
    axis = figure.axes[0]
    groups = {x.get_label(): x.get_xydata() for x in axis.lines}
    assert len(groups["failed"]) == len(groups["discarded early"]) == 1
    (dots,) = axis.collections
    finished = dots.get_offsets()
    assert len(finished) == 28
    best = np.log10([cells[-1].values["alpha"], cells[-1].values["beta"]])
    np.testing.assert_allclose(groups["best"], [best])
    assert "0" in ticks(axis.yaxis) and "0.01" in ticks(axis.yaxis)
    assert "0" not in ticks(axis.xaxis)
    # Zero lies below all others, inside of the picture.
    low = axis.get_ylim()[0]
    lowest = sorted(np.asarray(finished)[:, 1])
    assert low < lowest[0] < lowest[1] - 0.4
    renderer = rendered(figure)
    apart([*axis.xaxis.get_ticklabels()], renderer)
    apart([*axis.yaxis.get_ticklabels()], renderer)


@pytest.mark.parametrize("varying", ["alpha", "beta"])
def test_one_that_varies_makes_a_curve(varying):
    other = "beta" if varying == "alpha" else "alpha"
    cells = [
        cell(i, scores, **{varying: v, other: 0.3})
        for i, (v, scores) in enumerate(
            [(1.0, [0.5, 0.7]), (0.0, [0.4, 0.5]), (0.1, [0.8]), (10.0, None)]
        )
    ]
    figure = plot_surface(cells, "val_accuracy", "max")
    axis = figure.axes[0]
    assert axis.get_xlabel() == varying
    (bars,) = axis.containers
    curve = bars[0]
    x, y = curve.get_xydata().T
    np.testing.assert_allclose(y, [0.45, 0.8, 0.6])
    np.testing.assert_allclose(x[1:], [-1, 0])
    assert x[0] < -1.4
    assert ticks(axis.xaxis) == ["0", "0.1", "1", "10"]
    segments = bars[2][0].get_segments()  # the cell with one fold has none
    heights = [np.ptp(s[:, 1]) / 2 for s in segments if s.ndim == 2]
    np.testing.assert_allclose(heights, [0.05, 0.1])
    labels = {line.get_label(): line for line in axis.lines}
    np.testing.assert_allclose(labels["best"].get_xydata(), [[-1, 0.8]])
    np.testing.assert_allclose(labels["failed"].get_xdata(), [1])


def test_alpha_alone_is_enough():
    cells = [cell(i, [i / 4], alpha=10.0**i) for i in range(3)]
    figure = plot_surface(cells, "val_accuracy", "max")
    assert "best: alpha = 100: 50.0%" in figure.axes[0].get_title(loc="left")


def test_the_best_over_other_hyperparameters_is_shown():
    # The two places have the same learning rate: it varies all the same.
    cells = [
        cell(i, [score], alpha=a, beta=b, learning_rate=rate, variant="code")
        for i, (a, b, rate, score) in enumerate(
            [(1, 1, 0.1, 0.2), (1, 1, 0.2, 0.4), (2, 2, 0.1, 0.1), (2, 2, 0.2, 0.3)]
        )
    ]
    cells.append(cell(9, alpha=1, beta=1, learning_rate=0.3, variant="code"))
    cells[0].values["tuner/epochs"] = 3
    figure = plot_surface(cells, "val_accuracy", "max")
    title = figure.axes[0].get_title(loc="left")
    assert "at each place the best over learning_rate\n" in title
    (dots,) = figure.axes[0].collections
    assert dots.get_array().tolist() == [0.3, 0.4]


@pytest.mark.parametrize(
    "cells",
    [
        [cell(0, alpha=0.1, beta=0.1)],
        [cell(0, [0.5], alpha=0.1, beta=0.1)],
        [cell(0, [0.5], alpha=0.0, beta=0.0)],
        [cell(i, [0.5, 0.5], alpha=float(i), beta=0.0) for i in range(3)],
        [cell(i, alpha=0.3**i, beta=0.7**i) for i in range(6)],
        [cell(i, [1.0], alpha=1 + i / 100, beta=2 + i / 90) for i in range(9)],
        [cell(0, [0.5], status="RUNNING", alpha=0.1, beta=1.0)._replace(score=None)],
        [cell(0, [math.inf], alpha=0.1, beta=1.0), cell(1, [1.0], alpha=1.0, beta=1.0)],
    ],
)
def test_odd_searches_can_be_drawn(cells, tmp_path):
    for direction in ("max", "min"):
        plot_surface(cells, "val_accuracy", direction, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_all_alike_is_bright():
    cells = [cell(i, [0.5], alpha=a, beta=b) for i, (a, b) in enumerate([(1, 2)])]
    for direction in ("max", "min"):
        figure = plot_surface(cells, "val_accuracy", direction)
        brightest = matplotlib.colormaps["viridis"](1.0)
        assert boxes(figure)[0, 0] == pytest.approx(brightest)
        assert len(figure.axes) == 1  # no colour bar of nothing


def test_files(tmp_path):
    cells = grid(GRID[:2], GRID[:2])
    starts = {"PNG": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for suffix, start in starts.items():
        path = tmp_path / "new" / f"a.{suffix}"
        plot_surface(cells, "val_accuracy", "max", path)
        assert path.read_bytes().startswith(start)
    for bad in ("a", "a.jpeg"):
        with pytest.raises(ValueError, match=r"argument `path`.*\.png, \.pdf or \.svg"):
            plot_surface(cells, "val_accuracy", "max", str(tmp_path / bad))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_pyplot_is_not_needed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for cells in (grid(GRID, GRID), random_cells(), random_cells(1)):
        plot_surface(cells, "val_accuracy", "max", tmp_path / "a.png")


def test_nothing_to_draw():
    for cells in ([], [cell(0, [0.5], learning_rate=0.1)]):
        with pytest.raises(ValueError, match="a number as alpha or beta"):
            plot_surface(cells, "val_accuracy", "max")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0001, 0.001, 0.01, 0.1, 0.2], ["0.0001", "0.001", "0.01", "0.1", "0.2"]),
        ([0.0, 0.0], ["0"]),
        ([0.0, 0.5], ["0", "0.5"]),
        ([10 ** (-4 + i / 9) for i in range(36)], ["0.0001", "0.001", "0.01", "0.1"]),
        ([0.7 + i / 50 for i in range(40)], ["0.8", "1", "1.2", "1.4"]),
    ],
)
def test_ticks(values, labels):
    axis = Figure().subplots()
    LogScale(values).apply(axis.xaxis)
    assert ticks(axis.xaxis) == labels
