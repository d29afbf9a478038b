"""Evaluation, prediction and export: the target alone."""

import contextlib
from typing import Any, NoReturn

import keras

from keras_delta._network.copies import inputs_like
from keras_delta._network.graph import input_structure
from keras_delta._types import Data, PathLike, Tensor


class TargetAlone:
    """Mix-in for `DeltaModel`: everything but training, without the source."""

    is_evaluating = False
    """Whether `evaluate` is running, within a `fit` or not."""

    training_only_metrics: Any = ()
    """Metrics that `evaluate` neither updates nor shows."""

    test_function: Any
    predict_function: Any

    @property
    def output_names(self) -> list[str] | None:
        """Names of the target's outputs, by which losses and labels can be given."""
        return getattr(self.target, "output_names", None)

    @property
    def losses(self) -> list[Tensor]:
        """The target's layer losses, without those of source and regularizer."""
        return self.target.losses

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics; while evaluating, without the penalties' means."""
        hidden = {id(m) for m in self.training_only_metrics}
        return [
            m for m in super().metrics if not self.is_evaluating or id(m) not in hidden
        ]

    @contextlib.contextmanager
    def _evaluation(self):
        before, self.is_evaluating = self.is_evaluating, True
        try:
            yield
        finally:
            self.is_evaluating = before

    def test_step(self, data: Data) -> dict[str, Any]:
        """Like Keras's: the task loss and the target's layer losses, no penalties."""
        with self._evaluation():
            return super().test_step(data)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """See `keras.Model.evaluate`; the source does not run."""
        with self._evaluation(), self.hosts.running():
            return super().evaluate(*args, **kwargs)

    def predict(self, x: Data, *args: Any, **kwargs: Any) -> Any:
        """See `keras.Model.predict`; on several workers, all get all outputs."""
        with self.hosts.running():
            self.hosts.check_same_samples(x)
            return super().predict(x, *args, **kwargs)

    def make_test_function(self, force: bool = False) -> None:
        """See `keras.Model.make_test_function`."""
        if self.test_function is None or force:
            self.test_function = self.hosts.test_function(self)
        if self.test_function is None:
            super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> None:
        """See `keras.Model.make_predict_function`."""
        if self.predict_function is None or force:
            self.predict_function = self.hosts.predict_function(self)
        if self.predict_function is None:
            super().make_predict_function(force)

    def quantize(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: what is to be served is the target."""
        raise ValueError(
            "A DeltaModel trains, and quantised layers cannot. Train first, then "
            "call `model.target.quantize(mode)` and go on with the target, or export "
            'with `kd.export_for_serving(model, path, names, format="litert", '
            'quantize="int8")`.'
        )

    def export(self, filepath: PathLike, *args: Any, **kwargs: Any) -> Any:
        """Export the target alone, in inference mode; see `keras.Model.export`.

        Keras's own export of a network leaves random flips and the like switched on.
        """
        if not self.hosts.is_first:
            return None
        inputs = inputs_like(input_structure(self.target))
        outputs = self.target(inputs, training=False)
        exported = keras.Model(inputs, outputs, name=self.target.name)
        return exported.export(filepath, *args, **kwargs)
