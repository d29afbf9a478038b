"""What Keras's `fit` calls for each step, or for several."""

import contextlib

import tensorflow as tf

from keras_delta import _compat


def make_train_function(model, step, looks):
    """What `fit` calls with an iterator, for `steps_per_execution` steps.

    Keras's own, except where that does not run: several steps on several replicas,
    and steps that are watched. There the steps are called one by one.

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
