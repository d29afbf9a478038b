"""The role of this process in a search."""

from keras_delta import _compat
from keras_delta.tuning.alone import Alone


def part():
    """The role of this process: `Alone`, or `Chief` or `Worker` of several."""
    processes = _compat.tuner_processes
    if not processes.has_chief_oracle():
        return Alone()
    from keras_delta.tuning import chief  # gRPC is loaded where it is needed

    return chief.Chief() if processes.is_chief_oracle() else chief.Worker()
