"""A model of a report: its answers for images, by task."""

import keras
import numpy as np
import tensorflow as tf

from keras_delta import _tasks
from keras_delta._answers import tasks
from keras_delta._answers.network import Network
from keras_delta._errors import invalid
from keras_delta.analysis.answers import Answers
from keras_delta.data.ten_crop import height_width
from keras_delta.model import DeltaModel


class Reported:
    """A model of a report.

    Args:
        label: its name in the report; "" for a single model.
        model: a `DeltaModel` or Keras model.
        class_names, image_size, task: see `report`.

    Attributes:
        delta: the `DeltaModel`; None for another model.
        target: the plain Keras model.
        network: `Network` for all computations.
        task: name of the task.
        class_names: tuple of names.
        image_size: (height, width), None if unknown.
        title: its name in the report.
    """

    def __init__(self, label, model, class_names, image_size, task):
        if not isinstance(model, keras.Model):
            expected = "a DeltaModel, a Keras model, or a dict of them"
            raise TypeError(invalid("models", expected, model))
        self.delta = model if isinstance(model, DeltaModel) else None
        self.target = getattr(model, "target", model)
        self.network = Network(
            self.target, task=lambda graph: tasks.choose(model, graph, task)
        )
        self.task = self.network.task.name
        self.model = model
        self.title = label or self.target.name
        self.image_size = self.network.image_size
        if None in self.image_size:
            self.image_size = image_size and height_width(image_size, "image_size")
        self.class_names = _named(class_names)
        self._known = {}
        if class_names is not None and len(self.class_names) != self.network.classes:
            expected = f"{self.network.classes} names, one for each output"
            raise ValueError(invalid("class_names", expected, list(class_names)))

    def name_classes(self, *sets):
        """Take the class names from data, and number the data's classes accordingly.

        Args:
            sets: `Images` or None; without given names, the first set with names
                provides them.

        Raises:
            ValueError: if data have classes that the model does not have.
        """
        units = self.network.classes
        for images in sets:
            names = images and images.class_names
            if self.class_names is None and names and self.task != _tasks.REGRESSION:
                if len(names) != units:
                    expected = f"images of the model's {units} classes"
                    received = f"{len(names)}: {', '.join(names[:6])}"
                    remedy = "Or name all classes of the model: `class_names=`."
                    raise ValueError(
                        invalid(images.argument, expected, received, remedy)
                    )
                self.class_names = names
        word = "number" if self.task == _tasks.REGRESSION else "class"
        self.class_names = self.class_names or tuple(
            f"{word} {i}" for i in range(units)
        )
        for images in sets:
            if images is not None:
                images.rename(self.class_names)

    def check_like(self, first):
        """Refuse a model that cannot be compared; takes over the names."""
        if (self.task, self.network.classes) != (first.task, first.network.classes):
            expected = f"models for the same {first.network.classes} classes"
            raise ValueError(invalid("models", expected, f"'{self.title}'"))
        if self.image_size != first.image_size:
            expected = f"models for images of the same size, {first.image_size}"
            received = f"'{self.title}' for {self.image_size}"
            raise ValueError(invalid("models", expected, received))
        self.class_names = first.class_names

    def logits(self, images):
        """`(N, classes)` float32 of `Images`; computed once."""
        if id(images) not in self._known:
            parts = [self.network.logits(batch).numpy() for batch in images.batches()]
            self._known[id(images)] = np.concatenate(parts)
        return self._known[id(images)]

    def labels(self, images):
        """Labels of images in the task's form, checked."""
        task, count = self.network.task, self.network.classes
        return task.labels(np.asarray(images.labels), count, images.argument)

    def answers(self, images):
        """`Answers` for images with class numbers."""
        return Answers(self.logits(images), self.labels(images), self.class_names)

    def figures(self, images):
        """Figures for images, a dict; see `keras_delta._answers.figures`."""
        labels, count = self.labels(images), self.network.classes
        options = {"temperature": 1.0, "thresholds": [0.5] * count}
        logits = self.logits(images)
        return self.network.task.evaluate(logits, labels, self.class_names, **options)

    def grad_cam(self, images, classes):
        """Where the network sees these classes: `(N, h, w)` from 0 to 1."""
        classes = np.asarray(classes, "int64")
        images = tf.constant(images, "float32")
        return self.network.activation_maps(images, classes)[0].numpy()


def _named(given):
    """Names of classes as a tuple; None stays None."""
    expected = "a list of names, no two alike"
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, (list, tuple, np.ndarray)):
        raise TypeError(invalid("class_names", expected, given))
    names = tuple(map(str, given))
    if len(set(names)) < len(names):
        raise ValueError(invalid("class_names", expected, list(names)))
    return names
