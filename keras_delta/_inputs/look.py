"""`Samples`: how a regularizer looks at training data before the first step."""

import numpy as np
from keras import tree

from keras_delta._inputs.samples import Batches, joined


class Samples:
    """How a regularizer looks at training data: `samples(n)`, `samples.batches(n)`.

    Samples of the weight 0 are left out: their labels do not count.

    Args:
        read: function of a number, gives batches `(x, y)` or `(x, y, weights)` of up to
            so many samples; of all for None.
    """

    def __init__(self, read):
        self._read = read

    def batches(self, count=None):
        """Up to `count` samples as `Batches`."""
        return Batches(part for batch in self._read(count) if (part := _used(*batch)))

    def __call__(self, count=None):
        """Up to `count` samples as one `(x, y)`.

        Raises:
            ValueError: for samples of several shapes.
        """
        return joined(self.batches(count))


def _used(x, y, weights=None):
    """`(x, y)` of the samples with a weight; None if there are none."""
    if np.ndim(weights) != 1 or np.all(weights):  # or of several outputs, of pixels
        return x, y
    used = np.asarray(weights) != 0
    return tree.map_structure(lambda v: v[used], (x, y)) if used.any() else None
