"""Writes the tables and pictures of an experiment, as far as it is done."""

from collections import Counter
from pathlib import Path

from experiments import figures, studies, tables


def write(name, plan, store, folder):
    """Print the tables of an experiment and write them with their rows to a folder.

    Args:
        name: `"table-1"`, `"table-2"`, `"figure-3"`, `"few-shot"`, `"why"` or
            `"robustness"`.
        plan: its `Plan`; cells without a result are left out.
        store: the `ResultStore`.
        folder: path; made if there is none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cells = plan.results(store)
    frame, failed = store.frame(cells), store.failed(cells)
    made = store.save(cells, folder / name)
    if folds := plan.folds():
        made += store.save(folds, folder / f"{name}-choices")
    if len(frame):
        for stem, table in _tables(name, frame):
            table.caption += _left_out(failed)
            print(f"\n{table.text()}")
            made += table.save(folder / f"{name}-{stem}")
        for stem, draw, rows in _figures(name, frame):
            path = folder / f"{name}-{stem}.png"
            draw(rows, path)
            made.append(path)
    print()
    for one, reason in failed:
        print(f"failed: {one}: {reason.splitlines()[0]}")
    for entry in plan.lost(store):
        tried = [alpha for alpha, _ in entry.choice.pairs]
        print(f"failed: {entry.cell}: each alpha of {tried} failed in some fold")
    for path in made:
        print(f"  {path}")


def _left_out(failed):
    """A sentence on the trainings that no number of a table knows of."""
    if not failed:
        return ""
    counts = Counter(cell.title for cell, _ in failed)
    each = "; ".join(f"{title} ({n})" for title, n in counts.items())
    return f" Trainings that failed, and are in no number: {each}."


def _tables(name, frame):
    if name.startswith("table-"):
        number = int(name[-1])
        return [("article", tables.article_table(frame, number))]
    if name == "few-shot":
        found = [("accuracy", tables.few_shot_table(frame))]
        if "delta" in set(frame["method"]):
            found.append(("differences", tables.differences(frame)))
        found.append(("strengths", tables.strengths_table(frame)))
        return [*found, ("times", tables.times(frame))]
    if name == "why":
        return [("ablation", tables.ablation_table(frame, studies.REFERENCE[1]))]
    if name == "robustness":
        found = [("accuracy", tables.robustness_table(frame))]
        if "delta" in set(frame["method"]):
            found.append(("differences", tables.robustness_differences(frame)))
        return found
    return []


def _figures(name, frame):
    """List of (stem, function of rows and path, rows)."""
    if name == "figure-3":
        return [("curves", figures.curves, frame)]
    if name == "few-shot":
        return [("curves", figures.few_shot_curves, frame)]
    if name == "why":
        strengths = frame["factor"].isin(("alpha", studies.REFERENCE[0]))
        return [("strengths", figures.strength_curve, frame[strengths])]
    return []
