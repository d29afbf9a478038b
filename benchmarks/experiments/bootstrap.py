"""Two methods' rows of a table of results, compared by the two-level bootstrap."""

from typing import NamedTuple

import numpy as np

from keras_delta._errors import invalid
from keras_delta.statistics import Interval, holm, paired_interval, pooled_interval


class Case(NamedTuple):
    """A comparison in one setting, or over all; see `compare`."""

    interval: Interval | None  # None: no seed in common
    settings: int  # with a seed in common
    adjusted: float | None = None  # p, by `adjust`


def paired_arrays(rows, other):
    """The arrays of `paired_interval` from two methods' rows of a frame of results."""
    a, b = (
        {s: c for s, c in zip(r["seed"], r["correct"], strict=True) if _is_text(c)}
        for r in (rows, other)
    )
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    lengths = sorted({len(c[s]) for c in (a, b) for s in seeds})
    if len(lengths) > 1:
        remedy = "Compare trainings that were tested on the same images."
        expected = "strings of one length"
        raise ValueError(invalid("correct", expected, lengths, remedy))
    return tuple(
        np.array([np.frombuffer(c[s].encode(), "uint8") == ord("1") for s in seeds])
        for c in (a, b)
    )


def compare(rows, other, settings):
    """Compare two methods (or conditions) in each setting and over all of them."""
    arrays = {
        s: paired_arrays(rows[rows["setting"] == s], other[other["setting"] == s])
        for s in settings
    }
    found = {
        s: Case(None if pair is None else paired_interval(*pair), int(pair is not None))
        for s, pair in arrays.items()
    }
    if len(found) > 1:
        there = {s: pair for s, pair in arrays.items() if pair is not None}
        datasets = [dataset for dataset, _ in there]
        pooled = pooled_interval(there.values(), datasets) if there else None
        found[None] = Case(pooled, len(there))
    return found


def adjust(comparisons):
    """Set `adjusted` of all cases of several comparisons: one family of `holm`."""
    places = [(c, s) for c in comparisons for s, case in c.items() if case.interval]
    p = [c[s].interval.p_value for c, s in places]
    for (c, s), value in zip(places, holm(p), strict=True):
        c[s] = c[s]._replace(adjusted=float(value))


def _is_text(value):
    return isinstance(value, str) and value != ""
