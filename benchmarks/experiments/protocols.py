"""How an experiment trains: the article's way, its program's, tllib's, and ours."""

import dataclasses
import math
from dataclasses import dataclass, field

from keras_delta import _arguments
from keras_delta._errors import unknown_name

SCHEDULES = ("step", "exponential")


@dataclass(frozen=True)
class Protocol:
    """A way to train and test, named and switchable; `replace` changes parts of it.

    Lengths are given in iterations and converted to whole epochs, because that is
    what the published programs do: a data set of n images has `epochs(n)` epochs.
    Rates change between epochs.

    Args:
        name: what it is called.
        iterations: length of a training, in batches of `batch_size`.
        batch_size: images in a batch.
        rates: dict network -> learning rate; `"default"` for the others.
        schedule: `"step"` (times 0.1 once) or `"exponential"` (times a constant after
            each epoch).
        decay_at: share of the training after which `"step"` decays.
        decay: the constant of `"exponential"`; None: such that the rate has fallen to
            a tenth where `"step"` would have decayed.
        whole_epochs: how iterations become epochs: `"round"`, or `"floor"` as the
            authors' program does.
        min_epochs: no fewer epochs than that.
        backbone_rate: factor of the learning rate of what the source has too.
        nesterov: whether SGD, with momentum 0.9, is Nesterov's.
        batch_norm_momentum: of the target's statistics.
        augmentation: `"default"`, `"improved"`, `"improved_code"` or `"tllib"`, see
            `keras_delta.data.Protocol`.
        ten_crop: what is averaged over ten crops in the test, `"logits"` or
            `"probabilities"`; None: one crop.
        variant: of the feature-map methods, see `keras_delta.regularizers.Delta`.
        strengths: dict method -> (alpha, beta); `"default"` for the others. None in
            place of a number: the regularizer's own default.
        strengths_of: dict data set -> alpha of `delta`, where it differs.
        attention_samples: images for the channel attention; None: all.
        repeats: trainings of each cell.
        folds: of the cross-validated choice of alpha and beta.
    """

    name: str
    iterations: int
    batch_size: int
    rates: dict = field(default_factory=lambda: {"default": 0.01})
    schedule: str = "step"
    decay_at: float = 2 / 3
    decay: float | None = None
    whole_epochs: str = "round"
    min_epochs: int = 1
    backbone_rate: float = 1.0
    nesterov: bool = False
    batch_norm_momentum: float = 0.9
    augmentation: str = "default"
    ten_crop: str | None = None
    variant: str = "relative"
    strengths: dict = field(default_factory=dict)
    strengths_of: dict = field(default_factory=dict)
    attention_samples: int | None = 256
    repeats: int = 5
    folds: int = 5

    def __post_init__(self):
        _arguments.choice("schedule", self.schedule, SCHEDULES)
        for name in ("iterations", "batch_size", "repeats", "min_epochs"):
            _arguments.integer(name, getattr(self, name))

    def replace(self, **changes):
        """The same protocol but for some arguments."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(unknown_name("protocol", name, known))
        return dataclasses.replace(self, **changes)

    def epochs(self, images):
        """Number of epochs for a training set of so many images."""
        exact = self.iterations * self.batch_size / images
        whole = math.floor(exact) if self.whole_epochs == "floor" else round(exact)
        return max(whole, self.min_epochs)

    def decay_epoch(self, images):
        """Number of epochs at the first rate, with the schedule `"step"`."""
        exact = self.decay_at * self.iterations * self.batch_size / images
        if self.whole_epochs == "floor":
            return math.floor(exact) + 1
        if self.epochs(images) == self.min_epochs:
            exact = self.decay_at * self.min_epochs
        return max(1, round(exact))

    def gamma(self, images):
        """Factor of the rate after each epoch, with the schedule `"exponential"`."""
        return self.decay or 0.1 ** (1 / self.decay_epoch(images))

    def rate(self, epoch, network, images):
        """Learning rate of an epoch, counted from 0."""
        first = self.rates.get(network, self.rates["default"])
        if self.schedule == "exponential":
            return first * self.gamma(images) ** epoch
        return first * (0.1 if epoch >= self.decay_epoch(images) else 1.0)

    def strength(self, method, dataset):
        """(alpha, beta) of a method where nothing is searched."""
        alpha, beta = self.strengths.get(
            method, self.strengths.get("default", (None,) * 2)
        )
        if method == "delta" and dataset in self.strengths_of:
            alpha = self.strengths_of[dataset]
        return alpha, beta


# ResNet-101's and Inception-V3's; the article's section 4.1.
_ARTICLE_RATES = {"default": 0.01, "inception_v3": 0.001}
# The program's L2 is the optimizer's weight decay of 1e-4 on everything.
_L2 = {"l2": (1e-4, 1e-4)}

PROTOCOLS = {
    # TKDD 2021, sections 4.1 and 4.2.
    "article": Protocol(
        "article",
        iterations=9000,
        batch_size=64,
        rates=_ARTICLE_RATES,
        decay_at=6000 / 9000,
        variant="article",
        strengths={"default": (0.01, 0.01)},
        attention_samples=None,
        repeats=5,
    ),
    # github.com/lixingjian/DELTA: train.py, and the settings of its run.sh.
    "code": Protocol(
        "code",
        iterations=6000,
        batch_size=64,
        rates=_ARTICLE_RATES,
        schedule="exponential",
        decay_at=0.67,
        whole_epochs="floor",
        variant="code",
        strengths={**_L2, "default": (0.01, 0.01)},
        strengths_of={"stanford_dogs": 0.1},
        attention_samples=128,
        repeats=3,
    ),
    # github.com/thuml/Transfer-Learning-Library, examples of task adaptation.
    "tllib": Protocol(
        "tllib",
        iterations=10_000,
        batch_size=48,
        decay_at=12 / 20,
        backbone_rate=0.1,
        nesterov=True,
        augmentation="tllib",
        variant="code",
        strengths={"l2": (5e-4, 5e-4), "default": (0.01, 0.01)},
        attention_samples=320,
        repeats=3,
    ),
    # Ours, for few images and a laptop.
    "few_shot": Protocol(
        "few_shot",
        iterations=64,
        batch_size=16,
        min_epochs=3,
        attention_samples=64,
        repeats=3,
        folds=3,
    ),
    # 15 epochs whatever the number of images, to compare with other programs' ways.
    "bench": Protocol(
        "bench",
        iterations=1,
        batch_size=16,
        min_epochs=15,
        attention_samples=64,
        repeats=5,
        folds=3,
    ),
}


def get(name):
    """A `Protocol` by name, or the `Protocol` itself.

    Args:
        name: `"article"`, `"code"`, `"tllib"`, `"few_shot"` or `"bench"`.

    Raises:
        ValueError: for another name, with the closest ones.
    """
    if isinstance(name, Protocol):
        return name
    return PROTOCOLS[_arguments.choice("protocol", name, PROTOCOLS)]
