"""The picture of attention."""

import re

import numpy as np
import pytest

from keras_delta.attention import ChannelAttention


@pytest.fixture
def attention():
    """Three taps of different widths."""
    rng = np.random.default_rng(0)
    return ChannelAttention.from_scores(
        {"first": rng.normal(size=8), "second": rng.normal(size=16), "third": [1.0, 2]}
    )


def only(weights, tap="only"):
    """The single axis of the picture of one tap."""
    (axis,) = ChannelAttention.from_weights({tap: weights}).plot().axes
    return axis


def curve(axis):
    """What is drawn, (values, lower edge)."""
    filled, outline = axis.patches
    np.testing.assert_array_equal(filled.get_data().values, outline.get_data().values)
    return filled.get_data().values, filled.get_data().baseline


@pytest.mark.parametrize("suffix, magic", [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plot_writes_a_file(suffix, magic, attention, tmp_path):
    from matplotlib.figure import Figure

    figure = attention.plot(tmp_path / f"a{suffix}")
    assert isinstance(figure, Figure)
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(magic)


def test_plot_shows_every_tap_sorted_in_units_of_the_uniform_weight(attention):
    figure = attention.plot()
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == list(attention.weights)
    for axis, weights in zip(shown, attention.weights.values(), strict=True):
        heights, low = curve(axis)
        expected = np.sort(weights)[::-1] * len(weights)
        np.testing.assert_allclose(heights, expected, rtol=1e-6)
        assert axis.get_yscale() == "linear" and low == 0
        assert expected[0] < axis.get_ylim()[1]


def test_plot_names_and_marks_both_ends():
    axis = only([0.1, 0.3, 0.05, 0.2, 0.06, 0.15, 0.14])
    assert "most: 1, 3, 5   least: 2, 4, 0" in axis.texts[0].get_text()
    (marks,) = [line for line in axis.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(marks.get_xdata(), [1, 2, 3, 5, 6, 7])
    np.testing.assert_allclose(
        marks.get_ydata(), np.array([0.3, 0.2, 0.15, 0.1, 0.06, 0.05]) * 7, rtol=1e-6
    )


def test_plot_names_no_channel_on_both_sides():
    assert "most: 1   least: 2\n" in only([0.3, 0.5, 0.2]).texts[0].get_text() + "\n"


@pytest.mark.parametrize("weights", [[1.0], [0.25] * 4], ids=["one", "uniform"])
def test_plot_of_weights_that_are_all_alike(weights):
    axis = only(weights)
    words = axis.texts[0].get_text()
    assert words == (
        f"{len(weights)} of {len(weights)} channels effective\nall weights are alike"
    )
    np.testing.assert_allclose(curve(axis)[0], 1)
    ticks = axis.get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))  # there is no channel 0.6


def test_an_outlier_does_not_flatten_the_rest():
    weights = np.linspace(0.9, 1.1, 256)
    weights[7] = 17
    axis = only(weights)
    assert axis.get_yscale() == "log"
    heights, low = curve(axis)
    relative = np.sort(weights)[::-1] / weights.mean()
    np.testing.assert_allclose(heights, relative, rtol=1e-5)
    assert 0 < low < relative[-1] and axis.get_ylim()[1] > relative[0]
    axis.figure.draw_without_rendering()
    labels = [t.get_text() for t in axis.get_yticklabels()]
    assert {"1", "10"} <= set(labels)  # not 10^0
    assert axis.texts[0].get_text().splitlines()[1].startswith("most: 7,")


@pytest.mark.parametrize("ratio, scale", [(7.9, "linear"), (8.1, "log")])
def test_scale_follows_the_span_of_positive_weights(ratio, scale):
    assert only([1.0, ratio]).get_yscale() == scale
    with_zero = only([1.0, 0.0, ratio])
    assert with_zero.get_yscale() == scale
    assert ", 1 zero\n" in with_zero.texts[0].get_text()


def test_zeros_and_tiny_weights_lie_on_the_lower_edge_of_a_log_axis():
    """`"ratio"` gives zeros; one weight of 1e-9 must not take the whole axis."""
    scores = {"a": [5.0, 1.0, 0.1, 1e-9, -1.0, 0.0]}
    attention = ChannelAttention.from_scores(scores, "ratio")
    (axis,) = attention.plot().axes
    heights, low = curve(axis)
    assert axis.get_yscale() == "log"
    np.testing.assert_allclose(heights[:3], np.array([5, 1, 0.1]) / 6.1 * 6, rtol=1e-5)
    np.testing.assert_array_equal(heights[3:], low)
    assert low == axis.get_ylim()[0] and 1e-4 < low < 1e-3
    words = axis.texts[0].get_text()
    assert ", 2 zero, 1 below 0.001\nmost: 0, 1, 2   least: 5, 4, 3" in words


def test_long_names_lose_their_middle():
    name = "backbone/" + "very_" * 30 + "long/block7_add"
    title = only([0.5, 0.3, 0.2], name).get_title(loc="left")
    assert len(title) <= 45
    start, end = title.split("…")
    assert name.startswith(start) and name.endswith(end)
    assert len(start) > 15 and len(end) > 15
    assert only([0.6, 0.4], "short/name").get_title(loc="left") == "short/name"


def test_many_taps_do_not_overlap():
    rng = np.random.default_rng(0)
    names = [
        f"model/block{i}/repeat_{i}_project_batch_normalization" for i in range(12)
    ]
    figure = ChannelAttention.from_scores(
        {name: rng.normal(size=2000) for name in names}, temperature=1.0
    ).plot()
    figure.draw_without_rendering()
    boxes = [axis.get_tightbbox() for axis in figure.axes]
    assert len(boxes) == 12
    for i, a in enumerate(boxes):
        assert a.x0 >= 0 and a.y0 >= 0
        assert a.x1 <= figure.bbox.x1 and a.y1 <= figure.bbox.y1
        assert not any(a.overlaps(b) for b in boxes[:i])


def test_numbers_of_channels_are_written_out():
    words = only(np.linspace(1, 1.1, 2048)).texts[0].get_text()
    assert re.match(r"\d{4} of 2048 channels effective", words)


def test_plot_is_grey(attention, tmp_path):
    from matplotlib.image import imread

    attention.plot(tmp_path / "a.png")
    red, green, blue = np.moveaxis(imread(tmp_path / "a.png")[..., :3], -1, 0)
    np.testing.assert_allclose(red, green, atol=0.01)
    np.testing.assert_allclose(red, blue, atol=0.01)


def test_plot_leaves_pyplot_alone(attention):
    """No window, no backend: also on a machine without a screen."""
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    attention.plot()
    assert pyplot.get_fignums() == before


def test_plot_of_one_tap(attention):
    one = ChannelAttention.from_weights({"only": attention.weights["first"]})
    assert len(one.plot().axes) == 1
