"""`StartingPointDistance`: how far each convolution filter has moved, by epoch."""

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

    As `kd.analysis.filter_distances`, which says what is measured and what stages
    are (the article's Fig. 5), at the end of the epochs `every`, `2 * every`, ...,
    counted from 1 over a resumed training as well. It logs for each stage
    `filter_distance/<stage>`, the mean, and `filter_distance_max/<stage>`; nan where
    nothing was measured. The training stays the same.

    Args:
        log_dir: write `distances-0005.npz` and so on there, one file per measured
            epoch, numbered from 1; read them with
            `kd.analysis.load_filter_distances`.
        every: number of epochs from one measurement to the next, default 1.
        tensorboard: folder that TensorBoard looks at, for histograms as well;
            default: none.

    Attributes:
        history: list of dicts `{"epoch": ..., "distances": ...}` of the last `fit`,
            epochs from 0; `distances` is a dict stage -> dict layer -> `(filters,)`.

    Raises:
        TypeError, ValueError: for bad arguments here; at the start of `fit` for a
            model that is no `DeltaModel` or shares no convolution with its source.
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
        """Refuse a model without convolutions of the source."""
        super().check(model)
        analysis.stages(model)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Forget the measurements of the last `fit`."""
        super().on_train_begin(logs)
        self.history = []

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Measure where it is time, and log."""
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
                "Nothing is measured yet. Train with this callback for at least "
                f"{self.every} epoch{'s' if self.every > 1 else ''} first."
            )
        return self.history[-1]["distances"]

    def table(self) -> dict[str, np.ndarray]:
        """The last measurement as columns; `kd.analysis.tabulate_filter_distances`."""
        return analysis.tabulate_filter_distances(self.distances)

    def plot(self, path: PathLike | None = None, **others: FilterDistances) -> "Figure":
        """Plot the last measurement as in the article's Fig. 5.

        Args:
            path: write the picture there as well (PNG, PDF or SVG by its suffix).
            **others: further curves: label -> what `compare` takes.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        return analysis.plot_filter_distances({"this model": self, **others}, path)
