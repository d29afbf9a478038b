"""Sums over samples, and the resulting scores."""

from typing import NamedTuple

import numpy as np

LEAST_SAMPLES = 64  # before a channel can be done
NORMAL = 1.96  # half the width of a 95 % interval, in standard errors


class Tally(NamedTuple):
    """Sums over samples, `(C,)` each."""

    sums: np.ndarray
    squares: np.ndarray
    counts: np.ndarray

    @classmethod
    def of_nothing(cls, channels):
        """Before the first sample."""
        return cls(np.zeros(channels), np.zeros(channels), np.zeros(channels, "int64"))

    def add(self, differences, active):
        """The tally with `(B, C)` further differences, of the active channels."""
        differences = differences[:, active]
        sums, squares, counts = (array.copy() for array in self)
        sums[active] += differences.sum(axis=0)
        squares[active] += np.square(differences).sum(axis=0)
        counts[active] += len(differences)
        return Tally(sums, squares, counts)

    @property
    def mean(self):
        """Mean of the counted differences; 0 if there are none."""
        return self.sums / np.maximum(self.counts, 1)

    @property
    def standard_error(self):
        """Standard error of the mean; NaN for a single sample."""
        n = self.counts
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.maximum(self.squares - n * self.mean**2, 0) / (n - 1)
            return np.sqrt(variance / n)

    def active(self, tolerance):
        """Which channels need more samples: bool `(C,)`.

        A finished channel needs more again if the scores of its tap turn out to lie
        closer together than they seemed.
        """
        if tolerance is None or self.counts.max(initial=0) < LEAST_SAMPLES:
            return np.ones(len(self.counts), bool)
        wide = NORMAL * self.standard_error > tolerance * self.mean.std()
        return wide | (self.counts < LEAST_SAMPLES)


class Progress(NamedTuple):
    """Progress of the work: a new one per batch, so that Ctrl-C leaves it intact.

    Attributes:
        tallies: dict tap -> `Tally`.
        loss: `(2,)`, sum and number of the intact network's losses.
        done: digests of the finished batches.
    """

    tallies: dict
    loss: np.ndarray
    done: list

    @classmethod
    def of_nothing(cls, channels):
        """Before the first batch; from a dict tap -> number of channels."""
        tallies = {tap: Tally.of_nothing(count) for tap, count in channels.items()}
        return cls(tallies, np.zeros(2), [])

    @property
    def scores(self):
        """Dict tap -> `(C,)` float64."""
        return {tap: tally.mean for tap, tally in self.tallies.items()}

    @property
    def standard_errors(self):
        """Standard errors of the scores: dict tap -> `(C,)` float64."""
        return {tap: tally.standard_error for tap, tally in self.tallies.items()}

    @property
    def counts(self):
        """Number of samples of each score: dict tap -> `(C,)`."""
        return {tap: tally.counts for tap, tally in self.tallies.items()}

    @property
    def samples(self):
        """Number of samples looked at."""
        return int(self.loss[1])

    @property
    def mean_loss(self):
        """Of the intact network."""
        return self.loss[0] / self.loss[1]

    def as_arrays(self):
        """What a checkpoint holds of it."""
        arrays = {"done": np.array(self.done, "U32"), "loss": self.loss}
        for i, tally in enumerate(self.tallies.values()):
            arrays.update({f"tap{i}/{k}": v for k, v in tally._asdict().items()})
        return arrays

    @classmethod
    def from_arrays(cls, arrays, taps):
        """The progress from a checkpoint, for taps in the same order.

        Raises:
            ValueError: if an older version wrote the file in the middle of a batch.
        """
        if int(arrays.get("tap", 0)):
            raise ValueError(
                "The checkpoint was written by an older version of keras_delta, in "
                "the middle of a batch, but this version resumes only from whole "
                "batches. Delete the file or pass another path."
            )
        tallies = {
            tap: Tally(*(arrays[f"tap{i}/{field}"] for field in Tally._fields))
            for i, tap in enumerate(taps)
        }
        return cls(tallies, arrays["loss"], arrays["done"].tolist())
