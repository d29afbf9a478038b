"""Writes the tables and pictures of an experiment, as far as it is done."""

from collections import Counter
from pathlib import Path

from experiments import family, figures, searched, studies, tables
from keras_delta._plotting import save_figure

STUDENTS = [("students", lambda f: tables.ablation_table(f, studies.ALONE[1]), None)]
FAMILY = [
    ("accuracy", family.family_table, None),
    ("differences", lambda f: family.family_differences(f, studies.OF_REFERENCE), None),
    ("ranks", family.rank_diagram, None),
]
PARTS = {  # of each experiment: (stem, what makes it, which method it needs)
    "table-1": [("article", tables.article_table, None)],
    "table-2": [("article", lambda frame: tables.article_table(frame, 2), None)],
    "figure-3": [("curves", figures.curves, None)],
    "few-shot": [
        ("accuracy", tables.few_shot_table, None),
        ("differences", tables.differences, "delta"),
        ("strengths", tables.strengths_table, None),
        ("times", tables.times, None),
        ("curves", figures.few_shot_curves, None),
    ],
    "why": [
        ("ablation", lambda f: tables.ablation_table(f, studies.REFERENCE[1]), None),
        ("strengths", lambda f: figures.strength_curve(_strengths(f)), None),
    ],
    "start": [
        ("heads", lambda f: tables.ablation_table(f, studies.FROM_RANDOM[1]), None)
    ],
    "recipe": [
        ("parts", lambda f: tables.ablation_table(f, studies.AS_IT_IS[1]), None)
    ],
    "family": FAMILY,
    "family-plain": FAMILY,
    "distances": [("parts", lambda f: tables.ablation_table(f, studies.EVEN[1]), None)],
    "distillation": STUDENTS,
    "domains": STUDENTS,
    "search": [
        ("choice", lambda f: searched.search_table(f, studies.AS_IT_IS[1]), None),
        ("candidates", searched.candidates_table, None),
    ],
    "averages": [
        ("accuracy", lambda f: tables.robustness_table(tables.by_label(f)), None),
        (
            "differences",
            lambda f: tables.robustness_differences(
                tables.by_label(f), studies.AVERAGES[0][1]
            ),
            None,
        ),
        ("losses", lambda f: tables.losses_table(tables.by_label(f)), None),
    ],
    "bench": [
        ("accuracy", lambda f: tables.few_shot_table(f, "recipe", mean=True), None),
        ("means", lambda f: tables.differences(f, "recipe", mean=True), "recipe"),
        ("differences", lambda f: tables.differences(f, "recipe"), "recipe"),
        ("times", tables.times, None),
    ],
    "robustness": [
        ("accuracy", tables.robustness_table, None),
        ("differences", tables.robustness_differences, "delta"),
    ],
}


def write(name, plan, store, folder):
    """Print the tables of an experiment of `PARTS` and write them, with their rows.

    Cells of its `Plan` without a result in the `ResultStore` are left out.
    """
    folder = Path(folder)
    cells = plan.results(store)
    frame, failed = store.frame(cells), store.failed(cells)
    paths = store.save(cells, folder / name)
    if folds := plan.folds():
        paths += store.save(folds, folder / f"{name}-choices")
    for stem, make, needed in PARTS[name] if len(frame) else ():
        if needed and needed not in set(frame["method"]):
            continue
        part = make(frame)
        if isinstance(part, tables.Table):
            part.caption += _left_out(failed)
            print(f"\n{part.text()}")
            paths += part.save(folder / f"{name}-{stem}")
        else:
            paths.append(folder / f"{name}-{stem}.png")
            save_figure(part, paths[-1])
    print()
    for cell, reason in failed:
        print(f"failed: {cell}: {reason.splitlines()[0]}")
    for entry in plan.lost(store):
        tried = [alpha for alpha, _ in entry.choice.pairs]
        print(f"failed: {entry.cell}: each alpha of {tried} failed in some fold")
    for path in paths:
        print(f"  {path}")


def _left_out(failed):
    """A sentence on the trainings that no number of a table knows of."""
    if not failed:
        return ""
    counts = Counter(cell.title for cell, _ in failed)
    each = "; ".join(f"{title} ({n})" for title, n in counts.items())
    return f" Trainings that failed, and are in no number: {each}."


def _strengths(frame):
    return frame[frame["factor"].isin(("alpha", studies.REFERENCE[0]))]
