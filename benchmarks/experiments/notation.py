"""How accuracies, differences and p values are written in the cells of tables."""

import numpy as np

MISSING = "–"
ACCURACY = "Test accuracy in percent, mean ± standard deviation over seeds"


def mean(shares, count=False):
    """`88.1 ± 1.3 (3)` of accuracies as shares; one value has no ±.

    Args:
        shares: from 0 to 1; none gives `MISSING`.
        count: whether to add their number.
    """
    values = 100 * np.asarray(shares, "float64")
    if not len(values):
        return MISSING
    text = f"{values.mean():.1f}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1):.1f}"
    return f"{text} ({len(values)})" if count else text


def seeds(numbers):
    """What is said of the numbers of seeds in a table's cells.

    Args:
        numbers: of the seeds of each cell.

    Returns:
        (whether each cell has to give its own, what the caption says after "seeds").
    """
    numbers = set(numbers)
    if len(numbers) > 1:
        return True, " (their number in brackets)"
    return False, "".join(f", {n} in each cell" for n in numbers)


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
