"""Frames of results as a `ResultStore` gives them, small enough to work out."""

import pandas as pd


def row(method="delta", dataset="cub", per_class=None, seed=0, correct="1110", **given):
    values = {
        "dataset": dataset,
        "per_class": per_class,
        "network": "resnet101",
        "augmentation": "default",
        "schedule": "step",
        "method": method,
        "label": "",
        "factor": "",
        "alpha": 0.01,
        "beta": 0.01,
        "seed": seed,
        "accuracy": correct.count("1") / len(correct),
        "correct": correct,
        "seconds": 10.0,
        "prepare_seconds": 2.0,
        "curve": None,
        "label_noise": 0.0,
        "corrupted": None,
    }
    return {**values, **given}


def frame(*rows):
    return pd.DataFrame(list(rows))


def few():
    """DELTA 75 and 100 %, L2 50 and 50 %; with all images DELTA 100 %, once."""
    return frame(
        row("delta", per_class=10, seed=0, correct="1110"),
        row("delta", per_class=10, seed=1, correct="1111"),
        row("l2", per_class=10, seed=0, correct="1100"),
        row("l2", per_class=10, seed=1, correct="0110"),
        row("delta", seed=0, correct="1111"),
    )


def wide():
    """Forty images; DELTA beats L2 in every seed and setting, L2-SP is no other."""
    made = []
    for dataset in ("food101", "indoor67"):
        for seed in range(3):
            good = "1" * (36 + seed % 2) + "0" * (4 - seed % 2)
            made += [
                row("delta", dataset, 5, seed, good),
                row("l2_sp", dataset, 5, seed, good),
                row("l2", dataset, 5, seed, "1" * 20 + "0" * 20),
            ]
    return frame(*made)
