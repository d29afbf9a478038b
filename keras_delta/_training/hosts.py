"""One host or several: the processes that take part in a training.

`of(strategy)` is the only place that distinguishes them. Everything else calls the
methods of `OneHost`, which do almost nothing; `SeveralHosts` implements them for
`tf.distribute.MultiWorkerMirroredStrategy`.
"""

from keras_delta import _compat
from keras_delta._training.one_host import OneHost
from keras_delta._training.several_hosts import SeveralHosts


def of(strategy):
    """The `OneHost` or `SeveralHosts` of a strategy."""
    several = _compat.has_several_workers(strategy)
    return SeveralHosts(strategy) if several else OneHost(strategy)
