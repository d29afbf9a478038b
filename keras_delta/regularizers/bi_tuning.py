"""Bi-Tuning: contrastive learning beside the task loss."""

import math
from types import SimpleNamespace
from typing import Any, Literal

import keras
import tensorflow as tf
from keras import ops, tree

from keras_delta import _arguments, _compat
from keras_delta._compat import array
from keras_delta._network.heads import last_dense
from keras_delta._network.networks import Networks
from keras_delta._network.replicas import run_on_samples
from keras_delta._types import Strength, Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.batch import Batch
from keras_delta.regularizers.features import check_features, gather, read_labels
from keras_delta.regularizers.predictions import mean

VIEWS = ("flip", "same")


@keras.saving.register_keras_serializable("keras_delta")
class BiTuning(Regularizer):
    """Pulls images of a class together, as features and as seen by the classifier.

    A key encoder, whose parameters follow the target's (`key <- m key + (1 - m)
    target` after each step), sees a second view of each batch. For each class the last
    K keys are kept in a queue. With the features `h` of the target and a trained
    projection `z` of these, both of unit length, and `w_y` the classifier's row for
    the true class with its bias, held constant and also of unit length,

        logits_z = (<z, own key>, <z, K keys of the class>, <z, keys of all others>) / t
        logits_y = (<[h; 1], w_y>, <K keys of the class, w_y>, <all others, w_y>) / t
        Omega = KL(u || softmax(logits_z)) + KL(u || softmax(logits_y)), mean over b,

    with `u = 1 / (K + 1)` on the first `K + 1`. Queues start at random values. The
    encoder needs as much memory as the target's parameters, and each step that of one
    more forward pass.

    Args:
        alpha: strength (the paper's lambda), default 1.
        beta: strength of the head penalty, default 0.
        keys: K, default 40 as in tllib, which has about as many images per class.
        temperature: t, default 0.07.
        momentum: m, default 0.999. In short trainings on few images the encoder then
            hardly moves.
        projection: length of z, default 128.
        view: input of the key encoder: `"flip"`, the images mirrored at random once
            more, or `"same"`. (The authors' data provide two augmented views.)
        name: optional name.

    Raises:
        ValueError: if the target does not predict classes.

    Source: Zhong et al., "Bi-tuning: efficient transfer from pre-trained models", 2020,
    arXiv 2011.06182; github.com/thuml/Transfer-Learning-Library (`bi_tuning.py`).
    """

    needs = frozenset({"target_features"})
    needs_classes = True
    starts_at_source = False

    def __init__(
        self,
        alpha: Strength = 1.0,
        beta: Strength = 0.0,
        keys: int = 40,
        temperature: float = 0.07,
        momentum: float = 0.999,
        projection: int = 128,
        view: Literal["flip", "same"] = "flip",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(alpha, beta, name=name, **kwargs)
        self.keys = _arguments.integer("keys", keys)
        self.temperature = _arguments.number("temperature", temperature, above=0)
        self.momentum = _arguments.number("momentum", momentum, most=1)
        self.projection = _arguments.integer("projection", projection)
        self.view = _arguments.choice("view", view, VIEWS)
        # Lists: Keras keeps tracking a layer whose attribute is deleted.
        self._projections, self._flips = [], []
        # Not a plain list: Keras would take the target's variables for ours.
        self._encoder = SimpleNamespace(pairs=[], head=None)

    @property
    def queues(self) -> tuple[keras.Variable, keras.Variable]:
        """Variables `(classes, K, projection)` of `z` and `(classes, K, D + 1)`."""
        return self._queue_z, self._queue_h

    @property
    def followed(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """List of pairs: a variable of the target and the encoder's following it."""
        return list(self._encoder.pairs)

    def project(self, features: Tensor) -> Tensor:
        """`z` of features `(B, D)`, of unit length."""
        return _unit(self._projections[0](ops.cast(features, "float32")))

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; the target must predict classes."""
        super().check(networks)
        check_features(networks, "target", "bi_tuning")

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`; makes projection, key encoder and queues."""
        super().bind(networks)
        self._networks = networks
        self._encoder.head = last_dense(networks.target).operation
        width, classes = self._encoder.head.kernel.shape
        options = {"dtype": "float32", "name": "projection"}
        self._projections.append(keras.layers.Dense(self.projection, **options))
        self._projections[0].build((None, width))
        if self.view == "flip":
            # float32: a policy's 16 bits would round raw pixels.
            flip = keras.layers.RandomFlip("horizontal", dtype="float32")
            self._flips.append(flip)
        # Frozen ones too: layers may be frozen or thawed until a file is loaded.
        models = networks.target.model, self._projections[0]
        followed = [v for model in models for v in _compat.parameters(model)]
        for i, variable in enumerate(followed):
            key = self._add(f"key_{i}", variable.shape, "zeros", variable.dtype)
            key.assign(variable)
            self._encoder.pairs.append((variable, key))
        shape = classes, self.keys
        draw = keras.initializers.RandomNormal(stddev=1.0)
        self._queue_z = self._add("queue_z", (*shape, self.projection), draw)
        self._queue_h = self._add("queue_h", (*shape, width + 1), draw)
        for queue in (self._queue_z, self._queue_h):
            queue.assign(_unit(array(queue)))
        self._pointer = self._add("pointer", (classes,), "zeros", "int32")

    def _add(self, name, shape, initializer, dtype="float32"):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype=dtype,
            trainable=False,
            aggregation="only_first_replica",
        )

    def batch_distance(self, batch: Batch) -> Tensor:
        """See `Regularizer.batch_distance`; then the batch's keys join the queues."""
        shares, weights = read_labels(batch, self._encoder.head.kernel.shape[1])
        numbers = ops.cast(ops.argmax(shares, axis=-1), "int32")
        h = ops.cast(batch.target_features, "float32")
        z, h = self.project(h), _unit(_with_one(h))
        key_z, key_h = self._encode(batch.images)
        kernel, bias = (ops.cast(v, "float32") for v in self._classifier())
        rows = ops.concatenate([ops.transpose(kernel), bias[:, None]], axis=1)
        own = ops.take(_unit(ops.stop_gradient(rows)), numbers, axis=0)
        queues = ops.convert_to_tensor(self._queue_z), self._queue_h
        similar = (
            (ops.sum(z * key_z, axis=1), ops.einsum("bd,ckd->bck", z, queues[0])),
            (ops.sum(own * h, axis=1), ops.einsum("bd,ckd->bck", own, queues[1])),
        )
        total = ops.zeros((), "float32")
        for first, others in similar:
            each = contrastive_distance(first, others, numbers, self.temperature)
            total = total + mean(each * weights)
        new = [key_z, key_h, numbers, ops.cast(weights > 0, "float32")]
        self._enqueue(*(gather(rows, batch.replicas) for rows in new))
        return total * batch.share

    def _classifier(self):
        head = self._encoder.head
        zeros = ops.zeros((head.kernel.shape[1],))
        return head.kernel, zeros if head.bias is None else head.bias

    def _encode(self, images):
        """The keys of a batch, `z` and `[h; 1]`, without gradients."""
        for flip in self._flips:
            images = tree.map_structure(
                lambda x, flip=flip: flip(x, training=True) if _is_image(x) else x,
                images,
            )
        networks = self._networks
        mapping = [(v, ops.convert_to_tensor(key)) for v, key in self._encoder.pairs]

        def encode(images):
            return networks.run_target(images, True, networks.target_features)[1]

        # BatchNormalization uses the batch's statistics but does not store them.
        with keras.StatelessScope(state_mapping=mapping):
            h = run_on_samples(tf.distribute.get_strategy(), encode, images)
            z = self.project(h)
        h = _unit(_with_one(ops.cast(h, "float32")))
        return ops.stop_gradient(z), ops.stop_gradient(h)

    def _enqueue(self, z, h, numbers, counted):
        """Replace the oldest keys of each class, at most K per class."""
        classes = self._queue_z.shape[0]
        one_hot = ops.one_hot(numbers, classes, dtype="int32")
        one_hot = one_hot * ops.cast(counted[:, None], "int32")
        many = ops.sum(one_hot, axis=0)
        rank = ops.sum(ops.cumsum(one_hot, axis=0) * one_hot, axis=1) - 1
        kept = ops.logical_and(rank >= ops.take(many, numbers) - self.keys, rank >= 0)
        pointer = ops.convert_to_tensor(self._pointer)
        place = (ops.take(pointer, numbers) + rank) % self.keys
        where = ops.where(kept)[0]
        indices = ops.stack([ops.take(numbers, where), ops.take(place, where)], axis=1)
        for queue, rows in ((self._queue_z, z), (self._queue_h, h)):
            new = ops.take(rows, where, axis=0)
            queue.assign(ops.scatter_update(ops.convert_to_tensor(queue), indices, new))
        self._pointer.assign((pointer + many) % self.keys)

    def after_step(self, batch: Batch) -> None:
        """See `Regularizer.after_step`; the key encoder follows the target."""
        m = self.momentum
        for variable, key in self._encoder.pairs:
            now = ops.convert_to_tensor(variable)
            key.assign(m * ops.convert_to_tensor(key) + (1 - m) * now)

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        own = ("keys", "temperature", "momentum", "projection", "view")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


def contrastive_distance(own, others, numbers, temperature):
    """`KL(u || softmax(logits))`, with `u` uniform on the keys of image and class.

    Args:
        own: `(B,)`, similarity to the image's own key.
        others: `(B, classes, K)`, to the keys of each class.
        numbers: `(B,)`, classes.
        temperature: divisor of the similarities.

    Returns:
        `(B,)` float32.
    """
    _, classes, keys = others.shape
    positive = ops.one_hot(numbers, classes, dtype="float32")[:, :, None]
    all_of_them = ops.reshape(others, (-1, classes * keys))
    logits = ops.concatenate([own[:, None], all_of_them], axis=1) / temperature
    of_class = own + ops.sum(others * positive, axis=(1, 2))
    of_class = of_class / (temperature * (keys + 1))
    return ops.logsumexp(logits, axis=1) - of_class - math.log(keys + 1)


def _unit(vectors):
    vectors = ops.convert_to_tensor(vectors)
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return vectors / ops.sqrt(ops.maximum(squares, 1e-24))


def _with_one(h):
    return ops.concatenate([h, ops.ones_like(h[:, :1])], axis=1)


def _is_image(x):
    return len(x.shape) == 4
