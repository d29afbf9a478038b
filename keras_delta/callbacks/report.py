"""`Report`: a page about the network as it is, during training and at its end."""

from typing import Any

import keras

from keras_delta._arguments import file, integer
from keras_delta._errors import import_optional
from keras_delta._types import Data, Logs, PathLike
from keras_delta.analysis.reporting.report import look, report
from keras_delta.callbacks.base import Callback


class Report(Callback):
    """Writes `kd.analysis.report` when training ends, and every few epochs on the way.

    The page is replaced each time, so that it always shows the newest state: keep it
    open in a browser. The training stays the same. Put the callback after those that
    set weights at the end (`WeightAverage`); what a recipe averages with the source
    comes later, and is not seen.

    Args:
        path: of the HTML file.
        train, test: as for `kd.analysis.report`. Images apart from the test images
            belong here as long as anything is chosen by what the page shows.
        every: number of epochs from one page to the next, counted from 1 over a
            resumed training as well; None: at the end alone.
        **options: of `kd.analysis.report`.

    Raises:
        ImportError: where Jinja2 is missing.
        TypeError, ValueError: for bad arguments here; at the start of `fit` for images
            and options that do not fit the model.
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
        """Refuse what cannot be reported."""
        super().check(model)
        shown = ("title", "verbose")
        options = {k: v for k, v in self.options.items() if k not in shown}
        look(model, self.train, self.test, **options)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write, where it is time."""
        if self.every and (epoch + 1) % self.every == 0:
            self._write()

    def on_train_end(self, logs: Logs = None) -> None:
        """Write the last one."""
        self._write()

    def _write(self):
        if self.writes:
            report(self.model, self.train, self.test, self.path, **self.options)
