"""Turns scores (loss increase per channel) into weights that sum to 1."""

import numpy as np

from keras_delta import _arguments
from keras_delta._errors import invalid, warn

ROUNDING = 1e-12  # of scores, which are sums in float64
NARROW, EVEN = 0.1, 0.999  # of the channels; see `warn_of_extremes`


def standardized(scores, temperature):
    """`softmax(zscore(scores) / temperature)`, as in the authors' program.

    Scores that are equal up to rounding give uniform weights.
    """
    deviation = scores.std()
    if deviation <= ROUNDING * np.abs(scores).max():
        return uniform(scores, temperature)
    return softmax((scores - scores.mean()) / deviation, temperature)


def softmax(scores, temperature):
    """`softmax(scores / temperature)`."""
    z = scores / temperature
    e = np.exp(z - z.max())
    return e / e.sum()


def ratio(scores, temperature):
    """`max(scores, 0)` divided by its sum; uniform if no score is positive."""
    rectified = np.maximum(scores, 0)
    total = rectified.sum()
    return rectified / total if total > 0 else uniform(scores, temperature)


def uniform(scores, temperature):
    """`1 / C`."""
    return np.full(len(scores), 1 / len(scores))


ALL = {
    "standardized": standardized,
    "softmax": softmax,
    "softmax_of_sums": softmax,  # the article's: of sums over the samples
    "ratio": ratio,
    "uniform": uniform,
}


def weights(scores, normalization="standardized", temperature=5.0, samples=None):
    """Weights of one tap.

    Args:
        scores: `(C,)` mean loss increase when a channel is zeroed.
        normalization: `"standardized"`, `"softmax"`, `"softmax_of_sums"`, `"ratio"`
            or `"uniform"`.
        temperature: divisor of the softmax's argument; the authors' is 5.
        samples: number of samples behind the means, for `"softmax_of_sums"`.

    Returns:
        `(C,)` float32, non-negative, sum 1.

    Raises:
        TypeError, ValueError: if the normalization is unknown, the temperature is
            not positive, or scores are not finite.
    """
    _arguments.choice("normalization", normalization, ALL)
    temperature = _arguments.number("temperature", temperature, above=0)
    scores = np.asarray(scores, "float64")
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(
            invalid("scores", "a vector of finite numbers", scores.tolist())
        )
    if normalization == "softmax_of_sums":
        if samples is None:
            raise ValueError(
                '`normalization="softmax_of_sums"` needs the number of samples behind '
                "the mean scores: pass `samples`."
            )
        scores = scores * samples
    return ALL[normalization](scores, temperature).astype("float32")


def perplexity(weights):
    """`exp(entropy)`: how many channels the weights are spread over, 1 to C."""
    w = np.asarray(weights, "float64")
    w = w[w > 0] / w.sum()
    return float(np.exp(-(w * np.log(w)).sum()))


def warn_of_extremes(weights, scores, normalization):
    """Warn if weights collapse on few channels or are nearly uniform.

    Args:
        weights, scores: dict tap -> `(C,)`.
        normalization: that turned the scores into the weights.
    """
    wide = {tap: w for tap, w in weights.items() if len(w) >= 1 / NARROW}
    shares = {tap: perplexity(w) / len(w) for tap, w in wide.items()}
    if narrow := [tap for tap in wide if shares[tap] < NARROW]:
        spread = ", ".join(
            f"'{tap}': {perplexity(wide[tap]):.1f} of {len(wide[tap])}"
            for tap in narrow
        )
        warn(
            f"The attention collapses on few channels ({spread}): alpha then acts "
            "on these alone and may need to be smaller. Use "
            '`normalization="standardized"`, or a higher temperature.'
        )
    even = [tap for tap in wide if shares[tap] > EVEN and scores[tap].std() > 0]
    if even and normalization != "uniform":
        warn(
            f"The attention of {even} is nearly uniform and so not informative. Use "
            '`normalization="standardized"`, or a lower temperature.'
        )
