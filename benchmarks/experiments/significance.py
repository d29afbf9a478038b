"""Which differences are more than chance, and what tables say of that."""

from experiments import notation
from experiments.bootstrap import adjust, compare
from experiments.rows import methods, settings

LEVEL = 0.05  # of the stars
FEW = 6  # seeds, from which on all of them agree by chance in less than 5 %
BOOTSTRAP = "two-level paired bootstrap over seeds and test images"


def against(rows, reference, mean=False):
    """A method compared with each of the others, adjusted as one family.

    With `mean`, in the mean over the settings alone.
    """
    mine = rows[rows["method"] == reference]
    found = {
        m: compare(mine, rows[rows["method"] == m], settings(rows))
        for m in methods(rows)
        if m != reference
    }
    if mean and len(settings(rows)) > 1:
        found = {m: {None: cases[None]} for m, cases in found.items()}
    adjust(found.values())
    return found


def star(case):
    """` *` for a significant `Case`; nothing for another one, or None."""
    significant = case is not None and case.interval and case.adjusted < LEVEL
    return " *" if significant else ""


def change(case, some=""):
    """A `Case` as a table's cell, `+1.3 [+0.4, +2.2] *`; `MISSING` without one."""
    if case is None or case.interval is None:
        return notation.MISSING
    i = case.interval
    return f"{notation.points(i.difference)} {notation.limits(i)}{some}{star(case)}"


def warning(comparisons):
    """The sentence a caption needs where there are few seeds, after a space; or ""."""
    cases = [case.interval for found in comparisons for case in found.values()]
    least = min((i.seeds for i in cases if i), default=FEW)
    if least == 1:
        return " Where there is one seed, nothing is said about other seeds."
    if least < FEW:
        return (
            f" All {least} seeds agree by chance in 1 of {2 ** (least - 1)} cases: "
            "single differences need care, those over all data are safer."
        )
    return ""
