"""Models of every kind, exported: the same answers and maps, only their weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import make_backbone
from served_models import MODELS, SIDE, call, checkpoint, raw_pixels, shapes, softmax

import keras_delta as kd

NAMES = ["ant", "bee", "cat"]
WITH_MAPS = "softmax_dense", "flatten", "max_pooling", "mixed"


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_other_kinds(pixels_only, kind, tmp_path):
    model = MODELS[kind]()
    size = SIDE if kind == "any_size" else None
    folder = kd.export_for_serving(
        model, tmp_path / kind, NAMES, image_size=size, input="tensor"
    )
    signatures = tf.saved_model.load(folder).signatures
    images = raw_pixels(3, SIDE, SIDE)
    output = np.float32(model.predict(images, verbose=0))
    expected = output if "softmax" in kind else softmax(output)
    found = signatures["classify_prepared"](images=tf.constant(images))
    scores = np.zeros((3, 3))
    np.put_along_axis(scores, found["class_ids"].numpy(), found["scores"].numpy(), 1)
    # Half precision rounds in another order in a graph of its own.
    tolerance = 2e-2 if "mixed" in kind else 1e-5
    np.testing.assert_allclose(scores, expected, atol=tolerance)
    assert checkpoint(folder) == shapes(model.variables)
    assert "pooled" in signatures["features"].structured_outputs
    if kind in WITH_MAPS:
        numbers = [2, 0, 1]
        result = signatures["activation_map"](
            images=tf.constant(images), class_ids=tf.constant(numbers, tf.int64)
        )
        twin = activation_maps(model, images, numbers, kind == "softmax_dense")
        np.testing.assert_allclose(result["maps"], twin, atol=max(tolerance, 1e-4))
    elif "activation_map" in signatures:
        result = signatures["activation_map"](
            images=tf.constant(images), class_ids=tf.constant([-1] * 3, tf.int64)
        )
        assert np.isfinite(result["maps"]).all()


def activation_maps(model, images, numbers, probabilities):
    """Grad-CAM, image by image."""
    both = keras.Model(model.inputs, [model.get_layer("relu2").output, *model.outputs])
    found = []
    for image, number in zip(images, numbers, strict=True):
        with tf.GradientTape() as tape:
            maps, output = both(image[None])
            logit = tf.cast(output, tf.float32)[0, number]
            logit = tf.math.log(logit) if probabilities else logit
        slope = np.float32(tape.gradient(logit, maps))[0]
        weighted = np.float32(maps)[0] * slope.mean(axis=(0, 1))
        seen = np.maximum(weighted.sum(axis=-1), 0)
        found.append(seen / seen.max() if seen.max() > 0 else seen)
    return found


def test_a_compiled_and_trained_model_leaves_its_optimizer_behind(
    pixels_only, tmp_path
):
    model = MODELS["softmax_dense"]()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(raw_pixels(4, SIDE, SIDE), np.arange(4) % 3, verbose=0)
    folder = kd.export_for_serving(model, tmp_path / "trained", NAMES, input="tensor")
    assert checkpoint(folder) == shapes(
        [v for layer in model.layers for v in layer.weights]
    )


def test_under_mirrored_strategy(pixels_only, strategy, tmp_path):
    with strategy.scope():
        source = make_backbone(batch_norm=True)
        model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    images = raw_pixels(4, SIDE, SIDE) / 64
    model.fit(images, np.arange(4) % 3, regularizer="l2_sp", verbose=0)
    folder = kd.export_for_serving(model, tmp_path / "mirrored", NAMES, input="tensor")
    found = call(folder, "classify_prepared", images=images)
    # Not `predict`: each replica has BatchNormalization statistics of its own.
    probabilities = softmax(model.target(images, training=False))
    np.testing.assert_allclose(
        found["scores"], -np.sort(-probabilities, axis=-1), atol=1e-5
    )
    assert checkpoint(folder) == shapes(model.target.variables)
