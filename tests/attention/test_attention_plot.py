"""The picture of attention."""

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
        heights = axis.lines[0].get_ydata()
        expected = np.sort(weights)[::-1] * len(weights)
        np.testing.assert_allclose(heights, expected, rtol=1e-6)
        most = str(int(np.argmax(weights)))
        assert f"most: {most}" in axis.texts[0].get_text()


def test_plot_leaves_pyplot_alone(attention):
    """No window, no backend: also on a machine without a screen."""
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    attention.plot()
    assert pyplot.get_fignums() == before


def test_plot_of_one_tap(attention):
    one = ChannelAttention.from_weights({"only": attention.weights["first"]})
    assert len(one.plot().axes) == 1
