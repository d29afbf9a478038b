"""`Bench`: models that are traced once and set back for each training."""

import collections
import contextlib
import time

import keras
import numpy as np
import tensorflow as tf

from keras_delta import backbones, _disk, fit_head, optimizers, regularizers
from keras_delta._inputs import replay
from keras_delta._inputs.look import Samples
from keras_delta._inputs.samples import joined
from keras_delta.attention import ChannelAttention, losses
from keras_delta.attention.head_fit import HeadFit
from experiments import methods
from keras_delta._network.graph import Graph
from keras_delta._runs.models import Models, kind_of_regularizer, set_seeds
from keras_delta._runs.store import digest, once
from keras_delta._network.attach import attach_head
from keras_delta.model import DeltaModel
from keras_delta.regularizers.maps import MapRegularizer

KEPT = 6  # models in memory at a time


@keras.saving.register_keras_serializable("keras_delta")
class EverySecond(keras.optimizers.schedules.LearningRateSchedule):
    """A strength at the steps 0, 2, 4, ..., and zero between them."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def __call__(self, step):
        """The strength at a step."""
        even = tf.equal(tf.cast(step, tf.int64) % 2, 0)
        return self.value * tf.cast(even, tf.float32)

    def get_config(self):
        """Arguments of `__init__`."""
        return {"value": self.value}


class Bench:
    """The models of a process, and what is computed once for several trainings.

    A model is built and traced once for all cells that differ in data, seed, constant
    strengths or attention alone.
    """

    def __init__(self, once):
        self._once, self._models = once, Models(KEPT)
        self._sources, self._keys = {}, {}
        self.drop = self._models.drop

    def warm(self, cell):
        """Whether the cell's model is in memory, as far as can be told cheaply."""
        key = self._keys.get(_kind_of_cell(cell))
        return key is not None and self._models.has(key)

    def begin(self, cell, classes, images, train, where):
        """The cell's model, compiled, set back and prepared."""
        wanted = self._regularizer(cell, images)
        protocol = cell.protocol
        key = [
            *(cell.network, cell.image_size, cell.weights, classes, cell.taps),
            *(cell.batch_norm, protocol.batch_norm_momentum),
            *(protocol.backbone_rate, protocol.nesterov, kind_of_regularizer(wanted)),
            cell.method == "stoch_norm",
        ]
        self._keys[_kind_of_cell(cell)] = key
        model = self._models.begin(key, lambda: self._build(cell, classes, wanted))
        _draw_head(model, cell.seed)
        model.regularizer.take_strengths(wanted)
        seconds = []
        if cell.head != "random":
            where = {**where, "head": cell.head}
            began = time.process_time()
            fit_head(model, train(), verbose=0)
            seconds.append(time.process_time() - began)
        members = regularizers.members(model.regularizer)
        seconds += [self._prepare(cell, model, m, train, where) for m in members]
        if not model.regularizer.ready:  # what else `fit` would measure, off the clock
            began = time.process_time()
            model.prepare(train(), recipe="none", verbose=0)
            seconds.append(time.process_time() - began)
        set_seeds(cell.seed)
        return model, sum(seconds)

    def _build(self, cell, classes, regularizer):
        source = self.source(cell, regularizer.needs_source_head)
        # Not before: it draws as well, but in the first model alone.
        keras.utils.set_random_seed(0)
        model = DeltaModel(
            self._target(cell, classes),
            source=source,
            taps=cell.taps if isinstance(cell.taps, str) else list(cell.taps),
            regularizer=regularizer,
        )
        protocol = cell.protocol
        options = {"momentum": 0.9, "nesterov": protocol.nesterov}
        if protocol.backbone_rate == 1:
            optimizer = keras.optimizers.SGD(0.01, **options)
        else:
            factors = dict.fromkeys(model.pairing.new_layers, 1.0)
            factors["default"] = protocol.backbone_rate
            optimizer = optimizers.LayerwiseSGD(0.01, multipliers=factors, **options)
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=bool(tf.config.list_physical_devices("GPU")),
        )
        return model

    def source(self, cell, include_top=False):
        """The pretrained network of a cell, built once."""
        key = cell.network, cell.image_size, cell.weights, include_top
        if key not in self._sources:
            size = cell.image_size or backbones.ALL[cell.network].size
            build = backbones.get(cell.network)
            options = {"include_top": True} if include_top else {}
            options |= {"weights": cell.weights, "input_shape": (size, size, 3)}
            self._sources[key] = build(**options)
        return self._sources[key]

    def _target(self, cell, classes):
        target = attach_head(
            self.source(cell),
            classes,
            batch_norm_momentum=cell.protocol.batch_norm_momentum,
            stochastic_norm=0.5 if cell.method == "stoch_norm" else None,
        )
        if cell.batch_norm == "frozen":
            for layer in target.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.trainable = False
        return target

    def _regularizer(self, cell, images):
        alpha = cell.alpha
        make = methods.get(cell.method).make
        if cell.strength != "constant":
            value = make(alpha, cell.beta, cell.protocol.variant).alpha
            steps = cell.protocol.epochs(images) * -(
                -images // cell.protocol.batch_size
            )
            alpha = EverySecond(value)
            if cell.strength == "decaying":
                schedules = keras.optimizers.schedules
                alpha = schedules.PolynomialDecay(value, steps, end_learning_rate=0.0)
        return make(alpha, cell.beta, cell.protocol.variant)

    def _prepare(self, cell, model, member, train, where):
        """Attention and scales of a regularizer, from files that processes share."""
        seconds = 0.0
        network = [cell.network, cell.image_size, cell.weights, model.taps]
        where = {"network": network, "seed": cell.seed, **where}
        if isinstance(member, MapRegularizer) and member.variant == "relative":
            found = self._computed(
                {"what": "scales", **where}, lambda: _scales(model, member, train())
            )
            member.set_scales(found["scales"])
            seconds += found["seconds"]
        if regularizers.with_attention(member):
            attention, took = self._attention(cell, model, train, where)
            member.set_attention_weights(attention)
            seconds += took
        return seconds

    def _computed(self, made_for, compute):
        """What `compute` gave, in whichever process came first."""
        path = self._once / f"{made_for['what']}_{digest(made_for)}.json"

        def timed():
            began = time.process_time()
            value = compute()
            return {**value, "seconds": time.process_time() - began}

        return once(
            path.with_suffix(".lock"),
            lambda: _disk.read_json(path),
            timed,
            lambda value: _disk.write_json(path, {**value, "made_for": made_for}),
        )

    def _attention(self, cell, model, train, where):
        """(`ChannelAttention`, seconds that it took)."""
        shapes = {t: model.target.get_layer(t).output.shape[-1] for t in model.taps}
        if cell.attention == "uniform":
            even = {tap: np.ones(channels) for tap, channels in shapes.items()}
            return ChannelAttention.from_weights(even), 0.0
        samples = cell.attention_samples or cell.protocol.attention_samples
        kind = cell.attention if cell.attention in ("per_class", "taylor") else "exact"
        found = self._computed(
            {"what": f"attention_{kind}", "samples": samples, **where},
            lambda: {"scores": _scores(model, kind, train(), samples)},
        )
        scores = {tap: np.array(s, "float32") for tap, s in found["scores"].items()}
        attention = ChannelAttention.from_scores(scores, temperature=cell.temperature)
        changed = {
            "permuted": lambda i, w: np.random.default_rng([cell.seed, i]).permutation(
                w
            ),
            "top_half": lambda i, w: np.where(w > np.median(w), w, 0),
        }.get(cell.attention)
        if changed is not None:
            weights = enumerate(attention.weights.items())
            attention = ChannelAttention.from_weights(
                {tap: changed(i, w) for i, (tap, w) in weights}
            )
        return attention, found["seconds"]


def _draw_head(model, seed):
    """First values of the head: Keras's own initializers, of this seed."""
    for i, variable in enumerate(model.pairing.new_variables):
        if len(variable.shape) > 1:
            draw = keras.initializers.GlorotUniform(seed=seed * 1000 + i)
            variable.assign(draw(variable.shape))
        else:
            variable.assign(np.zeros(variable.shape))


def _kind_of_cell(cell):
    """What of a cell is likely to need a model of its own."""
    return digest(
        [
            *(cell.dataset, cell.network, cell.image_size, cell.weights, cell.method),
            *(cell.taps, cell.batch_norm, cell.protocol.batch_norm_momentum),
            *(cell.protocol.variant, cell.strength),
        ]
    )


def _scales(model, member, train):
    """Scales of the source's maps, as `fit` measures them."""
    # The scales alone: `Delta.prepare` would compute the attention as well.
    read = Samples(lambda count: replay.look(train, None, count))
    MapRegularizer.prepare(member, model, read, verbose=False)
    return {"scales": member.scales}


def _scores(model, kind, train, samples):
    """Scores of the channels: dict tap -> list."""
    by_kind = {"per_class": _scores_by_class, "taylor": _scores_by_gradient}
    look = samples is not None or kind in by_kind
    data = joined(replay.look(train, None, samples)) if look else train
    if kind in by_kind:
        with _trained_head(model, *data):
            return by_kind[kind](model, *data)
    attention = ChannelAttention.compute(model, data, train_head="auto", progress=False)
    return {tap: s.tolist() for tap, s in attention.scores.items()}


@contextlib.contextmanager
def _trained_head(model, x, y):
    """The target's head is trained on the features as they are, for a while."""
    graph = Graph(model.target)
    head = HeadFit(graph, model.pairing.new_layers, (x, y))
    before = [(v, v.value.numpy()) for v in model.pairing.new_variables]
    for variable, trained in head.train(losses.choose(model, graph, None, y)):
        variable.assign(trained)
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _scores_by_gradient(model, x, y):
    """`-sum_hw a * dL/da`: what zeroing a channel would cost if L were linear."""
    graph = Graph(model.target)
    maps = [graph.output_of(tap) for tap in model.taps]
    totals = dict.fromkeys(model.taps, 0.0)
    for start in range(0, len(y), 32):
        feeds = graph.feed(x[start : start + 32])
        with tf.GradientTape() as tape:
            tape.watch(feeds)
            values, outputs = graph.run(
                (maps, graph.outputs), graph.inputs, feeds, training=False
            )
            loss = keras.losses.sparse_categorical_crossentropy(
                y[start : start + 32], outputs, from_logits=True
            )
        slopes = tape.gradient(loss, values)
        for tap, a, slope in zip(model.taps, values, slopes, strict=True):
            axes = range(len(a.shape) - 1)
            totals[tap] -= tf.reduce_sum(a * slope, axis=axes).numpy().astype("float64")
    return {tap: (total / len(y)).tolist() for tap, total in totals.items()}


def _scores_by_class(model, x, y):
    """For each channel the largest of its standardised scores over the classes.

    A channel that a single class lives on counts as much as one that all need.
    """
    found = collections.defaultdict(list)
    for label in np.unique(y):
        its = y == label
        attention = ChannelAttention.compute(model, (x[its], y[its]), progress=False)
        for tap, s in attention.scores.items():
            found[tap].append((s - s.mean()) / (s.std() + 1e-12))
    return {tap: np.max(s, axis=0).tolist() for tap, s in found.items()}
