"""A served network's computations, on TensorFlow tensors."""

import tensorflow as tf
from keras import tree

from keras_delta._answers import tasks
from keras_delta._errors import invalid
from keras_delta._network import auto_taps
from keras_delta._network import taps as tapping
from keras_delta._network.graph import Graph, check_channels_last
from keras_delta._network.heads import body_output, head_layers, output_activation

POOLED = "pooled"


class Network:
    """A network's logits, features and class activation maps.

    Args:
        target: Functional or Sequential model with one image input, colour or grey,
            and one output `(B, units)`.
        taps: list of layer names whose maps count as features, or `"auto"`: as for
            `DeltaModel`, or only the last maps if that finds none.
        from_logits: whether the output is logits; None: inferred from the last layer's
            activation.
        task: name of the task, or a function of the graph that returns it.

    Attributes:
        channels: of the images, 3 or 1.
        classes: number of classes, labels or numbers.
        graph: `Graph` of the model.
        image_size: (height, width) of the input, None if it takes any.
        target: the model.
        task: see `keras_delta._answers.tasks`.

    Raises:
        TypeError, ValueError: if the model has another form, taps are unknown, or the
            activation is unknown and `from_logits` is None.
    """

    def __init__(self, target, taps="auto", from_logits=None, task="multiclass"):
        self.graph = graph = Graph(target)
        check_channels_last(graph, "model")
        outputs = tree.flatten(graph.outputs)
        for what, tensors in ("input", graph.inputs), ("output", outputs):
            if len(tensors) != 1:
                remedy = "Export a model of one image and one output, "
                remedy += "`keras.Model(model.inputs[0], model.outputs[0])`; or the "
                remedy += "whole network unchanged, with `model.export(path)`."
                names = [t.name for t in tensors]
                raise ValueError(invalid("model", f"one {what}", names, remedy))
        (self._input,), (self._output,) = graph.inputs, outputs
        if len(self._input.shape) != 4 or self._input.shape[-1] not in (1, 3):
            expected = "a model of images (B, height, width, 3), or 1 for grey ones"
            raise ValueError(invalid("model", expected, self._input.shape))
        self.channels = self._input.shape[-1]
        name = task(graph) if callable(task) else task
        self.task = tasks.get(name, _from_logits(graph, from_logits, name))
        units = self._output.shape[-1]
        if len(self._output.shape) != 2 or not self.task.takes(units):
            expected = f"a model with the output (B, {self.task.units}) for '{name}'"
            remedy = "" if units != 1 else 'One unit is "binary" or "regression".'
            if units == 2:
                remedy = 'Two units are two classes: `task="multiclass"`.'
            raise ValueError(invalid("model", expected, self._output.shape, remedy))
        self.classes = self.task.number_of_names(units)
        self.image_size = tuple(self._input.shape[1:3])
        self._last_map = body_output(graph)
        self.taps = self._auto() if taps == "auto" else list(taps)
        for name in self.taps:
            tapping.check(name, graph, "model")
        self.target = target
        head = head_layers(graph)
        self._vector = graph.nodes[head[0]].inputs[0] if head else None

    def logits(self, images):
        """Logits `(B, classes)`, float32, of images `(B, height, width, channels)`."""
        return self.task.logits(self._run(self._output, images))

    def features(self, images):
        """Dict from taps to maps `(B, H, W, C)`; `"pooled"` is the head's input."""
        values = self._run(self._feature_tensors(), images)
        return {k: _float(v) for k, v in values.items()}

    def activation_maps(self, images, class_ids):
        """Where in the image the network sees a class: Grad-CAM.

        With the last maps A before the head and a class's logit z,

            map = relu(sum_c w_c A_c),    w_c = mean over positions of dz / dA_c,

        divided by its largest value. For an average pooling and one Dense layer that
        is the class activation map of Zhou et al. (2016), without negative values.

        Returns the maps, `(B, h, w)` from 0 to 1, and the classes used, int64: the
        most likely one if `class_ids` is negative.

        Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks
            via Gradient-based Localization", ICCV 2017, equations 1 and 2.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)  # the last maps of a network without convolutions

            def call(node, *args, **kwargs):
                value = node.operation(*args, **kwargs)
                if any(t is self._last_map for t in node.outputs):
                    tape.watch(value)  # also behind integers, where no gradient goes
                return value

            maps, output = self._run([self._last_map, self._output], images, call)
            logits = self.task.logits(output)
            best = tf.argmax(logits, axis=-1)
            chosen = tf.where(class_ids < 0, best, tf.cast(class_ids, tf.int64))
            score = tf.reduce_sum(tf.gather(logits, chosen, axis=1, batch_dims=1))
        slope = _float(tape.gradient(score, maps))
        weights = tf.reduce_mean(slope, axis=[1, 2], keepdims=True)
        seen = tf.nn.relu(tf.reduce_sum(weights * _float(maps), axis=-1))
        largest = tf.reduce_max(seen, axis=[1, 2], keepdims=True)
        return tf.math.divide_no_nan(seen, largest), chosen

    @property
    def has_features(self):
        """Whether `features` returns anything."""
        return bool(self._feature_tensors())

    @property
    def has_maps(self):
        """Whether there are maps `(B, H, W, C)` before the head."""
        return self._last_map is not None and len(self._last_map.shape) == 4

    def _auto(self):
        last = self.has_maps and self.graph.name_of(self._last_map)
        return auto_taps.find(self.graph) or ([last] if last else [])

    def _feature_tensors(self):
        fetches = {name: self.graph.output_of(name) for name in self.taps}
        if self._vector is not None and len(self._vector.shape) == 2:
            fetches[POOLED] = self._vector
        return fetches

    def _run(self, fetches, images, call=None):
        images = tf.cast(images, self._input.dtype)
        return self.graph.run(
            fetches, [self._input], [images], training=False, call=call
        )


def _from_logits(graph, given, task):
    """Whether the output is logits; a regression's numbers count as logits."""
    activation = output_activation(graph)
    known = {"linear": True, "softmax": False, "sigmoid": False}
    if task == "regression":
        return True
    if given is not None:
        if activation in known and bool(given) is not known[activation]:
            what = "logits" if known[activation] else "probabilities"
            expected = f"{known[activation]} or None: the model ends in {what}"
            raise ValueError(invalid("from_logits", expected, given))
        return bool(given)
    if activation is None:
        raise ValueError(
            "The last layer does not show whether the model outputs logits or "
            "probabilities. Pass `from_logits=True` or `from_logits=False`."
        )
    return activation == "linear"


def _float(x):
    return tf.cast(x, tf.float32)
