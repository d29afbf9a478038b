"""`Report`: a page about the current network, during and after training."""

from typing import Any

import keras

from keras_delta._arguments import file, integer
from keras_delta._errors import import_optional
from keras_delta._types import Data, Logs, PathLike
from keras_delta.analysis.reporting.report import look, report
from keras_delta.callbacks.base import Callback


class Report(Callback):
    """Writes `kd.analysis.report` when training ends and, optionally, every few epochs.

    The page is replaced each time and always shows the latest state: keep it open in
    a browser. Training is unaffected. Put the callback after those that set weights at
    the end (`WeightAverage`); a recipe averages the weights with the source only later,
    so the page does not reflect that.

    Args:
        path: path of the HTML file.
        train, test: as for `kd.analysis.report`. While you still choose anything based
            on the page, pass images other than the test images.
        every: number of epochs between pages, counted from 1, also in a resumed
            training; None: only at the end.
        **options: options of `kd.analysis.report`.

    Raises:
        ImportError: if Jinja2 is missing.
        TypeError, ValueError: if an argument is invalid or, at the start of `fit`, if
            images or options do not fit the model.
    """

    def __init__(
        self,
        path: PathLike = "report.html",
        train: Data = None,
        test: Data = None,
        every: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        import_optional("jinja2", "Report", "report")
        self.path = file("path", path)
        self.every = integer("every", every, optional=True)
        self.train, self.test, self.options = train, test, {"verbose": 0, **options}

    def check(self, model: keras.Model) -> None:
        """Reject anything that cannot be reported."""
        super().check(model)
        shown = ("title", "verbose")
        options = {k: v for k, v in self.options.items() if k not in shown}
        look(model, self.train, self.test, **options)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the page if it is due."""
        if self.every and (epoch + 1) % self.every == 0:
            self._write()

    def on_train_end(self, logs: Logs = None) -> None:
        """Write the final page."""
        self._write()

    def _write(self):
        if self.writes:
            report(self.model, self.train, self.test, self.path, **self.options)
