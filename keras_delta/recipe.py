"""`Recipe`: every setting that decides how a network is fine-tuned, as one value."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import keras
from keras import ops

from keras_delta import _arguments, _disk, data, regularizers
from keras_delta._errors import invalid, unknown_name
from keras_delta._types import LearningRate, PathLike

VERSION = 1  # of the files
SHARES = (0.0, 0.25, 0.5)  # of the target's statistics, that "auto" tries
FEWEST_STEPS, LEAST_EPOCHS, MOST_EPOCHS = 60, 10, 40
ENDLESS = 10**9  # steps, in which a cosine does not fall
OWN_CLIP = 1.0  # of a gradient's norm, for the optimizer that a model was compiled with
# For images like the source's, and unlike.
NEAR_RATE, FAR_RATE = 3e-4, 6e-4  # of Adam


@keras.saving.register_keras_serializable("keras_delta")
class WarmUpCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Keras's `CosineDecay` with a warm-up from 0, starting at any iteration.

    Args:
        rate: the largest value.
        steps: number of steps, from 0 back to 0.
        warm_up: share of the steps in which the rate rises.
        start: the optimizer's iteration at which the schedule starts.
    """

    def __init__(self, rate, steps, warm_up=0.1, start=0):
        super().__init__()
        self.rate, self.steps, self.warm_up, self.start = rate, steps, warm_up, start
        warm = round(warm_up * steps)
        self._from_zero = keras.optimizers.schedules.CosineDecay(
            0.0 if warm else rate,
            max(1, steps - warm),
            warmup_target=rate if warm else None,
            warmup_steps=warm,
        )

    @property
    def end(self):
        """The iteration at which the rate is 0 again."""
        return self.start + self.steps

    def __call__(self, step):
        """The rate at a step."""
        return self._from_zero(ops.cast(step, "float32") - self.start)

    def for_steps(self, steps, start):
        """The schedule with other `steps` and `start`; constant for None steps."""
        warm_up = 0.0 if steps is None else self.warm_up
        return WarmUpCosine(self.rate, steps or ENDLESS, warm_up, start)

    def get_config(self):
        """Arguments of `__init__`."""
        names = ("rate", "steps", "warm_up", "start")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune a pretrained network on few images.

    `fine_tune` follows it, and so does `DeltaModel.fit` if the head is new, except
    where arguments of `compile` and `fit` override it. `docs/fine-tuning.md` explains
    each field. Fields can be changed: `Recipe(batch_norm="training")`,
    `recipe.replace(learning_rate=1e-4)`.

    Args:
        regularizer: keeps the target near the source: name, config or instance,
            as for `DeltaModel.fit`.
        fit_head: whether to start from the head of `keras_delta.fit_head`; else from
            a random one.
        optimizer: name of a Keras optimizer, or its config with more arguments:
            `{"class_name": "SGD", "config": {"momentum": 0.9}}`. None: the one that the
            model was compiled with, including its learning rate.
        learning_rate: the peak rate, reached after the warm-up; `"auto"`: 3e-4 if the
            source's statistics are kept, 6e-4 if the target's have a share: the images
            are then unlike the source's, and the weights have further to go.
        warm_up: share of the steps in which the rate rises linearly from zero; after
            that it falls to zero along half a cosine.
        epochs: passes over the images; None: 10, or more if that would be fewer than
            60 steps, up to 40.
        batch_size: images per step.
        augmentation: `protocol` of `ImageSet.batches`: mirrored random crops. None: the
            images as they come.
        batch_norm: the statistics that the network normalises with. A number from 0 to
            1: they stay fixed in training, at `(1 - share) * source + share * target`,
            see `keras_delta.batch_norm.estimate_statistics`; `"auto"`: the share among
            0, 1/4 and 1/2 with which a head on the frozen network does best in a
            cross-validation; `"training"`: those of each batch, as usual in Keras.
        freeze: share of the taps up to which the network stays frozen; 0: the whole
            network is trained.
        clip: largest norm of a step's gradient over all weights; None: no limit.
            `"auto"`: 1 with the optimizer from `compile`, since with fixed statistics
            SGD diverges at usual rates; else None.
        average: share of the source's weights in the result, in all layers but the
            head, see `keras_delta.averaging.interpolate`. That function has to be
            called by hand at the end of a training that went on from a file; with
            `BackupAndRestore` the recipe does it.

    Raises:
        TypeError, ValueError: if a field has an invalid value.
    """

    regularizer: object = "feature_map"
    fit_head: bool = True
    optimizer: object = "adamw"
    learning_rate: float | str = "auto"
    warm_up: float = 0.1
    epochs: int | None = None
    batch_size: int = 16
    augmentation: str | None = "default"
    batch_norm: float | str = "auto"
    freeze: float = 0.0
    clip: float | str | None = "auto"
    average: float = 0.0

    def __post_init__(self):
        regularizers.get(self.regularizer)
        if self.optimizer is not None:
            self._make_optimizer(1e-3)
        _arguments.choice("fit_head", self.fit_head, (True, False))
        if self.learning_rate != "auto":
            _arguments.number(
                "learning_rate", self.learning_rate, above=0, also='"auto"'
            )
        _arguments.number("warm_up", self.warm_up, below=1)
        _arguments.integer("epochs", self.epochs, optional=True)
        _arguments.integer("batch_size", self.batch_size)
        if self.augmentation is not None:
            data.augment.Protocol(self.augmentation, 32, training=True)
        if self.batch_norm not in ("auto", "training"):
            also = '"auto" or "training"'
            _arguments.number("batch_norm", self.batch_norm, most=1, also=also)
        _arguments.number("freeze", self.freeze, most=1)
        if self.clip != "auto":
            also = '"auto"'
            _arguments.number("clip", self.clip, above=0, optional=True, also=also)
        _arguments.number("average", self.average, below=1)

    def replace(self, **changes: Any) -> Self:
        """The same recipe with some fields changed."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(unknown_name("recipe", name, known))
        return dataclasses.replace(self, **changes)

    def settled(self, batch_norm: float | str) -> Self:
        """The recipe with the chosen `batch_norm` and all that follows from it."""
        rate = self.learning_rate
        if rate == "auto":
            rate = FAR_RATE if batch_norm else NEAR_RATE
        clip = self.clip
        if clip == "auto":
            clip = OWN_CLIP if self.optimizer is None else None
        return self.replace(batch_norm=batch_norm, learning_rate=rate, clip=clip)

    def epochs_for(self, steps: int | None) -> int:
        """Number of epochs, by the number of steps in each; None: unknown."""
        needed = max(LEAST_EPOCHS, math.ceil(FEWEST_STEPS / (steps or FEWEST_STEPS)))
        return self.epochs or min(needed, MOST_EPOCHS)

    def make_optimizer(self, steps: int | None) -> keras.optimizers.Optimizer:
        """The optimizer, with its schedule, for a training of `steps` steps."""
        return self._make_optimizer(self.make_schedule(steps))

    def make_schedule(self, steps: int | None) -> LearningRate:
        """The learning rate over `steps` steps; None: unknown, the rate is constant."""
        rate = NEAR_RATE if self.learning_rate == "auto" else self.learning_rate
        return rate if steps is None else WarmUpCosine(rate, steps, self.warm_up)

    def _make_optimizer(self, rate):
        given = keras.optimizers.serialize(keras.optimizers.get(self.optimizer))
        given["config"]["learning_rate"] = 0.001
        made = keras.optimizers.deserialize(given)
        made.learning_rate = rate
        return made

    def get_config(self) -> dict[str, Any]:
        """The fields as a dict for JSON."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not isinstance(self.regularizer, str):
            found["regularizer"] = regularizers.serialize(
                regularizers.get(self.regularizer)
            )
        if isinstance(self.optimizer, keras.optimizers.Optimizer):
            found["optimizer"] = keras.optimizers.serialize(self.optimizer)
        return json.loads(json.dumps(found))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The recipe from a `get_config` dict."""
        return cls().replace(**config)

    def save(self, path: PathLike) -> None:
        """Write a JSON file, atomically."""
        _disk.write_json(Path(path), {"version": VERSION, **self.get_config()})

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Read a file written by `save`.

        Raises:
            ValueError: if the file has another version or is not a recipe.
        """
        try:
            config = json.loads(Path(path).read_text())
            version = config.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(
                invalid("path", "a file of Recipe.save", str(path))
            ) from None
        if version != VERSION:
            raise ValueError(
                f"The recipe {path} has version {version}, but this keras_delta reads "
                f"version {VERSION}. Create it again, since fields may have changed "
                "their meaning."
            )
        return cls.from_config(config)

    def __str__(self):
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if isinstance(self.batch_norm, float):
            shown["batch_norm"] = "fixed, the source's"
            if self.batch_norm:
                share = f"{self.batch_norm:.0%}"
                shown["batch_norm"] = f"fixed, mixed with {share} of these images'"
        if self.augmentation is None:
            shown["augmentation"] = "none here"
        if self.optimizer is None:
            shown["optimizer"] = "as compiled"
            del shown["learning_rate"], shown["warm_up"]
        return "\n".join(f"{name:14} {_shown(v)}" for name, v in shown.items())


def _shown(value):
    """A layer or its config, by its class name."""
    if isinstance(value, dict):
        return value.get("class_name", value)
    return type(value).__name__ if isinstance(value, keras.Layer) else value
