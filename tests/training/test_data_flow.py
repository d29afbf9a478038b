"""Whatever Keras trains on, regularizers can look at; nothing is lost by it."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
MAPS = ["feature_map", "delta", "l2_sp_att"]


def make(new_backbone, size=None):
    source = new_backbone(size=size)
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    model.compile(keras.optimizers.SGD(0.01), SPARSE, run_eagerly=True)
    return model


def batch(size, start=0):
    rng = np.random.default_rng(start)
    x = rng.uniform(0, 1, (4, size, size, 3)).astype("float32")
    return x, (np.arange(4) + start) % 3


def sizes():
    """Three batches of three sizes."""
    for start, size in enumerate((16, 24, 20)):
        yield batch(size, start)


SIGNATURE = (tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None,), tf.int64))


@pytest.mark.parametrize("regularizer", MAPS)
@pytest.mark.parametrize("form", ["dataset", "generator", "pydataset", "repeated"])
def test_images_of_several_sizes(new_backbone, regularizer, form):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return [*sizes()][index]

    dataset = tf.data.Dataset.from_generator(sizes, output_signature=SIGNATURE)
    data = {
        "dataset": lambda: dataset,
        "generator": sizes,
        "pydataset": Batches,
        "repeated": dataset.repeat,
    }[form]()
    model = make(new_backbone)
    steps = 3 if form == "repeated" else None
    history = model.fit(
        data, regularizer=regularizer, steps_per_epoch=steps, verbose=0
    ).history
    assert np.isfinite(history["loss"]).all()


def test_scales_over_several_sizes_are_means_over_samples(new_backbone):
    model = make(new_backbone)
    model.set_regularizer("feature_map")
    model.prepare(sizes_dataset(), verbose=0)
    for tap, scale in model.regularizer.scales.items():
        each = [
            np.square(v).mean(axis=(1, 2, 3))
            for x, _ in sizes()
            for v in [model.source_maps(x)[tap]]
        ]
        np.testing.assert_allclose(scale, np.concatenate(each).mean(), rtol=1e-5)


def sizes_dataset():
    return tf.data.Dataset.from_generator(sizes, output_signature=SIGNATURE)


@pytest.mark.parametrize("weights", [False, True])
def test_what_was_read_of_a_generator_is_given_back(new_backbone, weights):
    """All batches are trained once, in their order, and none is read in vain."""
    read, trained = [], []

    def generator():
        for start in range(6):
            read.append(start)
            x, y = batch(16, start)
            yield (x, y, np.ones(4)) if weights else (x, y)

    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            trained.append(step)

    model = make(new_backbone, 16)
    regularizer = kd.regularizers.Delta(attention_samples=8)
    data = {"x": generator(), "epochs": 2, "steps_per_epoch": 3}
    model.fit(**data, regularizer=regularizer, callbacks=[Steps()], verbose=0)
    assert read == [0, 1, 2, 3, 4, 5]
    assert trained == [0, 1, 2, 0, 1, 2]


def test_a_generator_trains_as_its_batches_would(new_backbone):
    def trained(data):
        keras.utils.set_random_seed(0)
        model = make(new_backbone, 16)
        model.fit(data, regularizer="delta", verbose=0)
        return model.target.get_weights()

    x, y = (
        np.concatenate(v) for v in zip(*(batch(16, s) for s in range(3)), strict=True)
    )
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    ours = trained(batch(16, start) for start in range(3))
    for v, w in zip(ours, trained(batches), strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-5, atol=1e-6)


def test_a_generator_that_is_used_up(new_backbone):
    data = (batch(16, start) for start in range(2))
    model = make(new_backbone, 16)
    model.fit(data, verbose=0)
    with pytest.raises(ValueError, match=r"gives no batch.*new one for each `fit`"):
        model.fit(data, verbose=0)


def test_a_generator_for_validation_is_not_read_first(new_backbone):
    model, (x, y) = make(new_backbone, 16), batch(16)
    left = (batch(16, start) for start in range(2))
    model.fit(x, y, validation_data=left, validation_steps=2, verbose=0)
    assert next(left, None) is None


def test_labels_of_a_generator_are_looked_at(new_backbone):
    data = ((x, y + 1) for x, y in sizes())
    with pytest.raises(ValueError, match="run from 1 to 3"):
        make(new_backbone).fit(data, verbose=0)


def test_preparing_needs_a_regularizer_and_takes_one(new_backbone):
    """The advice of the message works: what is prepared is not computed again."""
    model, (x, y) = make(new_backbone, 16), batch(16)
    with pytest.raises(ValueError, match=r"prepare\(x, y, regularizer='delta'\)"):
        model.prepare(x, y)
    model.prepare(x, y, regularizer="delta", verbose=0)
    attention = model.regularizer.computed_attention
    model.fit((batch(16, s) for s in range(2)), regularizer="delta", verbose=0)
    assert model.regularizer.computed_attention is attention


def test_samples_of_several_shapes_are_no_array(new_backbone):
    """What a regularizer of one's own is told, and the way that it names."""

    class Own(kd.regularizers.Regularizer):
        def prepare(self, model, samples, verbose=True):
            self.shapes = [x.shape for x, _ in samples.batches(8)]
            samples(8)

    model = make(new_backbone)
    model.set_regularizer(Own(0.0, 0.0))
    Own.ready = property(lambda self: False)
    with pytest.raises(ValueError, match=r"several shapes.*samples.batches\(n\)"):
        model.fit(sizes_dataset(), verbose=0)
    assert model.regularizer.shapes == [(4, 16, 16, 3), (4, 24, 24, 3)]


def test_a_split_for_validation_is_made_once(new_backbone):
    model, (x, y) = make(new_backbone, 16), batch(16)
    sizes = []

    class Count(keras.metrics.Metric):
        def update_state(self, y_true, y_pred, sample_weight=None):
            sizes.append(len(y_pred))

        def result(self):
            return 0.0

    model.compile("sgd", SPARSE, metrics=[Count()], run_eagerly=True)
    model.fit(x, y, validation_split=0.25, regularizer="feature_map", verbose=0)
    assert sizes == [3, 1]


def test_a_list_of_images(new_backbone):
    model, (x, y) = make(new_backbone, 16), batch(16)
    with pytest.raises(ValueError, match=r"several inputs.*`np.stack\(x\)`"):
        model.fit(list(x), y, verbose=0)
    model.fit(np.stack(list(x)), y, verbose=0)


def test_the_old_format_is_refused_before_training(new_backbone, tmp_path):
    model, (x, y) = make(new_backbone, 16), batch(16)
    for name in ("m.h5", "m.hdf5"):
        with pytest.raises(ValueError, match=r"old format.*`\.keras`.*`\.weights\.h5`"):
            model.save(tmp_path / name)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "m.h5")
    with pytest.raises(ValueError, match="old format"):
        model.fit(x, y, callbacks=[checkpoint], verbose=0)
    assert model.optimizer.iterations == 0
    model.save_weights(tmp_path / "m.weights.h5")
    model.save(tmp_path / "m.keras")


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), keras.models.clone_model],
)
def test_copies_of_a_model(new_backbone, again):
    model, (x, y) = make(new_backbone, 16), batch(16)
    other = again(model)
    assert other.pairing.names == model.pairing.names
    if again is keras.models.clone_model:  # has new weights, as in Keras
        other.compile("sgd", SPARSE)
    else:
        np.testing.assert_array_equal(other(x), model(x))
    other.fit(x, y, regularizer="l2", verbose=0)
