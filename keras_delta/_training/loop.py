"""The function that Keras's `fit` calls for one step or several."""

import contextlib

import tensorflow as tf

from keras_delta import _compat


def make_train_function(model, step, looks):
    """The function of an iterator that `fit` calls for `steps_per_execution` steps.

    It is Keras's, except where that does not work: for several steps on several
    replicas, and for watched steps. Steps are then called one by one.

    Args:
        model: the `DeltaModel`.
        step: its `Step`.
        looks: its `CloserLooks`.

    Returns:
        Callable, iterator over batches -> logs; raises StopIteration at the end.
    """
    jit_compile = model.jit_compile
    model.jit_compile = jit_compile and step.cache is None  # XLA reads no files
    try:
        return _train_function(model, step, looks)
    finally:
        model.jit_compile = jit_compile


def _train_function(model, step, looks):
    plain = model.hosts.loop_step(model, model.train_step)
    steps, every = model.steps_per_execution, looks.every
    replicas = model.distribute_strategy.num_replicas_in_sync
    if every is None and (steps == 1 or replicas == 1):
        return plain
    closer = _compat.loop_step(model, lambda data: step.run(data, watch=True))

    def function(iterator):
        logs = None
        for _, data in zip(range(steps), _until_the_end(iterator), strict=False):
            number = int(model.optimizer.iterations.numpy())
            if every is not None and number % every == 0:
                logs, values = closer(iter([data]))
                looks.last = {"step": number, **values}
            else:
                logs = plain(iter([data]))
        if logs is None:
            raise StopIteration
        return logs

    return function


def _until_the_end(iterator):
    with contextlib.suppress(tf.errors.OutOfRangeError):
        yield from iterator
