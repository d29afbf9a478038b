"""From scores to weights, and what is said of weights that say little."""

import warnings

import numpy as np
import pytest

from keras_delta.attention import ChannelAttention, normalize

TOY = np.array([0.324741, -0.107296, 0.024876, -0.202687, 0.066776])


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def test_softmax_of_sums_on_the_toy_network():
    """The article's, of sums over the three samples; see `test_toy_numbers`."""
    expected = [0.426067, 0.116569, 0.173296, 0.087559, 0.196508]
    np.testing.assert_allclose(softmax(3 * TOY), expected, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ChannelAttention.from_scores(
            {"a": TOY}, "softmax_of_sums", 1.0, samples=3
        )
    np.testing.assert_allclose(found.weights["a"], expected, atol=1e-6)
    np.testing.assert_array_equal(found.scores["a"], TOY.astype("float32"))


@pytest.mark.parametrize("temperature", [0.5, 5.0])
def test_softmax_of_sums_depends_on_the_number_of_samples(temperature):
    for samples in (1, 10):
        found = normalize.weights(TOY, "softmax_of_sums", temperature, samples)
        expected = softmax(samples * TOY / temperature)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    one = normalize.weights(TOY, "softmax_of_sums", temperature, 1)
    np.testing.assert_array_equal(one, normalize.weights(TOY, "softmax", temperature))


def test_softmax_of_sums_needs_the_number_of_samples():
    with pytest.raises(ValueError, match=r"softmax_of_sums.*pass `samples`"):
        ChannelAttention.from_scores({"a": TOY}, "softmax_of_sums")


def test_the_temperature_is_checked():
    with pytest.raises(ValueError, match=r"`temperature`. Expected a positive finite"):
        normalize.weights(TOY, "softmax", 0)


def test_scores_alike_but_for_rounding_are_uniform():
    """Else the z-score would blow up the last bits."""
    scores = np.full(6, 0.1) + np.arange(6) * 1e-18
    scores[3] = np.nextafter(0.1, 1)
    np.testing.assert_allclose(normalize.weights(scores), 1 / 6, rtol=1e-6)
    different = 0.1 + 1e-6 * np.arange(6)
    assert np.ptp(normalize.weights(different)) > 0.05


def test_effective_channels_is_the_share_of_channels_that_count():
    found = ChannelAttention.from_weights(
        {"even": [0.25] * 4, "one": [1, 0, 0, 0, 0], "some": [0.5, 0.25, 0.25]}
    ).effective_channels
    expected = {"even": 1, "one": 0.2, "some": 2**1.5 / 3}
    assert found == pytest.approx(expected)


# --- warnings --------------------------------------------------------------------

SPREAD = np.random.default_rng(0).normal(size=64) * 1e-3


def warned(scores, normalization, temperature=5.0, samples=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ChannelAttention.from_scores(scores, normalization, temperature, samples)
    return [str(w.message) for w in caught]


def test_a_collapse_is_told():
    """As the article's sums over many samples do."""
    scores = {"wide": SPREAD, "other": 2 * SPREAD, "small": [1e4, 0, 0]}
    (text,) = warned(scores, "softmax_of_sums", 5.0, 10**6)
    expected = np.exp(-np.sum((w := softmax(SPREAD * 2e5)) * np.log(w + 1e-300)))
    assert text.startswith("The attention collapses on few channels ('wide': ")
    assert f"'wide': {expected:.1f} of 64, 'other': " in text and "'small'" not in text
    assert '`normalization="standardized"`, or a higher temperature' in text


def test_all_but_uniform_weights_are_told():
    """As a softmax of mean differences, which are small, gives."""
    scores = {"wide": SPREAD, "flat": np.zeros(64), "small": [1e-3, 0, 0]}
    (text,) = warned(scores, "softmax")
    assert text.startswith("The attention of ['wide'] is nearly uniform")
    assert '`normalization="standardized"`, or a lower temperature' in text


@pytest.mark.parametrize(
    ("normalization", "temperature"),
    [("standardized", 5.0), ("standardized", 1.0), ("ratio", 5.0), ("uniform", 5.0)],
)
def test_the_usual_is_passed_over_in_silence(normalization, temperature):
    """Also where scores are all alike, which is no fault of the normalisation."""
    rng = np.random.default_rng(0)
    scores = {
        "normal": SPREAD,
        "heavy tails": rng.standard_t(3, size=200) * 1e-4,
        "one stands out": np.eye(1, 64)[0],
        "alike": np.zeros(64),
        "single": [0.1],
    }
    if normalization != "standardized":
        del scores["one stands out"]
    if temperature == 1.0:
        del scores["one stands out"], scores["heavy tails"]
    assert not warned(scores, normalization, temperature)
