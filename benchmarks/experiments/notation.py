"""How accuracies, differences and p values are written in the cells of tables."""

import numpy as np

MISSING = "–"
ACCURACY = "Test accuracy in percent, mean ± standard deviation over seeds"


def mean(shares, count=False):
    """`88.1 ± 1.3 (3)` of accuracies from 0 to 1; one value has no ±.

    `count` says whether to add their number; no values give `MISSING`.
    """
    values = 100 * np.asarray(shares, "float64")
    if not len(values):
        return MISSING
    text = f"{values.mean():.1f}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1):.1f}"
    return f"{text} ({len(values)})" if count else text


def means(cells):
    """Dict of accuracies to (function that writes a key's mean, end of the caption).

    Numbers of seeds stand in the cells where they differ, else in the caption.
    """
    numbers = {len(values) for values in cells.values()}
    seeds = "".join(f", {n} in each cell" for n in numbers)
    if len(numbers) > 1:
        seeds = " (their number in brackets)"
    return lambda key: mean(cells.get(key, ()), len(numbers) > 1), seeds


def points(share):
    """A difference of shares in points, `+1.3`."""
    return signed(100 * share)


def signed(value):
    """A number with its sign and one decimal; 0 has no sign."""
    text = f"{value:+.1f}".replace("-", "−")
    return text if text.strip("+−0.") else "0.0"


def limits(interval):
    """The ends of an `Interval` in points, `[+0.4, +2.2]`."""
    return f"[{points(interval.low)}, {points(interval.high)}]"


def p_value(value):
    """`0.012`, or `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
