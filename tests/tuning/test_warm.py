"""`WarmModels`: one traced model trains every cell as a fresh model would."""

import functools

import keras
import keras_tuner
import model_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from networks import make_backbone

import keras_delta as kd
from keras_delta._training.step import Step
from keras_delta.regularizers import L2SP, Delta, L2SPAtt, Sum
from keras_delta.tuning.folds import cut
from keras_delta.tuning.hyper_model import DeltaHyperModel
from keras_delta.tuning.warm import WarmModels

pytestmark = pytest.mark.usefixtures("cheap_attention")

SIZE, WIDTHS = 8, (3, 4)
TAPS = {"both": ["conv0", "conv1"], "last": ["conv1"]}
FOLDS = 3


def target_of(source):
    """With BatchNormalization and dropout: everything that has a state."""
    return kd.attach_head(source, 3, dropout=0.3)


SPACE = {
    "source": functools.partial(
        make_backbone, batch_norm=True, size=SIZE, widths=WIDTHS
    ),
    "target": target_of,
    "alpha": [0.1, 3.0],
    "beta": [0.01, 0.5],
    "learning_rate": [0.05, 0.01],
    "temperature": [5.0, 1.0],
    "taps": TAPS,
    "jit_compile": False,
}
# Of what a test does not look at: the simplest, which is fast.
LIGHT = {
    "source": functools.partial(make_backbone, size=SIZE, widths=WIDTHS),
    "target": functools.partial(kd.attach_head, classes=3),
    "regularizer": lambda alpha, beta, temperature: Delta(
        alpha, beta, attention="uniform", temperature=temperature
    ),
}
DELTA = {**LIGHT, "regularizer": "delta"}
FIRST = {
    "alpha": 3.0,
    "beta": 0.5,
    "learning_rate": 0.05,
    "taps": "both",
    "temperature": 5.0,
}


@pytest.fixture(autouse=True)
def _eagerly(request):
    """No tracing, which takes longer than all trainings, but where it is tested."""
    eagerly = not {"traces", "real_attention"} & {*request.fixturenames}
    tf.config.run_functions_eagerly(eagerly)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def real_attention(cheap_attention, monkeypatch):
    """The test computes attention as users do."""
    monkeypatch.setattr(kd.ChannelAttention, "compute", cheap_attention)


def hyper_model(**changed):
    return DeltaHyperModel(**{**SPACE, **changed})


def hp_of(hyper, **changed):
    hp = keras_tuner.HyperParameters()
    hp.values = {**FIRST, **changed}
    hyper.declare_hyperparameters(hp)
    return hp


@pytest.fixture(scope="module")
def data():
    x, y = reference.learnable_data(24, size=SIZE)
    return cut(
        x,
        y,
        folds=FOLDS,
        seed=0,
        batch_size=5,
        image_size=None,
        views=None,
        protocol="default",
        batches=None,
    )


class Search:
    """A search of its own, in its own folder."""

    def __init__(self, folder, data, strategy=None, seed=0, **changed):
        self.hyper = hyper_model(**changed)
        self.models = WarmModels(self.hyper, folder / "once", seed, strategy)
        self.data = data

    def begin(self, fold=0, **values):
        return self.models.begin(
            hp_of(self.hyper, **values), fold, lambda: self.data.train(fold)
        )

    def train(self, fold=0, source_maps="compute", epochs=2, **values):
        """Weights and logs after some epochs of a cell on a fold."""
        model = self.begin(fold, **values)
        history = model.fit(
            self.data.train(fold),
            epochs=epochs,
            verbose=0,
            shuffle=False,
            source_maps=source_maps,
        )
        return [*model.target.get_weights(), history.history["loss"]]

    def head(self, fold, **values):
        return self.begin(fold, **values).target.get_layer("head").get_weights()


@pytest.fixture
def search(tmp_path, data):
    """`search(name="search", **changed)`: a new `Search` in the folder `name`."""
    return lambda name="search", **changed: Search(tmp_path / name, data, **changed)


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def differ(one, two):
    return any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def variables(model):
    return [v.value.numpy() for v in (*model.variables, *model.optimizer.variables)]


@pytest.fixture
def computed(monkeypatch):
    """List with an entry for each computation of an attention."""
    calls, inner = [], kd.ChannelAttention.compute

    def counted(model, *args, **kwargs):
        calls.append(list(model.taps))
        return inner(model, *args, **kwargs)

    monkeypatch.setattr(kd.ChannelAttention, "compute", counted)
    return calls


@pytest.fixture
def traces(monkeypatch):
    """List with an entry for each time that a training step is traced."""
    calls, inner = [], Step.run

    def counted(self, *args, **kwargs):
        calls.append(self)
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Step, "run", counted)
    return calls


# The same as a fresh model


OTHERS = {
    "alpha": {"alpha": 0.1},
    "beta": {"beta": 0.01},
    "learning_rate": {"learning_rate": 0.01},
    "fold": {"fold": 1},
    "temperature": {"temperature": 1.0},
    "taps": {"taps": "last"},
}


@pytest.mark.slow
def test_a_training_does_not_depend_on_what_ran_before(search):
    """Bit for bit, and each of the things changed matters."""
    warm, first = search("warm"), search("fresh").train(epochs=1)
    others = {k: v for k, v in OTHERS.items() if k not in ("alpha", "beta")}
    for other in ({**OTHERS["alpha"], **OTHERS["beta"]}, *others.values()):
        assert differ(warm.train(**other, epochs=1), first), other
    assert_same(warm.train(epochs=1), first)


def test_a_training_is_that_of_a_search_by_itself(search):
    warm = search("warm")
    warm.train(epochs=1)
    rest = {k: v for other in OTHERS.values() for k, v in other.items()}
    one, two = warm.train(**rest, epochs=1), search("alone").train(**rest, epochs=1)
    assert_same(one, two)


def test_only_taps_are_traced_again(search, traces):
    warm = search(**LIGHT)
    warm.train()
    once = len(traces)
    everything_else = {k: v for k, v in FIRST.items() if k != "taps"}
    for name in everything_else.keys() & OTHERS.keys():
        warm.train(**OTHERS[name])
    assert len(traces) == once > 0
    warm.train(taps="last")
    assert len(traces) == 2 * once


def test_everything_begins_anew(search):
    """Momenta, moving statistics, random seeds and the step's number, too."""
    light = {"regularizer": LIGHT["regularizer"], "optimizer": keras.optimizers.Adam}
    warm = search(**light)
    at_start = variables(model := warm.begin())
    warm.train()
    assert int(model.optimizer.iterations.value.numpy()) == 8
    assert differ(at_start, variables(model))
    assert warm.begin() is model
    assert_same(at_start, variables(model))


def test_as_a_plain_model(search, data):
    """With the same head and attention, and without dropout."""
    warm = search(target=functools.partial(kd.attach_head, classes=3))
    warm.begin()
    values = {"fold": 1, "taps": "last", "alpha": 0.1, "learning_rate": 0.01}
    found = warm.train(**values)
    model = warm.begin(**values)

    source = SPACE["source"]()
    target = kd.attach_head(source, 3)
    target.get_layer("head").set_weights(model.target.get_layer("head").get_weights())
    attention = model.regularizer.attention_weights()
    cold = kd.DeltaModel(target, source=source, taps=TAPS["last"])
    cold.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        regularizer=Delta(0.1, 0.5, attention=attention),
    )
    cold.prepare(data.train(1), verbose=0)
    assert cold.regularizer.scales == pytest.approx(model.regularizer.scales)
    logs = cold.fit(data.train(1), epochs=2, verbose=0, shuffle=False).history
    reference.assert_same_weights(found[:-1], cold.target.get_weights(), atol=1e-6)
    np.testing.assert_allclose(found[-1], logs["loss"], rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_statistics_are_those_that_the_head_was_fitted_on(share, search, monkeypatch):
    """A mixture with the target's, chosen once a fold, is that of all its cells."""
    monkeypatch.setattr(kd.DeltaModel, "default_recipe", "auto")
    monkeypatch.setattr("keras_delta._training.beginning.SHARES", (share,))
    regularizer = lambda alpha, beta, temperature: L2SP(alpha, beta)  # noqa: E731
    warm = search(regularizer=regularizer)
    model = warm.begin()
    at_start = [v.numpy() for v, _ in model.pairing.statistics]
    of_source = [v.numpy() for _, v in model.pairing.statistics]
    assert differ(at_start, of_source) == bool(share)
    before = model.target.get_weights()
    warm.train(epochs=1)
    assert differ(before, model.target.get_weights())
    assert model.recipe is not None
    assert_same(at_start, [v.numpy() for v, _ in model.pairing.statistics])
    other = search("other", regularizer=regularizer).begin(alpha=0.1)
    assert_same(at_start, [v.numpy() for v, _ in other.pairing.statistics])


def test_the_attention_is_that_of_the_folds_data(search, data, real_attention):
    """Against `ChannelAttention.compute` on a model with the fold's head."""
    model = search().begin(1)
    source = SPACE["source"]()
    twin = kd.DeltaModel(target_of(source), source=source, taps=TAPS["both"])
    twin.target.set_weights(model.target.get_weights())
    twin.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = zip(*data.train(1).as_numpy_iterator(), strict=True)
    given = tuple(np.concatenate(v) for v in batches)
    expected = kd.ChannelAttention.compute(
        twin, given, train_head="auto", progress=False
    )
    found = model.regularizer.attention_weights()
    for tap, weights in expected.weights.items():
        np.testing.assert_allclose(found[tap], weights, rtol=1e-4)


# What is done once


def test_one_trace_with_a_cache(search, traces, data):
    """And the source's maps are kept from one training to the next."""
    cache = kd.SourceMapCache(dtype="float32")
    warm, plain = search(**LIGHT), search("plain", **LIGHT)
    cached = [warm.train(0, cache)]
    once = len(traces)
    cached += [warm.train(fold, cache) for fold in (1, 0)]
    assert len(traces) == once > 0
    assert cache.misses == 0
    assert_same(cached[0], cached[2])
    for fold in (0, 1):
        expected = plain.train(fold)
        reference.assert_same_weights(cached[fold][:-1], expected[:-1], atol=1e-5)


def test_each_fold_has_a_head_of_its_own(search):
    warm = search(**LIGHT)
    heads = [warm.head(fold) for fold in (0, 1, 2, None)]
    for i, head in enumerate(heads):
        for other in heads[:i]:
            assert differ(head[:1], other[:1])
    assert_same(warm.head(1), heads[1])
    for name, other in OTHERS.items():
        if name != "fold":
            assert_same(warm.head(1, **other), heads[1])
    assert differ(search("seeded", seed=5, **LIGHT).head(1)[:1], heads[1][:1])


def test_the_attention_is_computed_once_a_fold(search, computed):
    warm = search(**DELTA)
    for fold in (0, 1, 0, None):
        warm.begin(fold)
        warm.begin(fold, alpha=0.1, beta=0.01)
    assert computed == [TAPS["both"]] * 3
    warm.begin(1, temperature=1.0)
    assert len(computed) == 3
    warm.begin(1, taps="last")
    assert computed[3:] == [TAPS["last"]]


def test_another_temperature_weighs_the_same_scores(search):
    warm = search(**DELTA)
    scores = {}
    for temperature in (5.0, 1.0):
        weights = warm.begin(1, temperature=temperature).regularizer.attention_weights()
        scores[temperature] = {
            tap: temperature * np.log(w) for tap, w in weights.items()
        }
    for tap, even in scores[5.0].items():  # z-scores, but for a constant
        peaked = scores[1.0][tap]
        np.testing.assert_allclose(even - even[0], peaked - peaked[0], atol=1e-5)
    # To the bit what it is where it comes first.
    first = (
        search("first", **DELTA)
        .begin(1, temperature=1.0)
        .regularizer.attention_weights()
    )
    assert_same(list(weights.values()), list(first.values()))


def test_variants_share_the_attention(search, computed):
    alphas = {"code": [0.01, 0.02], "relative": [0.1, 3.0]}
    warm = search(**DELTA, variant=list(alphas), alpha=alphas)
    for variant in ("code", "relative"):
        model = warm.begin(variant=variant)
        assert model.regularizer.variant == variant
        assert bool(model.regularizer.scales) == (variant == "relative")
    assert len(computed) == 1


def test_a_second_process_reads_what_the_first_computed(search, computed):
    first = search(**DELTA)
    expected = [variables(first.begin(fold)) for fold in (0, 1)]
    assert len(computed) == 2

    def unread():
        raise AssertionError("the data are not needed")

    again = search(**DELTA)
    for fold in (1, 0):
        model = again.models.begin(hp_of(again.hyper), fold, unread)
        assert_same(variables(model), expected[fold])
    assert len(computed) == 2


def test_what_was_computed_for_another_attention_is_not_used(search, computed):
    def few(alpha, beta, temperature):
        return Delta(alpha, beta, attention_samples=6, temperature=temperature)

    search(**DELTA).begin()
    for _ in range(2):
        search(**{**DELTA, "regularizer": few}).begin()
        assert len(computed) == 2


# What needs another model, and what not


def test_an_optimizer_of_ones_own_keeps_its_rate(search):
    """As in `build`: a function may use the cell's rate as it likes."""

    def fixed():
        return keras.optimizers.Adam(0.25)

    def scaled(learning_rate):
        return keras.optimizers.SGD(2 * learning_rate)

    own = search("own", optimizer=fixed, learning_rate=0.01, **LIGHT)
    assert rate_of(own.begin()) == 0.25
    warm = search("scaled", optimizer=scaled, **LIGHT)
    for rate in (0.05, 0.01):
        model = warm.begin(learning_rate=rate)
        assert rate_of(model) == pytest.approx(2 * rate)
        built = warm.hyper.build(hp_of(warm.hyper, learning_rate=rate))
        assert rate_of(built) == rate_of(model)


def rate_of(model):
    return float(model.optimizer.learning_rate.numpy())


def test_settings_of_the_optimizer_that_follow_the_rate(search):
    def decaying(learning_rate):
        return keras.optimizers.AdamW(learning_rate, weight_decay=learning_rate / 10)

    warm = search(optimizer=decaying, **LIGHT)
    models = [warm.begin(learning_rate=rate) for rate in (0.05, 0.01)]
    assert [m.optimizer.weight_decay for m in models] == [0.005, 0.001]


def test_a_schedule_of_the_rate(search, traces):
    """It is part of the traced step, so each rate has a model of its own."""

    def scheduled(learning_rate):
        schedule = keras.optimizers.schedules.ExponentialDecay(learning_rate, 4, 0.5)
        return keras.optimizers.SGD(schedule)

    warm = search("warm", optimizer=scheduled, **LIGHT)
    fast = warm.train()
    once = len(traces)
    slow = warm.train(learning_rate=0.01)
    assert len(traces) == 2 * once and differ(fast, slow)
    warm.train(learning_rate=0.01, alpha=0.1, fold=1)
    assert len(traces) == 2 * once


def test_a_schedule_of_alpha(search):
    def scheduled(alpha, beta, temperature):
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4], [alpha, 0.0])
        return Delta(schedule, beta, attention="uniform", temperature=temperature)

    warm = search(**{**LIGHT, "regularizer": scheduled})
    models = [warm.begin(alpha=alpha) for alpha in (0.1, 3.0)]
    found = [m.regularizer.alpha.get_config()["values"] for m in models]
    assert found == [[0.1, 0.0], [3.0, 0.0]]
    assert warm.begin(alpha=3.0, beta=0.01) is models[1]
    assert (models[1].regularizer.alpha(0), models[1].regularizer.beta) == (3.0, 0.01)


def test_a_sum(search, traces, computed):
    """Each member's strengths follow the cell."""

    def both(alpha, beta, temperature):
        return Sum([Delta(alpha, beta, temperature=temperature), L2SP(alpha / 10, 0.0)])

    changed = {**LIGHT, "regularizer": both}
    warm = search(**changed)
    weak = warm.train(alpha=0.1)
    once = len(traces)
    strong = warm.train(alpha=3.0)
    assert [m.alpha for m in warm.begin(alpha=3.0).regularizer.members] == [3.0, 0.3]
    assert len(traces) == once > 0 and len(computed) == 1
    assert differ(weak, strong)


def test_two_attended_members_of_a_sum(search):
    """The temperature reaches both; their attention is the same."""

    def both(alpha, beta, temperature):
        return Sum(
            [
                Delta(alpha, beta, temperature=temperature),
                L2SPAtt(alpha, 0.0, temperature=2 * temperature),
            ]
        )

    changed = {**LIGHT, "regularizer": both}
    warm = search("warm", **changed)
    warm.begin(temperature=5.0)
    model = warm.begin(temperature=1.0)
    first, second = model.regularizer.members
    assert (first.temperature, second.temperature) == (1.0, 2.0)
    alone = search("alone", **changed).begin(temperature=1.0).regularizer
    for ours, theirs in zip((first, second), alone.members, strict=True):
        for tap, weights in ours.attention_weights().items():
            expected = theirs.attention_weights()[tap]
            np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert differ(
        list(first.attention_weights().values()),
        list(second.attention_weights().values()),
    )


@pytest.mark.parametrize("regularizer", ["l2_fe", "feature_map"])
def test_regularizers_without_attention(search, computed, regularizer):
    changed = {**LIGHT, "regularizer": regularizer, "temperature": None}
    warm = search("warm", **changed)
    expected = warm.train()
    assert differ(warm.train(fold=1, alpha=0.1, beta=0.01), expected)
    assert_same(warm.train(), expected)
    assert computed == []


def test_a_given_attention(search, computed):
    weights = {"conv0": [0.5, 0.2, 0.3], "conv1": [0.1, 0.4, 0.3, 0.2]}

    def given(alpha, beta):
        return Delta(alpha, beta, attention=weights)

    warm = search(**{**LIGHT, "regularizer": given, "temperature": None})
    warm.begin(1)
    found = warm.begin(0).regularizer.attention_weights()
    for tap, expected in weights.items():
        np.testing.assert_allclose(found[tap], expected, rtol=1e-6)
    assert computed == []


# What the user may have set


def test_the_precision_stays_for_the_next_model(search):
    keras.config.set_dtype_policy("mixed_float16")
    warm = search(**LIGHT)
    models = [warm.begin(), warm.begin(taps="last")]
    assert models[0] is not models[1]
    for model in models:
        assert model.target.get_layer("conv0").compute_dtype == "float16"
    assert keras.config.dtype_policy().name == "mixed_float16"


def test_a_loss_scale_keeps_the_rate(search):
    """As Keras adds by itself under `mixed_float16`."""

    def scaled(learning_rate):
        inner = keras.optimizers.SGD(learning_rate)
        return keras.optimizers.LossScaleOptimizer(inner)

    def scheduled(learning_rate):
        schedule = keras.optimizers.schedules.ExponentialDecay(learning_rate, 4, 0.5)
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule))

    warm = search("scaled", optimizer=scaled, **LIGHT)
    models = [warm.begin(learning_rate=0.05)]
    models.append(warm.begin(learning_rate=0.01))
    assert models[0] is models[1]
    assert rate_of(models[1]) == pytest.approx(0.01)
    warm = search("scheduled", optimizer=scheduled, **LIGHT)
    for rate in (0.05, 0.01):
        assert rate_of(warm.begin(learning_rate=rate)) == pytest.approx(rate)


def test_callbacks_that_change_the_model(search, data, tmp_path):
    warm = search("warm", **LIGHT)
    expected = warm.train()
    model = warm.begin(1)
    model.fit(
        data.train(1),
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.3),
            kd.callbacks.StrengthScheduler(alpha=lambda epoch: 7.0),
            kd.callbacks.PenaltyLogger(tmp_path / "logs", every=2),
        ],
    )
    assert_same(warm.train(), expected)


# What is refused


def test_another_source_is_refused(search, tmp_path):
    """In the next process, and in the same one."""
    search(**LIGHT).begin()
    other = functools.partial(LIGHT["source"], seed=3)
    with pytest.raises(keras_tuner.errors.FatalValueError) as e:
        search(**{**LIGHT, "source": other}).begin()
    assert str(e.value) == (
        "The function `source` returned other weights than before, so trainings cannot "
        "be compared. A source must load pretrained weights or start with "
        "`keras.utils.set_random_seed(0)`. If you changed the function, pass another "
        "`project_name`, or `overwrite=True`."
    )


def test_another_target_is_refused(search):
    search(**LIGHT).begin()
    other = functools.partial(kd.attach_head, classes=3, pooling="max")
    with pytest.raises(
        keras_tuner.errors.FatalValueError, match="`target` returned another network"
    ):
        search(**{**LIGHT, "target": other}).begin()


def test_a_source_without_pretrained_weights_is_refused(search):
    counter = iter(range(100))

    def random():
        return LIGHT["source"](seed=next(counter))

    with pytest.raises(keras_tuner.errors.FatalValueError, match="other weights"):
        search(**{**LIGHT, "source": random}).begin()


def test_a_damaged_file_says_so(search, tmp_path):
    search(**LIGHT).begin()
    (file,) = (tmp_path / "search" / "once").glob("*_fold_0.npz")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        search(**LIGHT).begin()


def test_letting_go(search):
    warm = search(**LIGHT)
    warm.models.drop()  # nothing to do
    model = warm.begin()
    expected = variables(model)
    warm.models.drop()
    assert len(warm.models._models) == 0
    again = warm.begin()
    assert again is not model
    assert_same(variables(again), expected)


# Several replicas


@pytest.mark.slow
def test_under_a_strategy(search, strategy, traces, computed, data):
    """Nearly the numbers of one device, and traced once."""
    # The mean over replicas of moving statistics is another: no BatchNormalization.
    several = search("several", strategy=strategy, **DELTA)
    first = several.train()
    once = len(traces)
    assert differ(several.train(alpha=0.1, learning_rate=0.01), first)
    assert_same(several.train(), first)
    assert len(traces) == once > 0 and len(computed) == 1
    assert several.begin().distribute_strategy is strategy
    alone = search("alone", **DELTA).train()
    reference.assert_same_weights(first[:-1], alone[:-1], atol=1e-4, rtol=1e-4)
