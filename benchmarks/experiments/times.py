"""The table of processor seconds."""

import numpy as np

from experiments.notation import MISSING
from experiments.published import method_name
from experiments.rows import PLAIN, finished, methods, settings
from experiments.table import Table

SECONDS = ["seconds", "both"]  # of a training, and with what comes before it


def times(frame):
    """Processor seconds of the methods, also relative to L2.

    Ratios are of mean seconds within a setting, then averaged over the settings that
    have both methods, so that data sets of other sizes do not mix.

    Args:
        frame: of results of one network, augmentation and schedule.

    Returns:
        `Table`; rows methods.

    Raises:
        ValueError: as `finished`.
    """
    rows = finished(frame, PLAIN)
    rows = rows[rows["seconds"].notna()]
    rows = rows.assign(both=rows["seconds"] + rows["prepare_seconds"])
    cells = rows.groupby(["setting", "method"], sort=False)
    means = {key: part[SECONDS].mean() for key, part in cells}
    body = {"seconds": [], "prepare s": [], "times L2": [], "times L2, prepared": []}
    body |= {"trainings": [], "settings": []}
    for method in methods(rows):
        mine = rows[rows["method"] == method]
        ratios = [
            means[setting, method] / means[setting, "l2"]
            for setting in settings(mine)
            if (setting, "l2") in means
        ]
        relative = [MISSING] * 2
        if ratios:
            relative = [f"{ratio:.2f}" for ratio in np.mean(ratios, axis=0)]
        line = [f"{mine[s].mean():.1f}" for s in ("seconds", "prepare_seconds")]
        line += [*relative, str(len(mine)), str(len(ratios))]
        for column, cell in zip(body.values(), line, strict=True):
            column.append(cell)
    caption = (
        "Processor seconds of a training and of what comes before it, mean over all "
        "trainings; ratios within a setting, mean over the settings that have both "
        "methods."
    )
    index = [method_name(m) for m in methods(rows)]
    return Table.of("Time", body, index, ("method",), caption)
