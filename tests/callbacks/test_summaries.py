"""What callbacks write for TensorBoard, read back from its files."""

import copy

import keras
import model_reference as reference
import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

import keras_delta as kd

X, Y = reference.learnable_data(8)


def read(folder):
    events = event_accumulator.EventAccumulator(str(folder), {"tensors": 0})
    return events.Reload()


def test_pictures_and_histograms(new_backbone, tmp_path):
    target, source = reference.pair(new_backbone)
    model = reference.compiled(target, source, kd.regularizers.L2(), run_eagerly=True)
    folder = tmp_path / "tb"
    maps = kd.callbacks.ActivationMaps(
        X[:1], tmp_path / "maps", channels=1, every=2, tensorboard=folder
    )
    moved = kd.callbacks.StartingPointDistance(tensorboard=folder)
    model.fit(X, Y, 4, epochs=2, verbose=0, callbacks=[maps, moved])
    events = read(folder)
    tap = model.taps[-1]
    (picture,) = events.Tensors(f"activation_maps/{tap}")
    width, height, png = picture.tensor_proto.string_val
    drawn = tf.io.decode_png((tmp_path / "maps/activation_maps-0002.png").read_bytes())
    shown = tf.io.decode_png(png).numpy()
    assert picture.step == 2
    assert shown.shape[:2] == (int(height), int(width)) == drawn.shape[:2]
    np.testing.assert_array_equal(shown, drawn[..., :3])
    stages = moved.distances
    for stage, layers in stages.items():
        found = events.Tensors(f"filter_distance/{stage}")
        assert [event.step for event in found] == [1, 2]
        buckets = tf.make_ndarray(found[1].tensor_proto)
        values = np.concatenate(list(layers.values()))
        assert buckets[:, 2].sum() == len(values)
        np.testing.assert_allclose(
            [buckets[0, 0], buckets[-1, 1]], [values.min(), values.max()], rtol=1e-5
        )


def test_copies_write_files_of_their_own(new_backbone, tmp_path):
    moved = kd.callbacks.StartingPointDistance(tensorboard=tmp_path)
    for callback in (moved, copy.deepcopy(moved)):
        keras.utils.set_random_seed(0)
        target, source = reference.pair(new_backbone)
        model = reference.compiled(target, source, "l2", run_eagerly=True)
        model.fit(X, Y, 8, verbose=0, callbacks=[callback])
    assert len(list(tmp_path.glob("events.out.*"))) == 2
