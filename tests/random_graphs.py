"""Small networks of any form, built of one plan as often as a test needs them.

Source and target have one plan, so which of their calls belong together is known. What
a call puts out is computed by Keras alone, see `Network.maps`.
"""

import keras
import numpy as np
from keras import layers, tree
from random_plans import (
    CLASSES,
    FRONTS,
    JOINS,
    KINDS,
    OLD_CLASSES,
    SMALLEST,
    WIDTH,
    attend,
    conv,
    one,
    widen,
)


class Network:
    """A network of a plan.

    Args:
        plan: the `Plan`.
        heads: how many outputs it has.
        units: of each head; None for a network that ends in maps.
        names: of the layers, `"same"` for those of the source.
        front: name of what lies before the first weights.
        nested: whether body and branches are models of their own.
        inserted: see `Plan`.

    Attributes:
        model: the Keras model.
        layers: dict key -> layer; keys mean the same in all networks of a plan.
        places: dict place -> (layer, KerasTensor that a call of it puts out), of layers
            with weights and sums; places mean the same too.
        ends: the last maps, each before a head if there are any.
    """

    def __init__(
        self,
        plan,
        heads,
        units=None,
        names="same",
        front="none",
        nested=False,
        inserted=(),
    ):
        self.plan, self.heads = plan, heads
        self.nested, self.inserted = nested, inserted
        self.layers, self.places = {}, {}
        self._prefix = "m" if names == "other" else "n"
        self._first = 1 if names == "shifted" else 0
        inputs = [
            keras.Input(shape, name=f"x{i}") for i, shape in enumerate(plan.shown)
        ]
        images = [self._front(x, front) for x in inputs]
        (self.ends,) = self._each(self._body, [images], nested)
        outputs = self.ends
        if units:
            outputs = [self._head(x, units, i) for i, x in enumerate(self.ends)]
        self.model = keras.Model(one(inputs), one(outputs))
        self.tensors = {place: t for place, (_, t) in self.places.items()}
        self._probe = keras.Model(self.model.inputs, list(self.tensors.values()))

    def maps(self, x):
        """Dict place -> what its call puts out in inference mode, by Keras alone."""
        found = tree.flatten(self._probe(tree.flatten(x), training=False))
        return dict(zip(self.tensors, map(np.asarray, found), strict=True))

    def calls(self, graph, x, sums=False):
        """Dict name of a call with weights -> its places, found by what it puts out.

        There are several where a layer puts out the same twice.

        Args:
            graph: `Graph` of the model, or of a flat copy.
            x: images.
            sums: whether sums are wanted too.
        """
        fetches = {
            name: node.outputs[0]
            for name, node in graph.nodes.items()
            if node.is_layer
            and (
                node.operation.weights
                or (sums and isinstance(node.operation, layers.Add))
            )
        }
        values = graph.run(fetches, graph.inputs, graph.feed(x), training=False)
        maps = self.maps(x)
        return {
            name: {
                place
                for place, (layer, _) in self.places.items()
                if layer.name == graph.nodes[name].operation.name
                and np.array_equal(maps[place], value)
            }
            for name, value in values.items()
        }

    @property
    def changed(self):
        """The places from the first inserted layer on, the heads among them."""
        places = [*self.places]
        new = [i for i, place in enumerate(places) if "new" in place]
        return set(places[min(new, default=len(places)) :])

    def _front(self, x, front):
        made = [make() for make in FRONTS[front]]
        if self.nested and made and isinstance(made[0], layers.Layer):
            return keras.Sequential(made)(x)
        for layer in made:
            x = layer(x)
        return x

    def _head(self, x, units, i):
        rank = len(x.shape) - 2
        x = getattr(layers, f"GlobalAveragePooling{rank}D")()(x)
        return self._call(f"head{i}", lambda name: layers.Dense(units, name=name), x)

    def _call(self, key, make, *tensors):
        """The layer of the key, made once: what is called again is shared."""
        if key not in self.layers:
            number = self._first + len(self.layers)
            self.layers[key] = make(f"{self._prefix}{number}")
        layer = self.layers[key]
        x = layer(*tensors)
        if layer.weights:
            number = sum(layer is other for other, _ in self.places.values())
            self.places[f"{key}#{number}"] = layer, x
        return x

    def _add(self, key, *tensors):
        layer = layers.Add()
        x = layer(tensors)
        self.places[f"{key}sum{len(self.places)}"] = layer, x
        return x

    def _each(self, grow, entering, nested):
        """The ends of `grow` for each of several tensors, by the same layers."""
        found = []
        if nested:
            before, self.places = self.places, {}
            inner = tree.map_structure(lambda t: keras.Input(t.shape[1:]), entering[0])
            model = keras.Model(inner, grow(inner))
            inside, self.places = self.places, before
            probe = keras.Model(inner, [t for _, t in inside.values()])
        for i, x in enumerate(entering):
            outer, self.places = self.places, {}
            if nested:
                found.append(tree.flatten(model(x)))
                tensors = tree.flatten(probe(x))
                made = zip(inside.items(), tensors, strict=True)
                self.places = {place: (v[0], t) for (place, v), t in made}
            else:
                found.append(grow(x))
            here, self.places = self.places, outer
            self.places |= {f"{i}/{place}": v for place, v in here.items()}
        return found

    def _body(self, images):
        plan, x = self.plan, images[0]
        if plan.images == "shared":

            def branch(x):
                return self._steps(x, plan.branch, "both")[-1:]

            (x,), (other,) = self._each(branch, images, self.nested)
        elif plan.images == "own":
            x = self._steps(images[0], plan.branch, "left")[-1]
            other = self._steps(images[1], plan.branch, "right")[-1]
        if plan.images != "one":
            x = self._join(plan.join, x, other, "images")
        before = self._steps(x, plan.steps, "", self.inserted)
        if plan.tokens is not None:
            before += self._tokens(before[-1], plan.tokens)
        return [before[len(before) // 2], before[-1]][-self.heads :]

    def _steps(self, x, steps, branch, inserted=()):
        """Maps `x` and those of each step; a step that does not fit does nothing."""
        before, again = [x], []
        for i, (kind, back) in enumerate(steps):
            key, other = f"{branch}{i}", before[-1 - back % len(before)]
            if i in inserted:
                x = self._call(f"{key}new", KINDS["conv"], x)
            if x.shape[-1] != WIDTH:  # colours to maps
                x = self._call(key, KINDS["conv"], x)
            elif kind in JOINS:
                x = self._join(kind, x, other, key)
            elif kind != "again":
                again.append((kind, key))
                x = self._kind(kind, key, x)
            elif again:
                x = self._kind(*again[back % len(again)], x)
            before.append(x)
        return before

    def _kind(self, kind, key, x):
        fits = min(x.shape[1:-1]) >= SMALLEST.get(kind, 1)
        return self._call(key, KINDS[kind], x) if fits else x

    def _join(self, kind, x, other, key):
        same = x.shape[1:-1] == other.shape[1:-1]
        if kind == "add" and x.shape == other.shape:
            return self._add(key, x, other)
        if kind == "join" and same:
            return self._call(key, conv(1), layers.Concatenate()([x, other]))
        pooled = layers.GlobalAveragePooling2D(keepdims=True)(other)
        gate = self._call(key, conv(1, activation="sigmoid"), pooled)
        return layers.Multiply()([x, gate])

    def _tokens(self, x, steps):
        """Tokens of maps, those of each step of a transformer."""
        x = self._call("patches", conv(2, 2), x)
        x = layers.Reshape((-1, WIDTH))(x)
        before, again = [x], []
        for i, (kind, back) in enumerate(steps):
            key, other = f"token{i}", before[-1 - back % len(before)]
            if kind == "add":
                x = self._add(key, x, other)
            elif kind != "again":
                again.append((kind, key))
                x = self._token(kind, key, x)
            elif again:
                x = self._token(*again[back % len(again)], x)
            before.append(x)
        return before

    def _token(self, kind, key, x):
        if kind in KINDS:
            return self._call(key, KINDS[kind], x)
        branch = self._call(f"{key}norm", KINDS["norm"], x)
        if kind == "attention":
            branch = self._call(key, attend, branch, branch)
        else:
            branch = self._call(f"{key}wide", widen, branch)
            branch = self._call(key, KINDS["dense"], branch)
        return self._add(key, x, branch)


def build_source(plan):
    """The pretrained network, with weights unlike those that Keras makes."""
    units = OLD_CLASSES if plan.old_head else None
    network = Network(plan, plan.heads[1], units, front=plan.fronts[1])
    settle(network)
    return network


def build_target(plan, source):
    """The network to train: the source's layers with its weights, and new heads."""
    target = Network(
        plan,
        plan.heads[0],
        CLASSES,
        plan.names,
        plan.fronts[0],
        plan.nested,
        plan.inserted,
    )
    for key, layer in target.layers.items():
        if key in source.layers and not key.startswith("head"):
            layer.set_weights(source.layers[key].get_weights())
    return target


def settle(network, seed=0):
    """Positive weights, so that no ReLU shuts, which keep the size of the maps."""
    rng = np.random.default_rng(seed)
    for layer in network.layers.values():
        for v in layer.weights:
            if len(v.shape) > 1:
                v.assign(np.abs(rng.normal(size=v.shape)) / np.prod(v.shape[:-1]))
            else:
                v.assign(rng.uniform(0.3, 1.3, v.shape))


def compiled(plan, model, **kwargs):
    """Compiled for the labels of a plan. Eagerly: to trace takes seconds."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = one([loss] * plan.heads[0])
    model.compile(keras.optimizers.SGD(0.01), losses, run_eagerly=True, **kwargs)
    return model


def freeze(network, count):
    """Freeze the first layers, heads excepted."""
    body = [layer for key, layer in network.layers.items() if "head" not in key]
    for layer in body[:count]:
        layer.trainable = False
