"""`Rifle`: redraws the head so that the layers below keep learning."""

from typing import Literal

import keras
import numpy as np

from keras_delta import _compat
from keras_delta._arguments import choice, flag, integer
from keras_delta._compat import array
from keras_delta._errors import invalid, warn
from keras_delta._types import Logs
from keras_delta.callbacks.base import Callback

LAST_EPOCHS = 4  # without a redraw, so that the last head is trained
NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)


class Rifle(Callback):
    """RIFLE: redraws the head a few times, deliberately changing the training.

    A head that fits the training data passes hardly any gradient to the layers
    below. RIFLE (re-initialise the fully connected layer) therefore resets it
    repeatedly: with E epochs and N cycles, after `E // N`, `2 * (E // N)`, ... epochs
    of training, but not later than E - 4.

    The trainable variables of the layers that only the target has,
    `model.pairing.new_layers`, are redrawn. As in the authors' program, each value is
    normal with mean 0 and variance `2 / n`, where n is the number of inputs for a
    kernel and the number of values (the number of classes) for a bias. Normalization
    layers in the head always return to their initialisers.

    The draw depends only on `seed` and the epoch, so a resumed training draws the same
    values, as do all replicas. It happens as the epoch begins, so that checkpoints,
    which are written as an epoch ends, contain trained heads.

    Args:
        cycles: N, 2 or more; default 3.
        epochs: E, if training takes several calls to `fit`; default: the `epochs` of
            `fit`.
        seed: integer, default 0.
        initializer: `"normal"`, as above, or `"layer"`: each layer's own
            initialisers, with new seeds.
        reset_optimizer: whether to reset the optimizer's momentum (and any other
            state) for the head; the authors' program keeps it.
        verbose: 1 for a line per draw, default 0.

    Attributes:
        drawn: list of the epochs, from 0, that began with a draw in the last `fit`.

    Raises:
        TypeError, ValueError: if an argument is invalid or, at the start of `fit`, if
            the model is not a `DeltaModel`, has no trainable head, or has a teacher as
            its source.

    Source: X. Li, H. Xiong, H. An, C.-Z. Xu, D. Dou, "RIFLE: Backpropagation in
    Depth for Deep Transfer Learning through Re-Initializing the Fully-connected
    LayEr", ICML 2020, and the authors' program.
    """

    remembers = ("drawn",)

    def __init__(
        self,
        cycles: int = 3,
        epochs: int | None = None,
        seed: int = 0,
        initializer: Literal["normal", "layer"] = "normal",
        reset_optimizer: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        self.cycles = integer("cycles", cycles)
        if self.cycles < 2:
            remedy = "One cycle is training without a redraw."
            raise ValueError(invalid("cycles", "2 or more", cycles, remedy))
        self.epochs = integer("epochs", epochs, optional=True)
        self.seed = integer("seed", seed, least=0)
        self.initializer = choice("initializer", initializer, ("normal", "layer"))
        self.reset_optimizer = flag("reset_optimizer", reset_optimizer)
        self.verbose = choice("verbose", verbose, (0, 1))
        self.drawn = []

    def check(self, model: keras.Model) -> None:
        """Reject a model with no head, or with a head that cannot be redrawn."""
        super().check(model)
        if model.networks.mismatch is not None:
            raise ValueError(
                "Rifle redraws the head, the layers that only the target has, but the "
                "source is another network, a teacher, so that these are all layers. "
                "Train without Rifle, or without a teacher."
            )
        if not model.pairing.new_variables:
            raise ValueError(
                "Rifle redraws the head, but the model trains no parameters that "
                "only the target has. Give the target a new head with "
                "`keras_delta.attach_head`, and keep it trainable."
            )
        for layer in _head(model):
            if self._by_initializers(layer):
                for v in layer.trainable_variables:
                    _initializer(layer, v)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Forget the draws of the last `fit`."""
        super().on_train_begin(logs)
        self.drawn = []
        if not redraws(self._total, self.cycles):
            warn(
                f"Rifle(cycles={self.cycles}) never redraws the head in "
                f"{self._total} epochs: the last {LAST_EPOCHS} have no redraw. Train "
                "longer, or pass more cycles."
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Redraw the head if it is due."""
        if epoch not in redraws(self._total, self.cycles):
            return
        for i, layer in enumerate(_head(self.model)):
            self._draw(layer, np.random.default_rng([self.seed, epoch, i]))
        if self.reset_optimizer:
            with self.model.distribute_strategy.scope():
                forget(self.model.optimizer, self.model.pairing.new_variables)
        self.drawn.append(epoch)
        if self.verbose:
            print(f"\nEpoch {epoch + 1}: Rifle has redrawn the head", flush=True)

    @property
    def _total(self):
        return self.epochs or self.params["epochs"]

    def _by_initializers(self, layer):
        return self.initializer == "layer" or isinstance(layer, NORMALIZATIONS)

    def _draw(self, layer, rng):
        if self._by_initializers(layer):
            for v in layer.weights:  # moving statistics as well
                if v.trainable or hasattr(layer, f"{v.name}_initializer"):
                    seeded = _seeded(_initializer(layer, v), int(rng.integers(2**31)))
                    v.assign(seeded(v.shape, dtype=v.dtype))
            return
        for v in layer.trainable_variables:
            shape = tuple(v.shape)
            inputs = np.prod(shape[:-1] or shape)
            v.assign(rng.normal(0.0, np.sqrt(2 / inputs), shape).astype("float32"))


def redraws(epochs, cycles):
    """Numbers of epochs after which the head is redrawn: list of ints.

    Args:
        epochs: E.
        cycles: N.
    """
    if epochs < cycles:
        return []
    period = epochs // cycles
    return list(range(period, epochs - LAST_EPOCHS + 1, period))


def forget(optimizer, variables):
    """Reset an optimizer's state for some variables to that before the first step.

    Args:
        optimizer: a built Keras optimizer.
        variables: variables that it trains.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    # Keras does not say which state belongs to which variable, nor its initial value:
    # a fresh optimizer shows both, since it keeps the same lists.
    fresh = type(optimizer).from_config(optimizer.get_config())
    known, chosen = _compat.known_variables(optimizer), {id(v) for v in variables}
    fresh.build(known)
    current = _compat.slots(optimizer)
    for name, slots in _compat.slots(fresh).items():
        for v, slot, now in zip(known, slots, current[name], strict=False):
            if id(v) in chosen and isinstance(slot, keras.Variable):
                # The moving average of the weights continues from the weights.
                now.assign(array(v if name == _compat.AVERAGES else slot))


def _head(model):
    """The layers that only the target has and that train."""
    layers = model.pairing.target.layers()
    layers = [layers[name] for name in model.pairing.new_layers]
    return [layer for layer in layers if layer.trainable_variables]


def _initializer(layer, variable):
    initializer = getattr(layer, f"{variable.name}_initializer", None)
    if initializer is None:
        raise ValueError(
            f"Rifle cannot determine the initialiser of '{variable.path}' in the layer "
            f"'{layer.name}' ({type(layer).__name__}). Use `initializer=\"normal\"`, "
            f"or give the layer an attribute `{variable.name}_initializer`."
        )
    return keras.initializers.get(initializer)


def _seeded(initializer, seed):
    """The same with another seed, as Keras's give the same values each time."""
    config = initializer.get_config()
    if "seed" not in config:
        return initializer
    return type(initializer).from_config({**config, "seed": seed})
