"""`SourceAdapting`: base class of regularizers with layers inside the source."""

from collections.abc import Callable
from typing import Any

import keras

from keras_delta._network.networks import Networks
from keras_delta._types import Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.batch import Batch


class SourceAdapting(Regularizer):
    """Base class of methods that insert layers between those of the source.

    Each step runs the source through `call_source` and has two objectives. The model's
    optimizer updates the target and any other trainable layers of the regularizer for
    `task loss + penalties`, with the source held constant. `source_optimizer` updates
    `source_variables` for `source_loss`, with the target held constant. Both use the
    weights before the step.

    A subclass makes its layers in `make_layers`, and lists those inside the source in
    `source_layers`.
    """

    source_optimizer = source_loss_tracker = None
    """The optimizer of `source_variables`, and the metric that logs their loss."""

    source_layers: Any = ()
    """List of the layers inside the source."""

    def find_adapting(self) -> Any:
        """See `Regularizer.find_adapting`."""
        return self

    @property
    def source_variables(self) -> list[keras.Variable]:
        """The variables inside the source that `source_optimizer` trains."""
        return [v for layer in self.source_layers for v in layer.trainable_variables]

    def make_layers(self, networks: Networks) -> None:
        """Make the method's layers for two networks that passed `check`."""
        raise NotImplementedError

    def make_source_optimizer(self) -> keras.optimizers.Optimizer:
        """The Keras optimizer of `source_variables`."""
        raise NotImplementedError

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; makes the layers and their optimizer."""
        super().bind(networks)
        self.make_layers(networks)
        optimizer = self.make_source_optimizer()
        if networks.frozen_source.compute_dtype == "float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(self.source_variables)
        self.source_optimizer = optimizer
        self.source_loss_tracker = keras.metrics.Mean(name="source_loss")

    def call_source(
        self, operation: Any, tap: str | None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Run one of the source's calls.

        Args:
            operation: the source's layer or operation, which does not train.
            tap: the name under which its output is tapped; None if it is not.
            *args, **kwargs: arguments of the call.

        Returns:
            `(input of the next calls, value of source_maps[tap])`.
        """
        raise NotImplementedError

    def source_loss(
        self, batch: Batch, task_loss: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Objective of the layers inside the source, as this replica's share.

        Args:
            batch: a `Batch` in which the target is held constant.
            task_loss: function from predictions in the target's form to this
                replica's share of the task loss.

        Returns:
            float32 scalar.
        """
        raise NotImplementedError

    @property
    def variables(self) -> list[keras.Variable]:
        """The layer's variables and the optimizer's, all of which are saved."""
        if self.source_optimizer is None:
            return super().variables
        return super().variables + self.source_optimizer.variables
