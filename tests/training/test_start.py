"""At the start equal weights give equal maps, or a warning says why not."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_delta as kd

SIZE = 16


def settled(model, seed=0):
    """The model with weights that no initialiser gives."""
    rng = np.random.default_rng(seed)
    for v in model.weights:
        v.assign(v + 0.1 * np.abs(rng.normal(size=v.shape)))
    return model


def convolutions(x, widths=(4, 6), prefix="c", batch_norm=False):
    for n, width in enumerate(widths):
        x = layers.Conv2D(width, 3, strides=2, padding="same", name=f"{prefix}{n}")(x)
        if batch_norm:
            x = layers.BatchNormalization(name=f"{prefix}{n}_bn")(x)
        x = layers.ReLU(name=f"{prefix}{n}_relu")(x)
    return x


def backbone(*front, size=SIZE, **kwargs):
    x = inputs = keras.Input((size, size, 3), name="image")
    for layer in front:
        x = layer(x)
    return settled(keras.Model(inputs, convolutions(x, **kwargs), name="backbone"))


def classifier(body, *front, channels=3, size=SIZE):
    x = inputs = keras.Input((size, size, channels), name="image")
    for layer in front:
        x = layer(x)
    x = layers.GlobalAveragePooling2D()(body(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def pixels(channels=3, size=SIZE, count=4):
    shape = count, size, size, channels
    return np.random.default_rng(1).uniform(0, 255, shape).astype("float32")


def first_penalty(target, source=None, regularizer="feature_map", x=None, **kwargs):
    model = kd.DeltaModel(target, source=source, taps=kwargs.pop("taps", "auto"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    x = pixels() if x is None else x
    y = np.arange(4) % 3
    history = model.fit(x, y, regularizer=regularizer, verbose=0, **kwargs).history
    return history["feature_penalty"][0]


def augmentation():
    return layers.RandomFlip(), layers.RandomTranslation(0.3, 0.3)


def rescaling():
    return (layers.Rescaling(1 / 127.5, -1.0),)


FRONTS = {
    "nothing": tuple,
    "rescaling": rescaling,
    "augmentation": augmentation,
    "both": lambda: (*augmentation(), *rescaling()),
    "noise": lambda: (layers.GaussianNoise(0.5), layers.Dropout(0.3)),
    "nested": lambda: (keras.Sequential([*augmentation()]),),
    "composed": lambda: (layers.RandAugment((0, 255)),),
    "normalization": lambda: (
        layers.Normalization(mean=[9.0, 8, 7], variance=[4.0, 5, 6]),
    ),
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("place", ["target", "source=None", "both", "source"])
def test_what_lies_in_front(front, place):
    """Learning rate 0, no BatchNormalization: the penalty has to be 0."""
    if (front, place) == ("normalization", "source"):
        place = "both"  # it has weights, so the target must have it too
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if place == "both":
            source = backbone(*FRONTS[front]())
            target = kd.attach_head(source, 3)
        elif place == "source":
            source = backbone(*FRONTS[front]())
            body = backbone()
            body.set_weights(source.get_weights())
            target = classifier(body)
        else:
            body = source = backbone()
            target = classifier(body, *FRONTS[front]())
        source = None if place == "source=None" else source
        assert first_penalty(target, source) == 0


@pytest.mark.parametrize(
    ("front", "channels", "size"),
    [
        (lambda: layers.Concatenate(), 1, SIZE),
        (lambda: layers.Conv2D(3, 1, name="to_rgb"), 1, SIZE),
        (lambda: layers.Resizing(SIZE, SIZE), 3, 24),
        (lambda: layers.Cropping2D(4), 3, 24),
    ],
)
def test_a_source_that_begins_elsewhere(front, channels, size):
    source, layer = backbone(), front()
    grey = isinstance(layer, layers.Concatenate)
    before = (
        layers.Lambda(lambda x: keras.ops.concatenate([x] * 3, -1)) if grey else layer
    )
    target = classifier(source, before, channels=channels, size=size)
    x, taps = pixels(channels, size), ["c0", "c1"]
    assert first_penalty(target, source, x=x, taps=taps) == 0


def test_a_layer_in_front_that_trains_sends_no_gradient_through_the_source():
    source = backbone()
    target = classifier(source, layers.Conv2D(3, 1, name="to_rgb"), channels=1)
    model = kd.DeltaModel(target, source=source, taps=["c0", "c1"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    before = [w.copy() for w in model.source.get_weights()]
    x, y = pixels(1) / 255, np.arange(4) % 3
    model.fit(x, y, epochs=2, regularizer="feature_map", verbose=0)
    for v, w in zip(model.source.get_weights(), before, strict=True):
        np.testing.assert_array_equal(v, w)
    assert model.source_maps(x)["c1"].shape == (4, 4, 4, 6)


def test_branches_are_compared_with_their_own():
    """Two inputs, two branches of one structure, whose order is the other way round."""

    def network(order, classes=None):
        inputs = {k: keras.Input((SIZE, SIZE, 3), name=k) for k in ("left", "right")}
        ends = {k: convolutions(inputs[k], prefix=k) for k in order}
        x = layers.Add(name="sum")([ends[k] for k in order])
        if classes:
            x = layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, x)

    source, target = settled(network(["left", "right"])), network(["right", "left"], 3)
    for layer in source.layers:
        target.get_layer(layer.name).set_weights(layer.get_weights())
    x = {"left": pixels(), "right": pixels()[::-1]}
    taps = ["left1", "right1", "sum"]
    assert first_penalty(target, source, x=x, taps=taps) == 0


def test_a_backbone_that_is_shared_by_two_inputs():
    body = backbone()
    inputs = [keras.Input((SIZE, SIZE, 3), name=n) for n in "ab"]
    ends = [layers.GlobalAveragePooling2D()(body(t)) for t in inputs]
    target = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(ends)))
    x = [pixels(), 255 - pixels()]
    assert first_penalty(target, body, x=x, taps=["c0", "c1"]) == 0
    assert first_penalty(target, None, x=x, taps=["c0", "c1", "c1#1"]) == 0


@pytest.mark.parametrize("regularizer", ["feature_map", "l2_sp", "delta"])
def test_a_layer_put_in_or_taken_out(regularizer):
    def network(names):
        x = inputs = keras.Input((SIZE, SIZE, 3))
        for name in names:
            x = layers.Conv2D(3, 3, padding="same", name=name)(x)
        return keras.Model(inputs, x)

    if regularizer == "delta":
        regularizer = kd.regularizers.Delta(attention="uniform")
    for names, others, tap in (
        ("ab", ["a", "adapter", "b"], "a"),
        (["stem", "p", "q", "r"], ["stem", "p", "r"], "p"),
        ("abc", "xabc", "c"),
    ):
        source, body = settled(network(names)), network(others)
        for layer in body.layers:
            if layer.name in [x.name for x in source.layers if x.weights]:
                layer.set_weights(source.get_layer(layer.name).get_weights())
        target = kd.attach_head(body, 3)
        if "x" in others:  # the new layer in front: the source begins behind it
            assert first_penalty(target, source, regularizer, taps=[tap]) == 0
            continue
        assert first_penalty(target, source, regularizer, taps=[tap]) == 0


def test_batch_norm_begins_as_near_as_its_statistics_allow():
    """In inference mode maps are equal; in training the batch's statistics count."""
    source = backbone(batch_norm=True)
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    x = pixels()
    maps, theirs = model.outputs_and_maps(x)[1], model.source_maps(x)
    for tap in model.taps:
        np.testing.assert_array_equal(maps[tap], theirs[tap])


def warned(*args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first_penalty(*args, **kwargs)
    return [str(w.message) for w in caught if w.category is UserWarning]


def test_a_source_that_was_built_from_a_config():
    pretrained = backbone()
    source = keras.Model.from_config(pretrained.get_config())
    (message,) = warned(kd.attach_head(source, 3), source)
    assert "never been trained" in message and "from a config" in message
    (message,) = warned(kd.attach_head(pretrained, 3), source, "l2_sp")
    assert "never been trained" in message
    assert warned(kd.attach_head(source, 3), source, "l2") == []


def test_a_target_that_was_built_from_a_config():
    source = backbone()
    target = kd.attach_head(keras.Model.from_config(source.get_config()), 3)
    (message,) = warned(target, source, "l2_sp")
    assert re.search(r"2 of 2 layers.*'c0' of the target.*its initial ones", message)


def test_other_weights_are_said_before_the_first_step_alone():
    source = backbone()
    target = kd.attach_head(source, 3)
    kernel = target.get_layer("c1").kernel
    kernel.assign(kernel + 1)
    model = kd.DeltaModel(target, source=source)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss, run_eagerly=True)
    x, y = pixels(), np.arange(4) % 3
    with pytest.warns(UserWarning, match="1 of 2 layers.*'c1' of the target.*'c1'"):
        model.fit(x, y, regularizer="feature_map", verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(x, y, verbose=0)


def test_a_layer_of_another_setting():
    source = backbone()
    target = kd.attach_head(source, 3)
    target.get_layer("c1").activation = keras.activations.tanh
    target = kd.DeltaModel(target, source=source)
    message = "tap 'c1' differ.*'c1' of the target and 'c1'.*activation='tanh'"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    target.compile("sgd", loss, run_eagerly=True)
    with pytest.warns(UserWarning, match=message):
        target.fit(pixels(), np.arange(4) % 3, regularizer="feature_map", verbose=0)


def test_a_layer_in_between():
    source = backbone()
    x = source.get_layer("c0_relu").output
    x = source.get_layer("c1")(layers.Rescaling(3.0, name="between")(x))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    (message,) = warned(keras.Model(source.input, x), source, taps={"c1": "c1"})
    assert re.search("'c1' of the target and 'c1'.*output of 'between'", message)


@pytest.mark.parametrize("layer", [layers.Dropout(0.5), layers.RandomFlip()])
def test_noise_in_between_that_the_source_does_not_see(layer):
    x = inputs = keras.Input((SIZE, SIZE, 3))
    x = convolutions(layer(convolutions(x)), prefix="d")
    source = settled(keras.Model(inputs, x))
    (message,) = warned(kd.attach_head(source, 3), source, taps=["c1", "d1"])
    assert re.search(f"'d1' draw at random .'{layer.name}'. and change.*%", message)
    assert warned(kd.attach_head(source, 3), source, taps=["c1"]) == []


def test_the_check_draws_no_random_numbers():
    """The training is the same with and without it."""
    source = backbone(layers.RandomFlip(seed=3), layers.Dropout(0.2, seed=4))
    state = lambda m: [  # noqa: E731
        np.array(v) for v in m.target.non_trainable_variables if "seed" in v.path
    ]
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    model.fit(pixels(), np.arange(4) % 3, regularizer="feature_map", verbose=0)
    seeds = state(model)
    assert seeds and all(s[1] == 1 for s in seeds)  # one draw: that of the step


def test_a_cache_needs_the_same_image_each_time():
    source = backbone()
    target = classifier(source, layers.RandomFlip(name="flip"))
    with pytest.raises(ValueError, match=r"'flip'.*source_maps=\"compute\""):
        first_penalty(target, source, source_maps="cache")
    target = classifier(source, *rescaling())
    assert first_penalty(target, source, source_maps="cache") < 1e-6


def test_pairs_are_kept_in_the_file(tmp_path):
    """Trained weights are no longer equal, and would be paired by structure."""

    def network(names):
        x = inputs = keras.Input((SIZE, SIZE, 3))
        for name in names:
            x = layers.Conv2D(3, 3, padding="same", name=name)(x)
        return keras.Model(inputs, x)

    source, body = settled(network("ab")), network("axb")
    for name in "ab":
        body.get_layer(name).set_weights(source.get_layer(name).get_weights())
    model = kd.DeltaModel(kd.attach_head(body, 3), source=source, taps=["a"])
    assert model.pairing.names == {"a": "a", "b": "b"}
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.pairing.names == model.pairing.names


def test_a_dict_of_taps_of_a_nested_network():
    """Names of a nested layer that is called like another are paths."""
    inner = backbone()
    target = keras.Sequential([keras.Input((SIZE, SIZE, 3))])
    target.add(layers.Conv2D(3, 1, name="c0"))
    target.add(inner)
    target.add(layers.GlobalAveragePooling2D())
    target.add(layers.Dense(3))
    taps = {"backbone/c0": "backbone/c0"}
    model = kd.DeltaModel(target, taps=taps)
    assert model.taps == ["backbone/c0"]


def test_pairs_can_be_given():
    source = backbone()
    target = kd.attach_head(source, 3)
    model = kd.DeltaModel(target, source=source, taps=["c1"])
    names = model.pairing.names
    assert kd.DeltaModel(target, source=source, pairing=names).pairing.names == names
    for wrong, message in (
        ({"c9": "c0"}, r"pairing \(target\).*'c9'.*'c0'"),
        ({"c0": "c9"}, r"pairing \(source\).*'c9'"),
        ({"c0": "c1"}, r"(?s)'c0'.*'c1'.*\(3, 3, 3, 4\)"),
        ("c0", "a dict"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            kd.DeltaModel(target, source=source, pairing=wrong)


def test_augmentation_in_front_stays_on_under_l2_fe():
    source = backbone()
    flip = layers.RandomTranslation(0.4, 0.4, seed=1)
    model = kd.DeltaModel(classifier(source, flip), source=source, regularizer="l2_fe")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = pixels()
    moved = model(x, training=True)
    assert not np.allclose(moved, model(x, training=False))


# --- Keras's features that change layers between two trainings ---


def lora(target):
    """LoRA in the body's convolutions."""
    for layer in target.layers:
        if isinstance(layer, layers.Conv2D):
            layer.enable_lora(2)


def trained(model, epochs=2, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    x, y = pixels() / 255, np.arange(4) % 3
    return model.fit(x, y, epochs=epochs, verbose=0, **kwargs).history


@pytest.mark.parametrize("regularizer", ["feature_map", "l2_sp", "l2_sp_att"])
@pytest.mark.parametrize("before", [True, False])
def test_lora(regularizer, before, tmp_path):
    if regularizer == "l2_sp_att":
        regularizer = kd.regularizers.L2SPAtt(attention="uniform")
    source = backbone()
    target = kd.attach_head(source, 3)
    if before:
        lora(target)
    model = kd.DeltaModel(target, source=source)
    if not before:
        lora(target)
    kernel = target.get_layer("c0")._kernel.numpy()
    penalties = trained(model, 3, regularizer=regularizer)["feature_penalty"]
    assert penalties[0] == 0 < penalties[-1]
    np.testing.assert_array_equal(target.get_layer("c0")._kernel, kernel)
    assert len(model.trainable_variables) == 2 * 3 + 2  # a, b, bias; head
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(pixels()), model(pixels()))


@pytest.mark.parametrize("form", ["model", "weights", "target"])
def test_lora_of_a_file_goes_on(form, tmp_path):
    """Keras merges it into the kernels, and leaves two matrices of zeros."""

    source = backbone()

    def make():
        target = kd.attach_head(source, 3)
        lora(target)
        return target

    model = kd.DeltaModel(make(), source=source)
    trained(model, regularizer="l2_sp")
    if form == "model":
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
    else:
        loaded = kd.DeltaModel(make(), source=source)
        trained(loaded, regularizer="l2_sp")
        model.save_weights(tmp_path / "m.weights.h5")
        model.target.save_weights(tmp_path / "t.weights.h5")
    if form == "weights":
        loaded.load_weights(tmp_path / "m.weights.h5")
    elif form == "target":
        loaded = kd.DeltaModel(loaded.target, source=source)
        loaded.target.load_weights(tmp_path / "t.weights.h5")
    np.testing.assert_allclose(loaded(pixels()), model(pixels()), rtol=1e-5)
    layer = loaded.target.get_layer("c0")
    kernel = layer.kernel.numpy()
    trained(loaded, regularizer="l2_sp")
    assert np.abs(layer.kernel.numpy() - kernel).max() > 0


def test_l2_sp_of_lora_is_that_of_the_merged_kernel():
    source = backbone()
    target = kd.attach_head(source, 3)
    lora(target)
    model = kd.DeltaModel(target, source=source, regularizer=kd.regularizers.L2SP())
    layer = target.get_layer("c0")
    rng = np.random.default_rng(0)
    a, b = layer.lora_kernel_a, layer.lora_kernel_b
    b.assign(rng.normal(size=b.shape))
    product = np.asarray(a.value) @ np.asarray(b.value)
    expected = 0.5 * (product**2).sum()  # rank and alpha are equal
    np.testing.assert_allclose(model.regularizer.weight_distance(), expected, 1e-5)


def test_layers_that_begin_to_train_need_an_optimizer_that_knows_them():
    source = backbone()
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    trained(model, regularizer="l2_sp")
    lora(model.target)
    x, y = pixels() / 255, np.arange(4) % 3
    with pytest.raises(ValueError, match=r"lora_kernel_a.*`model.compile` again"):
        model.fit(x, y, verbose=0)
    b = model.target.get_layer("c0").lora_kernel_b
    trained(model)  # compiles again
    assert np.abs(b.numpy()).max() > 0


def test_layers_that_are_thawed_in_a_callback_train():
    source = backbone()
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    kernel = model.target.get_layer("c0").kernel
    moved = []

    class Freeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.target.get_layer("c0").trainable = epoch in (0, 2)
            self.before = kernel.numpy()

        def on_epoch_end(self, epoch, logs=None):
            moved.append(bool((kernel.numpy() != self.before).any()))

    trained(model, 3, regularizer="l2_sp", callbacks=[Freeze()])
    assert moved == [True, False, True]


def test_quantised_layers_do_not_train():
    source = backbone()
    target = kd.attach_head(source, 3)
    target.get_layer("head").quantize("int8")
    model = kd.DeltaModel(target, source=source)
    with pytest.raises(ValueError, match=r"'head'.*quantised.*target.quantize"):
        trained(model, regularizer="l2_sp")
    with pytest.raises(ValueError, match=r"model.target.quantize\(mode\)"):
        model.quantize("int8")
