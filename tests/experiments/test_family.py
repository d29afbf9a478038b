"""Tables of the family, on results whose means are easy to see."""

import numpy as np
import pandas as pd
import pytest
from experiments import family

SETTINGS = (("flowers", 10), ("trash", 10), ("trash", 40))
METHODS = {"l2": 0.5, "feature_map": 0.75, "bss": 0.25}


def make_frame(methods=METHODS, seeds=2, images=16):
    """A method is right on its share of the images, one less with wrong labels."""
    rows = []
    for label, share in methods.items():
        for dataset, per_class in SETTINGS:
            for noise in (0.0, 0.2):
                for seed in range(seeds):
                    right = int(share * images) - (noise > 0)
                    row = {"dataset": dataset, "per_class": per_class, "seed": seed}
                    row |= {"method": "recipe", "label": label, "label_noise": noise}
                    row["accuracy"] = right / images
                    row["correct"] = "1" * right + "0" * (images - right)
                    row |= {"calibration_error": 0.1, "factor": ""}
                    row |= {"seconds": 8 * share, "prepare_seconds": 2 * share}
                    rows.append(row)
    return pd.DataFrame(rows)


def test_table():
    found = family.family_table(make_frame())
    assert "(2 with right labels, 2 with 20% wrong labels)" in found.caption
    table = found.frame
    assert list(table.index) == ["DELTA w/o ATT", "L2", "BSS"]  # best first
    assert table["flowers, 10 a class"].tolist() == ["75.0", "50.0", "25.0"]
    assert table["mean, right labels"].tolist() == ["75.0", "50.0", "25.0"]
    assert table["mean, 20% wrong labels"].tolist() == ["68.8", "43.8", "18.8"]
    assert table["calibration error"].tolist() == ["10.0"] * 3
    assert table["times L2"].tolist() == ["1.50", "1.00", "0.50"]
    assert table["alpha"].tolist() == ["–"] * 3
    frame = make_frame()
    frame["alpha"] = frame["label"].map({"bss": 0.01})
    assert family.family_table(frame).frame["alpha"].tolist() == ["–", "–", "0.01"]


def test_means_are_over_what_all_have():
    frame = make_frame()
    lost = (frame["label"] == "bss") & (frame["per_class"] == 40)
    frame.loc[frame["per_class"] == 40, "accuracy"] = 1.0
    table = family.family_table(frame[~lost])
    assert table.frame["mean, right labels"].tolist() == ["75.0", "50.0", "25.0"]
    assert table.frame["trash, 40 a class"].tolist() == ["100.0", "100.0", "–"]
    assert "over 2 settings" in table.caption
    lost = (frame["label"] == "bss") & (frame["label_noise"] > 0)
    table = family.family_table(frame[~lost])  # of right labels all is known
    assert "over 3 and 0 settings" in table.caption
    assert table.frame["mean, right labels"].tolist() == ["83.3", "66.7", "50.0"]
    assert table.frame["mean, 20% wrong labels"].tolist() == ["–"] * 3
    assert table.frame["times L2"].tolist() == ["1.50", "1.00", "0.50"]
    frame["calibration_error"] = np.nan
    table = family.family_table(frame)
    assert table.frame["calibration error"].tolist() == ["–"] * 3


def test_differences():
    table = family.family_differences(make_frame(images=64), "feature_map").frame
    assert list(table.index) == ["L2", "BSS"]
    assert table.loc["BSS", "right labels"].startswith("−50.0 [")
    assert table.loc["L2", "20% wrong labels"].startswith("−25.0 [")
    with pytest.raises(ValueError, match="reference"):
        family.family_differences(make_frame(), "lwf")


def test_ranks():
    figure = family.rank_diagram(make_frame({**METHODS, "at": 0.9}))
    words = " ".join(t.get_text() for t in figure.findobj() if hasattr(t, "get_text"))
    assert "4 methods over 6 blocks" in words
    assert "(4) BSS" in words and "AT (1)" in words
