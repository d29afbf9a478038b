"""Whatever Keras trains on, regularizers can look at; nothing is lost by it."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta._inputs import samples

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
    assert set(model.regularizer.scales) == set(model.taps)
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
    with pytest.raises(ValueError, match=r"yields no batch.*new one for each `fit`"):
        model.fit(data, verbose=0)


def test_what_was_looked_at_and_not_trained_on_waits_for_the_next_fit(new_backbone):
    given = []

    def stream():
        for start in range(40):
            given.append(start)
            yield batch(16, start)

    model = make(new_backbone)
    one = stream()
    model.fit(one, regularizer="delta", steps_per_epoch=2, verbose=0)
    assert len(given) == 40  # 160 samples, for the attention
    seen = []
    model.compile(
        keras.optimizers.SGD(0.01),
        SPARSE,
        metrics=[lambda y, _: seen.append(y.numpy().tolist()) or 0.0],
        run_eagerly=True,
    )
    model.fit(one, steps_per_epoch=2, verbose=0)
    # What TensorFlow has read ahead is lost, as after any `fit` on a generator.
    assert len(seen) == 2


@pytest.mark.parametrize("form", ["generator", "pydataset", "repeated"])
def test_all_samples_of_data_without_end(new_backbone, form):
    class Endless(keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index):
            return batch(16)

    def generator():
        while True:
            yield batch(16)

    repeated = tf.data.Dataset.from_tensors(batch(16)).repeat()
    data = {"generator": generator, "pydataset": Endless, "repeated": lambda: repeated}
    model = make(new_backbone)
    delta = kd.regularizers.Delta(attention_samples=None)
    with pytest.raises(ValueError, match=r"no end.*`attention_samples=256`"):
        model.fit(data[form](), regularizer=delta, steps_per_epoch=1, verbose=0)


@pytest.mark.parametrize("dense", [False, True])
def test_attention_of_heads_that_see_maps_of_several_sizes(new_backbone, dense):
    """A copy of the head is trained on them, and its loss compared with chance."""
    source = new_backbone(size=None)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(source.output)
    if not dense:
        x = keras.layers.GlobalAveragePooling2D()(x)
    target = keras.Model(source.input, keras.layers.Dense(3)(x))
    model = kd.DeltaModel(target, source=source, regularizer="delta")
    model.compile(keras.optimizers.SGD(0.01), SPARSE)
    data = []
    for start in range(4):
        x, y = batch(16 + 8 * (start % 2), start)
        if dense:
            y = (target(x).numpy().shape[:3], y)
            y = np.broadcast_to(y[1][:, None, None], y[0])
        data.append((x, y))
    attention = kd.ChannelAttention.compute(
        model, samples.Batches(data), train_head=True, progress=False
    )
    assert all(np.ptp(scores) > 0 for scores in attention.scores.values())
    assert attention.samples == 16


@pytest.mark.parametrize(
    "x, y, message",
    [
        (tf.ragged.constant([[1.0], [2.0, 3.0]]), np.arange(2), "RaggedTensor"),
        (np.array([np.zeros(2), np.zeros(3)], object), np.arange(2), "2 objects"),
        (batch(16)[0], [0, 1, 2, 0], "`np.asarray\\(y\\)`"),
    ],
)
def test_what_only_looks_like_an_array(new_backbone, x, y, message):
    with pytest.raises(TypeError, match=message):
        make(new_backbone).fit(x, y, verbose=0)


def test_data_that_do_not_know_their_rank(new_backbone):
    def unknown(x, y):
        return tf.numpy_function(lambda v: v, [x], tf.float32), y

    data = tf.data.Dataset.from_tensors(batch(16)).map(unknown)
    with pytest.raises(ValueError, match=r"tf\.ensure_shape"):
        make(new_backbone).fit(data, verbose=0)
    known = data.map(lambda x, y: (tf.ensure_shape(x, (None, 16, 16, 3)), y))
    make(new_backbone).fit(known, regularizer="delta", verbose=0)


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
