"""What surrounds a `fit` begins and ends with it, whatever happens in between."""

import gc
import signal
import weakref

import keras
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf

import keras_delta as kd
from keras_delta.regularizers import L2SP, FeatureMap


def new_model(new_backbone, regularizer=None):
    keras.utils.set_random_seed(3)
    return reference.compiled(*reference.pair(new_backbone), regularizer)


class Hooks(kd.callbacks.Callback):
    """Calls functions of the session at the hooks of their names."""

    def __init__(self, **functions):
        super().__init__()
        self.functions = functions

    def before_fit(self, session):
        self.functions.get("before_fit", lambda s: None)(session)

    def on_epoch_end(self, epoch, logs=None):
        self.functions.get("on_epoch_end", lambda m: None)(self.model)


def test_a_fit_in_a_callback_leaves_the_outer_one_as_it_was(new_backbone):
    x, y = reference.data(8)
    sessions = []

    def fit_within(model):
        outer = model._session
        model.fit(x[:4], y[:4], verbose=0)
        assert model._session is outer
        sessions.append(outer)
        signal.raise_signal(signal.SIGINT)

    model = new_model(new_backbone)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        hooks = Hooks(on_epoch_end=fit_within)
        model.fit(x, y, epochs=3, verbose=0, callbacks=[hooks])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(sessions) == 1 and model.interrupted


def test_a_refused_fit_lets_go_of_the_data(new_backbone):
    class Images(np.ndarray):
        """Arrays with weak references."""

    model = new_model(new_backbone)
    x, y = reference.data(8)
    x = x.view(Images)
    alive = weakref.ref(x)
    with pytest.raises(ValueError, match="run from 1 to 9"):
        model.fit(x, np.where(y == 0, 9, y), verbose=0)
    del x
    gc.collect()
    assert alive() is None


def test_a_regularizer_set_before_training_gets_the_cache(new_backbone):
    x, y = reference.data(8)
    model, cache = new_model(new_backbone, L2SP(0.1)), kd.SourceMapCache()
    hooks = Hooks(
        before_fit=lambda s: s.model.set_regularizer(FeatureMap(0.1, variant="code"))
    )
    model.fit(x, y, verbose=0, callbacks=[hooks], source_maps=cache)
    assert cache.misses == 8


def test_the_split_is_passed_over_beside_validation_data(new_backbone):
    """As in Keras: all eight are trained on, and all have a place in the cache."""
    x, y = reference.data(8)
    model = new_model(new_backbone, FeatureMap(0.1, variant="code"))
    cache = kd.SourceMapCache(views=1)
    model.fit(
        *(x, y),
        verbose=0,
        validation_split=0.25,
        validation_data=(x, y),
        source_maps=cache,
    )
    assert cache.misses == 8


def test_weights_that_change_nothing_shared_keep_the_step(new_backbone, tmp_path):
    x, y = reference.data(8)
    model = new_model(new_backbone, FeatureMap(0.1, variant="code"))
    model.fit(x, y, verbose=0, source_maps=kd.SourceMapCache())
    step = model.train_function
    model.save_weights(tmp_path / "m.weights.h5")
    model.load_weights(tmp_path / "m.weights.h5")
    model.fit(x, y, verbose=0)
    assert model.train_function is step


def test_a_loop_around_train_step(new_backbone):
    x, y = reference.data(8)
    ends = []
    for by_hand in (True, False):
        model = new_model(new_backbone, FeatureMap(0.1, variant="code"))
        if by_hand:
            model.train_step((tf.constant(x), tf.constant(y)))
        else:
            model.train_on_batch(x, y)
        ends.append(model.get_weights())
    reference.assert_same_weights(*ends)


def test_kerass_own_backup_finds_the_data_where_they_were(new_backbone, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyError("killed")

    def fit(*callbacks):
        model = new_model(new_backbone, L2SP(0.1))
        data = tf.data.Dataset.from_tensor_slices(reference.data(16))
        data = data.shuffle(16, seed=5).batch(4)
        model.fit(data, epochs=3, verbose=0, shuffle=False, callbacks=callbacks)
        return model

    straight = fit()
    with pytest.raises(KeyError):
        fit(keras.callbacks.BackupAndRestore(tmp_path), Stop())
    resumed = fit(keras.callbacks.BackupAndRestore(tmp_path))
    reference.assert_same_weights(resumed.target, straight.target, rtol=1e-6)


@keras.saving.register_keras_serializable("keras_delta_tests")
class Block(keras.layers.Layer):
    """Has layers that differ in training, and takes no argument `training`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = keras.layers.BatchNormalization(momentum=0.5)

    def build(self, shape):
        """Build the layer inside."""
        self.norm.build(shape)

    def call(self, x):
        """Normalize."""
        return self.norm(x)


def network():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 3))
    shared = keras.layers.Conv2D(
        3, 3, padding="same", activity_regularizer="l2", name="conv"
    )
    x = Block()(shared(shared(inputs)))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def test_a_step_with_maps_trains_as_one_without():
    """Layers inside learn that they train, and all their losses count, once each."""
    x, y = reference.data(8, size=6)
    found = {}
    for regularizer in (L2SP(0.0, 0.0), FeatureMap(0.0, 0.0, variant="code")):
        model = kd.DeltaModel(network(), taps=["conv"])
        model.compile(
            "sgd",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            regularizer=regularizer,
            run_eagerly=True,
        )
        task_loss = model.fit(x, y, verbose=0).history["task_loss"][0]
        block = next(v for v in model.target.layers if isinstance(v, Block))
        found[type(regularizer)] = task_loss, block.norm.moving_mean.numpy()
    (plain, mean), (with_maps, mean_with_maps) = found.values()
    np.testing.assert_allclose(with_maps, plain, rtol=1e-5)
    np.testing.assert_allclose(mean_with_maps, mean, rtol=1e-5)
    assert np.abs(mean).min() > 1e-6
