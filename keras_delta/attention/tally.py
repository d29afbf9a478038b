"""Sums over samples, and what comes of them."""

from typing import Any, NamedTuple

import numpy as np

from keras_delta._network.fingerprint import digest

LEAST_SAMPLES = 64  # before a channel can be done
NORMAL = 1.96  # half the width of a 95 % interval, in standard errors


class Result(NamedTuple):
    """Scores of the taps.

    Attributes:
        scores, standard_errors: dict tap -> `(C,)` float64.
        counts: dict tap -> `(C,)`, the number of samples of each score.
        samples: number of samples looked at.
        loss: mean loss of the intact network.
        targets: the targets of all samples, a list, one an output.
        data: digest of the samples.
    """

    scores: dict
    standard_errors: dict
    counts: dict
    samples: int
    loss: float
    targets: Any
    data: str

    @classmethod
    def of(cls, tallies, loss, count, targets, digests):
        """What the sums come to.

        Args:
            tallies: dict tap -> `Tally`.
            loss: sum of the intact network's losses.
            count: number of samples.
            targets: list of the batches' targets.
            digests: list of the batches' digests.
        """
        tallies = tallies.items()
        joined = [
            None if values[0] is None else np.concatenate(values)
            for values in zip(*targets, strict=True)
        ]
        return cls(
            {tap: t.mean for tap, t in tallies},
            {tap: t.standard_error for tap, t in tallies},
            {tap: t.counts.copy() for tap, t in tallies},
            int(count),
            loss / count,
            joined,
            digest(digests),
        )


class Tally:
    """Sums over samples, one a channel."""

    def __init__(self, channels):
        self.sums, self.squares = np.zeros(channels), np.zeros(channels)
        self.counts = np.zeros(channels, "int64")

    def add(self, differences, active):
        """Count `(B, C)` differences, for the channels that are active."""
        differences = differences[:, active]
        self.sums[active] += differences.sum(axis=0)
        self.squares[active] += np.square(differences).sum(axis=0)
        self.counts[active] += len(differences)

    @property
    def mean(self):
        """Of what was counted; 0 before."""
        return self.sums / np.maximum(self.counts, 1)

    @property
    def standard_error(self):
        """Of the mean; not a number for a single sample."""
        n = self.counts
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.maximum(self.squares - n * self.mean**2, 0) / (n - 1)
            return np.sqrt(variance / n)

    def active(self, tolerance):
        """Which channels need more samples: bool `(C,)`.

        A channel that was done needs more again where the scores of its tap turn
        out to lie closer together than they seemed to.
        """
        if tolerance is None or self.counts.max(initial=0) < LEAST_SAMPLES:
            return np.ones(len(self.counts), bool)
        wide = NORMAL * self.standard_error > tolerance * self.mean.std()
        return wide | (self.counts < LEAST_SAMPLES)
