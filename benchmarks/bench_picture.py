"""The README's picture: how far other ways to fine-tune are behind the recipe.

    python benchmarks/bench_picture.py [--rows docs/results/bench.csv]

Dots are mean differences over all settings; lines are their 95 % intervals.
"""

import argparse
from pathlib import Path

import pandas as pd
from experiments.rows import PLAIN, finished, method_name
from experiments.significance import against
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
INK, DOT = "#444444", "#0072b2"


def draw(frame, reference="recipe"):
    """A `matplotlib.figure.Figure` of a frame of results."""
    rows = finished(frame, PLAIN)
    cases = against(rows, reference, mean=True)
    intervals = {method_name(m): found[None].interval for m, found in cases.items()}
    lines = sorted(intervals.items(), key=lambda line: line[1].difference)
    means = rows.groupby(["method", "setting"])["accuracy"].mean().groupby("method")
    best = 100 * means.mean()[reference]
    figure = Figure(figsize=(7.2, 0.36 * len(lines) + 1.3), layout="constrained")
    axis = figure.add_subplot()
    for i, (_, interval) in enumerate(lines):
        low, middle, high = (
            -100 * v for v in (interval.low, interval.difference, interval.high)
        )
        axis.plot([low, high], [-i, -i], color=DOT, linewidth=3, alpha=0.45)
        axis.plot(middle, -i, "o", color=DOT)
        axis.annotate(
            f"{middle:.1f}".replace("-", "−"),
            (middle, -i),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
    axis.axvline(0, color="#d55e00", linewidth=1.5)
    axis.annotate(
        f"recipe {best:.1f} %", (0, 0.75), ha="right", color="#d55e00", fontsize=9
    )
    axis.set_yticks([-i for i in range(len(lines))], [name for name, _ in lines])
    axis.set_ylim(0.6 - len(lines), 1.3)
    axis.set_xlabel(
        "points of test accuracy behind the recipe, mean of "
        f"{rows['setting'].nunique()} settings, 95 % intervals"
    )
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.3)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", type=Path, default=ROOT / "docs/results/bench.csv")
    add("--output", type=Path, default=ROOT / "docs/images/bench.png")
    args = parser.parse_args()
    frame = pd.read_csv(args.rows, dtype={"correct": str})
    draw(frame).savefig(args.output, dpi=160)
    print(args.output)


if __name__ == "__main__":
    main()
