"""Which statistics BatchNorm normalises by: a mixture of source and target."""

import numpy as np

from keras_delta import batch_norm
from keras_delta._compat import array
from keras_delta._probe.fit import Fitting

MOST = 1000  # images that a choice looks at
ERRORS = 2  # standard errors by which a share must be better


def settle(target, data, shares, **options):
    """Give a network its statistics and its head, and stop the statistics moving.

    The head is fitted with each of the shares. The first one stays, but where another's
    head has a smaller loss on images held out, by more than two standard errors of the
    difference: a few images say little, and a wrong share costs more than it gains.

    Args:
        target: the network, with the source's statistics.
        data: what `fit` takes.
        shares: of the target's statistics, to choose from, the usual one first.
        **options: of `keras_delta.fit_head`.

    Returns:
        (share, the head's `Probe`, seconds that an image takes).
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
    fitting, tried = Fitting(target, data, **options), []
    for share in shares:
        for v, old, new in zip(variables, source, of_target, strict=True):
            v.assign((1 - share) * old + share * new)
        tried.append((share, fitting.fit(verbose=0), target.get_weights()))
    share, probe, weights = min(tried, key=lambda t: _excess(t[1], tried[0][1]))
    target.set_weights(weights)
    return share, probe, fitting.image_seconds


def _excess(probe, usual):
    """By how many standard errors a probe's losses exceed another's, where by many."""
    more = probe.losses - usual.losses
    if len(more) < 2 or not more.any():
        return 0.0
    found = more.mean() / (more.std(ddof=1) / np.sqrt(len(more)))
    return found if found < -ERRORS else 0.0
