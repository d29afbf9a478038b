"""Rows of results that cannot be compared are refused; failed ones do not count."""

import math
import re

import pytest
from experiments import tables
from known_results import frame, row


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"network": "resnet50"}, "trainings with one value of `network`"),
        ({"schedule": "exponential"}, "trainings with one value of `schedule`"),
        ({"label": "uniform"}, "trainings with one value of `label`"),
        ({"label_noise": 0.2}, "trainings with one value of `label_noise`"),
        ({"alpha": 0.1}, "each seed once in a cell"),
        ({"fold": 1}, "trainings on all training images"),
    ],
)
def test_mixtures_are_refused(change, text):
    given = frame(row(), row(**change))
    with pytest.raises(ValueError, match=text):
        tables.few_shot_table(given)


def test_refusals_say_what_to_do():
    text = re.escape("Choose one, such as frame[frame.network == 'resnet101'].")
    with pytest.raises(ValueError, match=text):
        tables.times(frame(row(), row(network="resnet50", seed=1)))
    with pytest.raises(ValueError, match=r"Unknown name for `frame`. .*'accuracy'"):
        tables.times(frame(row()).drop(columns="accuracy"))


def test_failed_trainings_do_not_count():
    given = frame(row(), row(seed=1, accuracy=math.nan, correct="0000"))
    given.loc[1, "accuracy"] = math.nan
    assert tables.few_shot_table(given).frame.iloc[0, 0] == "75.0"
