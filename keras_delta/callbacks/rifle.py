"""`Rifle`: a head that is drawn again, so that the layers below go on learning."""

from typing import Literal

import keras
import numpy as np

from keras_delta import _compat
from keras_delta._arguments import choice, flag, integer
from keras_delta._compat import array
from keras_delta._errors import invalid, warn
from keras_delta._types import Logs
from keras_delta.callbacks.base import Callback

LAST_EPOCHS = 4  # without a re-draw, so that the last head is trained
NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)


class Rifle(Callback):
    """RIFLE: draws the head again a few times, and so changes training on purpose.

    A head that fits the training data sends hardly any gradient to the layers
    below. RIFLE (re-initialise the fully connected layer) forgets it again and
    again: with E epochs and N cycles, before the epochs that follow `E // N`,
    `2 * (E // N)`, ... epochs of training, unless later than E - 4.

    What is drawn are the trainable variables of the layers that only the target
    has, `model.pairing.new_layers`. As in the authors' program each value is
    normal with mean 0 and variance `2 / n`, where n is the number of inputs of a
    kernel, and for a bias the number of its own values (the number of classes).
    Normalization layers in the head go back to their initialisers in any case.

    The draw follows from `seed` and the epoch alone, so a resumed training draws
    the same, and all replicas get the same values. It comes as the epoch begins, so
    that checkpoints, written as an epoch ends, hold trained heads.

    Args:
        cycles: N, 2 or more; default 3.
        epochs: E, where training takes several calls of `fit`; default: the
            `epochs` of `fit`.
        seed: an integer, default 0.
        initializer: `"normal"`, as above, or `"layer"`: each layer's own
            initialisers, newly seeded.
        reset_optimizer: whether the optimizer forgets the momentum (and whatever
            else it keeps) of the head; the authors' program keeps it.
        verbose: 1 for a line per draw, default 0.

    Attributes:
        drawn: list of the epochs, from 0, that began with a draw in the last `fit`.

    Raises:
        TypeError, ValueError: for bad arguments here; at the start of `fit` for a
            model that is no `DeltaModel` or has no head that trains.

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
            remedy = "One cycle is training without a re-draw."
            raise ValueError(invalid("cycles", "2 or more", cycles, remedy))
        self.epochs = integer("epochs", epochs, optional=True)
        self.seed = integer("seed", seed, least=0)
        self.initializer = choice("initializer", initializer, ("normal", "layer"))
        self.reset_optimizer = flag("reset_optimizer", reset_optimizer)
        self.verbose = choice("verbose", verbose, (0, 1))
        self.drawn = []

    def check(self, model: keras.Model) -> None:
        """Refuse a model without a head to draw, or one that cannot be drawn."""
        super().check(model)
        if not model.pairing.new_variables:
            raise ValueError(
                "Rifle draws the head again, but the model trains no parameters that "
                "only the target has. Give the target a new head with "
                "`keras_delta.attach_head`, and leave it trainable."
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
                f"Rifle(cycles={self.cycles}) never draws the head again in "
                f"{self._total} epochs: the last {LAST_EPOCHS} are without. Train "
                "longer, or pass more cycles."
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Draw, where it is time."""
        if epoch not in redraws(self._total, self.cycles):
            return
        for i, layer in enumerate(_head(self.model)):
            self._draw(layer, np.random.default_rng([self.seed, epoch, i]))
        if self.reset_optimizer:
            with self.model.distribute_strategy.scope():
                forget(self.model.optimizer, self.model.pairing.new_variables)
        self.drawn.append(epoch)
        if self.verbose:
            print(f"\nEpoch {epoch + 1}: Rifle has drawn the head again", flush=True)

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
            inputs = np.prod(v.shape[:-1]) if len(v.shape) > 1 else v.shape[0]
            v.assign(rng.normal(0.0, np.sqrt(2 / inputs), v.shape).astype("float32"))


def redraws(epochs, cycles):
    """After how many epochs the head is drawn again: list of ints.

    Args:
        epochs: E.
        cycles: N.
    """
    if epochs < cycles:
        return []
    period = epochs // cycles
    return list(range(period, epochs - LAST_EPOCHS + 1, period))


def forget(optimizer, variables):
    """Make an optimizer's state of some variables what it is before the first step.

    Args:
        optimizer: a built Keras optimizer.
        variables: variables that it trains.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    # Keras does not say which state belongs to which variable, nor how it begins:
    # a fresh optimizer tells both, since it keeps the same lists.
    fresh = type(optimizer).from_config(optimizer.get_config())
    fresh.build(variables)
    current = _compat.slots(optimizer)
    for name, slots in _compat.slots(fresh).items():
        for v, slot in zip(variables, slots, strict=False):
            if isinstance(slot, keras.Variable):
                # The moving average of the weights goes on from the weights.
                begin = array(v if name == _compat.AVERAGES else slot)
                current[name][_compat.variable_index(optimizer, v)].assign(begin)


def _head(model):
    """The layers that only the target has and that train."""
    layers = model.pairing.target.layers()
    layers = [layers[name] for name in model.pairing.new_layers]
    return [layer for layer in layers if layer.trainable_variables]


def _initializer(layer, variable):
    initializer = getattr(layer, f"{variable.name}_initializer", None)
    if initializer is None:
        raise ValueError(
            f"Rifle does not know the initialiser of '{variable.path}', in the layer "
            f"'{layer.name}' ({type(layer).__name__}). Use `initializer=\"normal\"`, "
            f"or give the layer an attribute `{variable.name}_initializer`."
        )
    return keras.initializers.get(initializer)


def _seeded(initializer, seed):
    """The same with another seed: one of Keras's gives the same values each time."""
    config = initializer.get_config()
    if "seed" not in config:
        return initializer
    return type(initializer).from_config({**config, "seed": seed})
