"""`StartingPointDistance`: how far each convolution filter has moved, per epoch."""

import math
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_delta._arguments import folder, integer
from keras_delta._types import FilterDistances, Logs, PathLike
from keras_delta.analysis import distances as analysis
from keras_delta.callbacks.base import Callback
from keras_delta.callbacks.summaries import Summaries

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class StartingPointDistance(Callback):
    """Measures how far each convolution filter has moved from the source's.

    The distances are those of `kd.analysis.filter_distances`, which also defines the
    stages (the article's Fig. 5). They are measured at the end of epochs `every`,
    `2 * every`, ..., counted from 1, also in a resumed training. For each stage,
    `filter_distance/<stage>`, the mean, and `filter_distance_max/<stage>` are logged;
    nan in epochs without a measurement. Training is unaffected.

    Args:
        log_dir: folder for `distances-0005.npz` and so on, one file per measured
            epoch, numbered from 1; read them with
            `kd.analysis.load_filter_distances`.
        every: number of epochs between measurements, default 1.
        tensorboard: TensorBoard log folder for histograms as well; default: none.

    Attributes:
        history: list of dicts `{"epoch": ..., "distances": ...}` of the last `fit`,
            epochs from 0; `distances` is a dict stage -> dict layer -> `(filters,)`.

    Raises:
        TypeError, ValueError: if an argument is invalid or, at the start of `fit`, if
            the model is not a `DeltaModel` or shares no convolution with its source.
    """

    remembers = ("history",)
    compare = staticmethod(analysis.compare_filter_distances)
    load = staticmethod(analysis.load_filter_distances)

    def __init__(
        self,
        log_dir: PathLike | None = None,
        every: int = 1,
        tensorboard: PathLike | None = None,
    ) -> None:
        super().__init__()
        self.log_dir = folder("log_dir", log_dir, optional=True)
        self.every = integer("every", every)
        self.summaries = Summaries(folder("tensorboard", tensorboard, optional=True))
        self.history = []

    def check(self, model: keras.Model) -> None:
        """Reject a model that shares no convolution with its source."""
        super().check(model)
        analysis.stages(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Clear the measurements of the last `fit`."""
        super().on_train_begin(logs)
        self.history = []

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Measure if it is due, and log."""
        logs = {} if logs is None else logs
        if (epoch + 1) % self.every:
            # CSVLogger takes its columns from the first epoch.
            stages = dict.fromkeys(analysis.stages(self.model), np.full(1, math.nan))
        else:
            distances = analysis.filter_distances(self.model)
            self.history.append({"epoch": epoch, "distances": distances})
            stages = {s: analysis.joined(layers) for s, layers in distances.items()}
            if self.log_dir is not None and self.writes:
                path = self.log_dir / f"distances-{epoch + 1:04d}.npz"
                analysis.save_filter_distances(distances, path)
            if self.writes:
                named = {f"filter_distance/{s}": moved for s, moved in stages.items()}
                self.summaries.write_histograms(named, epoch + 1)
        for stage, moved in stages.items():
            logs[f"filter_distance/{stage}"] = float(moved.mean())
            logs[f"filter_distance_max/{stage}"] = float(moved.max())

    @property
    def distances(self) -> dict[str, dict[str, np.ndarray]]:
        """The last measurement: dict stage -> dict layer -> `(filters,)`."""
        if not self.history:
            raise ValueError(
                "Nothing has been measured yet. Train with this callback for at least "
                f"{self.every} epoch{'s' if self.every > 1 else ''} first."
            )
        return self.history[-1]["distances"]

    def table(self) -> dict[str, np.ndarray]:
        """The last measurement as columns; `kd.analysis.tabulate_filter_distances`."""
        return analysis.tabulate_filter_distances(self.distances)

    def plot(self, path: PathLike | None = None, **others: FilterDistances) -> "Figure":
        """Plot the last measurement as in the article's Fig. 5.

        Args:
            path: file to also write the picture to (PNG, PDF or SVG, by its suffix).
            **others: further curves, label -> anything that `compare` takes.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        return analysis.plot_filter_distances({"this model": self, **others}, path)
