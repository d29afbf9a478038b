"""`Cell`: one training of an experiment as a value, and its key."""

import dataclasses
import functools
import json
import os
from dataclasses import dataclass

from keras_delta import _arguments
from keras_delta._errors import unknown_name
from keras_delta._runs.store import digest
from experiments import methods, protocols
from experiments.protocols import Protocol

ATTENTIONS = (
    "computed",
    "uniform",
    "permuted",
    "top_half",
    "per_class",
    "taylor",
    "moving",
)
BATCH_NORMS = ("training", "frozen")
HEADS = ("random", "fitted", "only")
STRENGTHS = ("constant", "decaying", "every_second")


@dataclass(frozen=True, eq=False)
class Cell:
    """One training: what it trains, on what, how.

    Two cells of equal settings are one: whoever asks for it, its result is found under
    its `key`. `factor` and `label` say what the cell is for and are not part of it.

    Args:
        dataset: name for `keras_delta.data.load`.
        method: name in `methods.KNOWN`; `"probe"` has the head `"only"`.
        protocol: a `Protocol`, or its name.
        network: name in `keras_delta.backbones.ALL`.
        image_size: side in pixels; None: the network's own.
        weights: `"imagenet"`, or the path of a file, such as one of Places365.
        per_class: training images of each class, drawn with the seed; None: all.
        seed: of that choice, the head, the order of the data and its augmentation.
        fold: `(k, folds)`: train on all but the k-th fold of the training images and
            test on that fold; None: train on all and test on the test images.
        alpha, beta: strengths; None: the regularizer's own default.
        attention: `"computed"`; `"uniform"`; `"permuted"`, the computed weights in
            random order; `"top_half"`, the computed ones of the half that weighs
            most; `"per_class"`, for each channel the largest over scores of single
            classes; `"taylor"`, gradient times activation; `"moving"`, computed again
            on the target as it trains.
        attention_samples: images for it; None: the protocol's number.
        temperature: of the attention's softmax.
        taps: `"auto"`, or a tuple of layer names.
        batch_norm: `"training"`, or `"frozen"`: inference mode, nothing of it trained.
        head: where training begins: `"random"`; `"fitted"`, see
            `keras_delta.fit_head`; `"only"`: fitted, and nothing is trained.
        strength: `"constant"`, `"decaying"` to zero in a straight line, or
            `"every_second"` step.
        label_noise: share of each class's training images with a wrong label.
        corruptions: of test images, such as `("blur 3",)`, beside the clean ones.
        curve: whether to test after each epoch as well.
        recipe: dict of what differs from `keras_delta.Recipe()`, for the method
            `"recipe"`.
        teacher: dict with `network`, and perhaps `dataset` and `per_class`: the network
            that is fine-tuned by the recipe first, with the same seed, on these images
            or on the cell's own, and is then the source, for the methods `"recipe"`
            and `"teacher"`. None: the pretrained network is.
        factor, label: of a table's row.

    Raises:
        ValueError: for unknown names and values out of range.
    """

    dataset: str
    method: str
    protocol: Protocol = "few_shot"
    network: str = "efficientnet_lite0"
    image_size: int | None = None
    weights: str = "imagenet"
    per_class: int | None = None
    seed: int = 0
    fold: tuple | None = None
    alpha: float | None = None
    beta: float | None = None
    attention: str = "computed"
    attention_samples: int | None = None
    temperature: float = 5.0
    taps: str | tuple = "auto"
    batch_norm: str = "training"
    head: str = "random"
    strength: str = "constant"
    label_noise: float = 0.0
    corruptions: tuple = ()
    curve: bool = False
    recipe: dict | None = None
    teacher: dict | None = None
    factor: str = ""
    label: str = ""

    def __post_init__(self):
        object.__setattr__(self, "protocol", protocols.get(self.protocol))
        methods.get(self.method)
        if self.method in methods.PROBE:
            object.__setattr__(self, "head", "only")
        object.__setattr__(self, "weights", os.fspath(self.weights))
        for name in ("alpha", "beta", "temperature", "label_noise"):
            if isinstance(getattr(self, name), int):  # 5 and 5.0 are one cell
                object.__setattr__(self, name, float(getattr(self, name)))
        _arguments.choice("attention", self.attention, ATTENTIONS)
        _arguments.choice("batch_norm", self.batch_norm, BATCH_NORMS)
        _arguments.choice("head", self.head, HEADS)
        _arguments.choice("strength", self.strength, STRENGTHS)
        _arguments.number("label_noise", self.label_noise, most=1)

    def replace(self, **changes):
        """The same cell but for some arguments."""
        return dataclasses.replace(self, **changes)

    def settings(self):
        """All that decides the result: a dict for JSON, without what is for tables."""
        found = dataclasses.asdict(self)
        del found["factor"], found["label"]
        # What this cell makes no use of must not tell it from others.
        del found["protocol"]["repeats"], found["protocol"]["folds"]
        del found["protocol"]["strengths"], found["protocol"]["strengths_of"]
        if self.head == "random":  # as before there were others
            del found["head"]
        if self.teacher is None:
            del found["teacher"]
        del found["recipe"]
        if self.method == "recipe":  # all of it: a new default is another cell
            found["recipe"] = _whole_recipe(json.dumps(self.recipe or {}))
        if not methods.get(self.method).attended:
            for name in ("attention", "attention_samples", "temperature"):
                del found[name]
        return json.loads(json.dumps(found))

    @functools.cached_property
    def key(self):
        """A short name of the settings, the same in every process: 16 digits."""
        return digest(self.settings())

    def of_teacher(self):
        """The cell whose training gives the source, of one that has a teacher."""
        alone = {"recipe": None, "teacher": None, "corruptions": (), "label": ""}
        return self.replace(method="recipe", **{**alone, **self.teacher})

    def its_recipe(self):
        """The `Recipe` of the method `"recipe"`, at the cell's strengths."""
        from keras_delta import Recipe, regularizers  # not light

        found = Recipe(**self.recipe or {})
        given = {"alpha": self.alpha, "beta": self.beta}
        given = {name: value for name, value in given.items() if value is not None}
        if not given:
            return found
        regularizer = regularizers.get(found.get_config()["regularizer"])
        for name, value in given.items():
            setattr(regularizer, name, value)
        return dataclasses.replace(found, regularizer=regularizer)

    def __eq__(self, other):
        return isinstance(other, Cell) and self.key == other.key

    def __hash__(self):
        return hash(self.key)

    @property
    def title(self):
        """What is trained, without the seed: a line to read."""
        parts = [self.dataset]
        if self.per_class is not None:
            parts.append(f"{self.per_class} a class")
        parts += [self.network, methods.get(self.method).title]
        if self.label:
            parts.append(f"{self.factor} {self.label}".strip())
        for name in ("alpha", "beta"):
            if getattr(self, name) is not None:
                parts.append(f"{name} {getattr(self, name):g}")
        return ", ".join(parts)

    def __str__(self):
        where = f"seed {self.seed}"
        if self.fold is not None:
            where = f"fold {self.fold[0] + 1} of {self.fold[1]}"
        return f"{self.title}, {where}"


def from_settings(settings):
    """The `Cell` that `settings` describes.

    Raises:
        ValueError: for settings of another version.
    """
    given = dict(settings)
    given["protocol"] = Protocol(**given["protocol"])
    for name in ("fold", "corruptions", "taps"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    known = [f.name for f in dataclasses.fields(Cell)]
    for name in given:
        if name not in known:
            raise ValueError(unknown_name("settings", name, known))
    return Cell(**given)


@functools.cache  # a plan makes the keys of hundreds of cells again and again
def _whole_recipe(parts):
    from keras_delta import Recipe  # not light: keys are made everywhere

    return Recipe(**json.loads(parts)).get_config()
