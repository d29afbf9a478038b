"""Rows of two methods, paired by seed and compared; see `tests/test_statistics.py`."""

import numpy as np
import pandas as pd
import pytest
from experiments.bootstrap import adjust, compare, paired_arrays

from keras_delta.statistics import holm, paired_interval, pooled_interval


def rows(setting, **correct):
    seeds = [int(k[1:]) for k in correct]
    return pd.DataFrame(
        {"setting": [setting] * len(seeds), "seed": seeds, "correct": correct.values()}
    )


def test_arrays_of_common_seeds():
    a = rows(("cub", 5), s2="110", s0="101", s5="000")
    b = rows(("cub", 5), s0="001", s1="111", s2="010", s5=None)
    left, right = paired_arrays(a, b)
    np.testing.assert_array_equal(left, [[1, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(right, [[0, 0, 1], [0, 1, 0]])
    assert left.dtype == bool
    assert paired_arrays(a, rows(("cub", 5), s7="111")) is None


def test_arrays_of_other_images():
    a, b = rows(("cub", 5), s0="110"), rows(("cub", 5), s0="11")
    text = r"`correct`. Expected strings of one length. Received: correct=\[2, 3\]"
    with pytest.raises(ValueError, match=text):
        paired_arrays(a, b)


def test_compare_and_adjust():
    five, ten = ("cub", 5), ("cub", 10)
    a = pd.concat([rows(five, s0="1101", s1="1111"), rows(ten, s0="1111")])
    b = rows(five, s0="1001", s1="0111")
    found = compare(a, b, [five, ten])
    assert list(found) == [five, ten, None]
    pair = paired_arrays(a[a["setting"] == five], b)
    assert found[five] == (paired_interval(*pair), 1, None)
    assert found[ten] == (None, 0, None)
    assert found[None] == (pooled_interval([pair]), 1, None)
    other = compare(a, a, [five])
    assert list(other) == [five]
    adjust([found, other])
    p = [found[five].interval.p_value, found[None].interval.p_value, 1.0]
    adjusted = [found[five].adjusted, found[None].adjusted, other[five].adjusted]
    assert adjusted == pytest.approx(list(holm(p)))
    assert found[ten].adjusted is None
