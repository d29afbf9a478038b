"""Plans of small networks of any form, which hypothesis draws.

`random_graphs.py` builds networks of them.
"""

import os
from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers

WIDTH, CLASSES, OLD_CLASSES = 4, 3, 5
EXAMPLES = int(os.environ.get("KERAS_DELTA_EXAMPLES", 0))


def conv(size, strides=1, padding="same", kind=layers.Conv2D, **kwargs):
    settings = {"strides": strides, "padding": padding, **kwargs}
    return lambda name: kind(WIDTH, size, name=name, **settings)


KINDS = {
    "conv": conv(3),
    "valid": conv(3, padding="valid"),
    "stride 2": conv(3, 2),
    "stride 3": conv(3, 3, "valid"),
    "separable": conv(3, kind=layers.SeparableConv2D),
    "point": conv(1, activation="relu"),
    "depthwise": lambda name: layers.DepthwiseConv2D(3, padding="same", name=name),
    "norm": lambda name: layers.LayerNormalization(name=name),
    "group": lambda name: layers.GroupNormalization(2, name=name),
    "batch": lambda name: layers.BatchNormalization(trainable=False, name=name),
    "relu": lambda name: layers.ReLU(name=name),
    "pool": lambda name: layers.MaxPooling2D(2, name=name),
    "dense": lambda name: layers.Dense(WIDTH, name=name),
}


def attend(name):
    return layers.MultiHeadAttention(2, 2, name=name)


def widen(name):
    return layers.Dense(8, "gelu", name=name)


SMALLEST = {"valid": 3, "stride 3": 3, "pool": 2}  # sides that they can take
JOINS = ("add", "join", "gate")
TOKENS = ("attention", "mlp", "norm", "dense", "add", "again")
# With a seed: networks of one plan draw the same.
FRONTS = {
    "none": (),
    "scale": (lambda: layers.Rescaling(2.0, 0.5),),
    "flip": (
        lambda: layers.RandomFlip(seed=1),
        lambda: layers.RandomTranslation(0.3, 0.3, seed=2),
    ),
    "noise": (
        lambda: layers.GaussianNoise(0.3, seed=3),
        lambda: layers.Dropout(0.2, seed=4),
    ),
    "ops": (lambda: lambda x: x / 2.0 + 1.0,),
}
SIDES = (8, 7, 9, 11)


class Plan(NamedTuple):
    """What is drawn. `images` are one, or two through a `"shared"` or `"own"` branch.

    A step is a kind and how far back the other tensor (or the layer called again) is.
    Tokens are of a patch embedding behind the steps. `inserted` are the steps in front
    of which the target has a layer more; `heads` (or outputs) and `fronts` are the
    target's and the source's; `names` says how the target's layers are called.
    """

    steps: list
    side: int = 8
    images: str = "one"
    branch: list = ()
    join: str = "add"
    tokens: list | None = None
    heads: tuple = (1, 1)
    inserted: frozenset = frozenset()
    fronts: tuple = ("none", "none")
    names: str = "same"
    nested: bool = False
    own_source: bool = True
    old_head: bool = False

    @property
    def shown(self):
        """Shapes of the images."""
        return [(self.side, self.side, 3)] * (1 if self.images == "one" else 2)


@st.composite
def plans(draw, inserted=True, **fixed):
    """Plans, of which some fields are fixed."""
    step = st.tuples(st.sampled_from([*KINDS, *JOINS, "again"]), st.integers(0, 3))
    steps = draw(st.lists(step, min_size=2, max_size=6))
    places = st.frozensets(st.integers(1, len(steps) - 1), max_size=2)
    token = st.tuples(st.sampled_from(TOKENS), st.integers(0, 2))
    fields = {
        "side": st.sampled_from(SIDES),
        "images": st.sampled_from(["one", "shared", "own"]),
        "branch": st.lists(step, min_size=1, max_size=3),
        "join": st.sampled_from(JOINS),
        "tokens": st.none() | st.lists(token, min_size=1, max_size=3),
        "heads": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "inserted": places if inserted else st.just(frozenset()),
        "fronts": st.tuples(*[st.sampled_from([*FRONTS])] * 2),
        "names": st.sampled_from(["same", "other", "shifted"]),
        "nested": st.booleans(),
        "own_source": st.booleans(),
        "old_head": st.booleans(),
    }
    fields |= {name: st.just(value) for name, value in fixed.items()}
    return Plan(steps, **{name: draw(field) for name, field in fields.items()})


def drawn(count, *strategies, share=1):
    """Decorator: a test of `count` draws, or of a share of KERAS_DELTA_EXAMPLES."""
    chosen = settings(
        max_examples=EXAMPLES // share or count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],  # to shrink a plan takes minutes
    )
    return lambda test: chosen(given(*strategies)(test))


def images(plan, count=2):
    """Images as a network of the plan takes them."""
    rng = np.random.default_rng(1)
    return one([rng.uniform(0, 2, (count, *s)).astype("float32") for s in plan.shown])


def labels(plan, count):
    """Labels of each head."""
    return one([np.arange(count) % CLASSES] * plan.heads[0])


def one(values):
    return values[0] if len(values) == 1 else values
