"""Where training begins: a head that was never trained is fitted first."""

from keras_delta import _arguments
from keras_delta._compat import array
from keras_delta._inputs import outputs, samples

FORMS = ("auto", True, False)
READ_OF_GENERATOR = 512  # samples, which are kept in memory


def is_wanted(model, fit_head):
    """Whether the head of a `DeltaModel` is to be fitted before the first step.

    Args:
        model: the `DeltaModel`.
        fit_head: True, False, or `"auto"`: where there is a regularizer, no step was
            trained, and the biases of the new layers that the outputs come out of are
            all zero, as they were made. None: what the model says.
    """
    fit_head = model.fit_head if fit_head is None else fit_head
    _arguments.choice("fit_head", fit_head, FORMS)
    if fit_head != "auto":
        return fit_head
    if model.regularizer is None or int(array(model.optimizer.iterations)):
        return False
    from keras_delta._probe import last_layers  # scikit-learn takes a while to load

    graph = model.networks.target
    last, _ = last_layers.find(graph, outputs.losses(model.loss, graph))
    new = {id(v) for v in model.pairing.new_variables}
    return bool(last) and all(
        id(one.layer.bias) in new and not array(one.layer.bias).any() for one in last
    )


def most_samples(data, steps_per_epoch):
    """How many samples of `TrainingData` the head is fitted on, at most: an epoch."""
    if steps_per_epoch is None or data.first_size is None:
        return samples.MOST
    return min(samples.MOST, steps_per_epoch * data.first_size)


def begin(model, x, y=None, verbose="auto", **options):
    """Fit the head, the same on all hosts; see `keras_delta.fit_head`."""
    from keras_delta._probe import fit_head

    fit_head(model, x, y, verbose=verbose, **options)
    model.hosts.copy_first(model.pairing.new_variables)
