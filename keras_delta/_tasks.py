"""What a network is trained for, told from the loss, the output and the labels."""

MULTICLASS = "multiclass"  # one of several classes: softmax
MULTILABEL = "multilabel"  # any of several labels: a sigmoid each
BINARY = "binary"  # one sigmoid, yes or no
REGRESSION = "regression"  # numbers
DENSE = "dense"  # one of the others at each position

TASKS = (MULTICLASS, MULTILABEL, BINARY, REGRESSION)


def of_output(loss, shape, activation):
    """The task of one output, or None where it cannot be told.

    Args:
        loss: a Keras loss (an instance, a name or a function), or None.
        shape: of the output, with the batch.
        activation: of the output as `heads.output_activation` says, or None.
    """
    raise NotImplementedError
