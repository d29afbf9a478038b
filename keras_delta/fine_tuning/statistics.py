"""Which statistics BatchNorm normalises by: a mixture of source and target."""

import numpy as np

from keras_delta import batch_norm
from keras_delta._compat import array
from keras_delta._probe.fit import Fitting

MOST = 1000  # images that a choice looks at


def settle(target, data, shares, **options):
    """Give a network its statistics and its head, and stop the statistics moving.

    The head is fitted with each of the shares; the one whose head has the least loss on
    images held out stays.

    Args:
        target: the network, with the source's statistics.
        data: what `fit` takes.
        shares: of the target's statistics, to choose from.
        **options: of `keras_delta.fit_head`.

    Returns:
        (share, the head's `Probe`).
    """
    layers = batch_norm.layers(target)
    for layer in layers:
        layer.trainable = False
    variables = [v for n in layers for v in (n.moving_mean, n.moving_variance)]
    source = [np.array(array(v)) for v in variables]
    if not layers:
        shares = (0.0,)
    elif any(shares):
        batch_norm.estimate_statistics(target, data, max_samples=MOST)
    of_target = [np.array(array(v)) for v in variables]
    fitting, best = Fitting(target, data, **options), None
    for share in shares:
        for v, old, new in zip(variables, source, of_target, strict=True):
            v.assign((1 - share) * old + share * new)
        probe = fitting.fit(verbose=0)
        if best is None or probe.loss < best[1].loss:
            best = share, probe, target.get_weights()
        if probe.loss is None:  # too few images to hold any out
            break
    share, probe, weights = best
    target.set_weights(weights)
    return share, probe
