"""`Plan`: which cells an experiment needs, now and once strengths are chosen."""

import functools
from dataclasses import dataclass

import numpy as np

from keras_delta._errors import invalid
from experiments.cell import Cell

EQUAL = 1e-9  # accuracies that differ by no more are a tie


@dataclass(frozen=True)
class Choice:
    """A cross-validated choice of strengths, on training images alone.

    Of equal mean accuracies over the folds, the smaller alpha + beta wins. A pair with
    a failed fold, one that diverged, is out.

    Args:
        of: tuple of the `Cell`s whose training images are cut into folds; all of them
            get the same strengths, their own do not matter.
        pairs: tuple of (alpha, beta); None is the regularizer's own default.
        folds: number of folds.
        held_out: how many of the folds are tested on in turn; None: all.
    """

    of: tuple
    pairs: tuple
    folds: int
    held_out: int | None = None

    @functools.cached_property
    def cells(self):
        """Dict (alpha, beta) -> list of cells, one a fold of each of `of`."""
        plain = [
            cell.replace(curve=False, corruptions=(), fold=fold)
            for cell in self.of
            for fold in [(k, self.folds) for k in range(self.held_out or self.folds)]
        ]
        return {
            (alpha, beta): [cell.replace(alpha=alpha, beta=beta) for cell in plain]
            for alpha, beta in self.pairs
        }

    @property
    def all_cells(self):
        """The cells of all folds and pairs, a list."""
        return [cell for cells in self.cells.values() for cell in cells]

    def scores(self, store):
        """Dict (alpha, beta) -> mean accuracy of the folds; None while some lack.

        A pair with a failed fold is not in it.
        """
        found = {}
        for pair, cells in self.cells.items():
            records = [store.get(cell) for cell in cells]
            if any(r is None for r in records):
                return None
            if not any("failed" in r for r in records):
                found[pair] = float(np.mean([r["accuracy"] for r in records]))
        return found

    def chosen(self, store):
        """The best (alpha, beta); None while cells lack, or where all pairs failed."""
        scores = self.scores(store)
        if not scores:
            return None
        best = max(scores.values())
        ties = [pair for pair, score in scores.items() if score >= best - EQUAL]
        return min(ties, key=lambda pair: sum(v or 0 for v in pair))


@dataclass(frozen=True)
class Entry:
    """A cell of the result, and how its strengths are found.

    Args:
        cell: the `Cell`.
        choice: a `Choice`, which gives it its strengths; None: they are the cell's.
        stage: cells of a smaller number come first.
    """

    cell: Cell
    choice: Choice | None = None
    stage: int = 0

    def resolved(self, store):
        """The cell with its strengths; None while they are not chosen."""
        if self.choice is None:
            return self.cell
        pair = self.choice.chosen(store)
        return pair and self.cell.replace(alpha=pair[0], beta=pair[1])

    def lost(self, store):
        """Whether no strength can be chosen: all of them failed in some fold."""
        return self.choice is not None and self.choice.scores(store) == {}


class Plan:
    """The entries of an experiment.

    Args:
        entries: list of `Entry`, as the functions of `studies` give it.
    """

    def __init__(self, entries):
        self.entries = [] if isinstance(entries, str) else list(entries)
        if not all(isinstance(e, Entry) for e in self.entries) or not self.entries:
            raise TypeError(invalid("entries", "a list of at least one Entry", entries))
        stages = {}
        for entry in self.entries:
            if entry.choice is not None:
                stage = stages.get(entry.choice, entry.stage)
                stages[entry.choice] = min(stage, entry.stage)
        self._choices = stages

    def staged(self, store):
        """Dict cell -> stage, of all cells that can be trained or are done.

        Cells of equal settings are one, that of the first stage.
        """
        found = {}
        for choice, stage in self._choices.items():
            for cell in choice.all_cells:
                known, first = found.get(cell.key, (cell, stage))
                found[cell.key] = known, min(first, stage)
        for entry in self.entries:
            cell = entry.resolved(store)
            if cell is not None:
                known, stage = found.get(cell.key, (cell, entry.stage))
                found[cell.key] = known, min(stage, entry.stage)
        return dict(found.values())

    def folds(self):
        """The cells of all choices, each once."""
        found = (cell for choice in self._choices for cell in choice.all_cells)
        return list(dict.fromkeys(found))

    def results(self, store):
        """The entries' cells, as far as their strengths are chosen."""
        resolved = [entry.resolved(store) for entry in self.entries]
        return [cell for cell in resolved if cell is not None]

    def size(self):
        """Number of different cells in the end, about: strengths may coincide."""
        choices = sum(len(c.all_cells) for c in self._choices)
        return choices + len({(e.cell.key, e.choice) for e in self.entries})

    def pending(self, store):
        """Dict cell -> stage of the cells that can be trained now and are not done."""
        return {c: stage for c, stage in self.staged(store).items() if c not in store}

    def complete(self, store):
        """Whether everything is done that can be."""
        settled = (e.resolved(store) or e.lost(store) for e in self.entries)
        return all(settled) and not self.pending(store)

    def lost(self, store):
        """Entries whose strengths cannot be chosen."""
        return [entry for entry in self.entries if entry.lost(store)]
