"""Any small network, exported: TensorFlow alone answers as `predict` does.

`KERAS_DELTA_EXAMPLES=1000` draws more networks than the test suite has time for.
"""

import warnings

import numpy as np
import tensorflow as tf
from keras import tree
from random_graphs import build_source, build_target
from random_plans import CLASSES, drawn, images, plans
from served_models import softmax

import keras_delta as kd

NAMES = ["ant", "bee", "cat"][:CLASSES]


def model_of(plan):
    source = build_source(plan)
    target = build_target(plan, source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`taps='auto'` compares")
        return kd.DeltaModel(target.model, source.model if plan.own_source else None)


@drawn(1, plans(), share=8)
def test_export_of_the_target(tmp_path_factory, plan):
    model, x = model_of(plan), images(plan)
    folder = str(tmp_path_factory.mktemp("export"))
    model.export(folder, verbose=False)
    loaded = tf.saved_model.load(folder)
    found = loaded.serve(x)
    expected = model.predict(x, verbose=0)
    for mine, theirs in zip(tree.flatten(found), tree.flatten(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@drawn(1, plans(images="one", heads=(1, 1)), share=8)
def test_export_for_serving(pixels_only, tmp_path_factory, plan):
    model, x = model_of(plan), images(plan)
    folder = tmp_path_factory.mktemp("served")
    folder = kd.export_for_serving(model, folder / "model", NAMES, input="tensor")
    loaded = tf.saved_model.load(folder)
    found = loaded.signatures["classify_prepared"](images=tf.constant(x))
    scores = np.zeros((len(x), CLASSES))
    np.put_along_axis(scores, found["class_ids"].numpy(), found["scores"].numpy(), 1)
    expected = softmax(model.predict(x, verbose=0))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
