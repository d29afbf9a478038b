"""`DeltaHyperModel`: what is searched, what is built, what is refused."""

import functools
import json

import keras
import keras_tuner
import model_reference as reference
import numpy as np
import pytest
from networks import make_backbone

import keras_delta as kd
from keras_delta.regularizers import L2SP, Delta, Sum
from keras_delta.tuning.hyper_model import ARTICLE_GRID, DeltaHyperModel
from keras_delta.tuning.objectives import check_objective, metric_names
from keras_delta.tuning.spaces import space

pytestmark = pytest.mark.usefixtures("eagerly")

SIZE, WIDTHS = 8, (3, 4)
source_of = functools.partial(make_backbone, size=SIZE, widths=WIDTHS)
target_of = functools.partial(kd.attach_head, classes=3)
fatal = keras_tuner.errors.FatalError


def uniform(alpha, beta):
    return Delta(alpha, beta, attention="uniform", variant="code")


def hyper_model(**changed):
    given = {"source": source_of, "target": target_of, "regularizer": uniform}
    return DeltaHyperModel(**{**given, **changed})


def declared(hyper, **values):
    hp = keras_tuner.HyperParameters()
    hp.values = dict(values)
    hyper.declare_hyperparameters(hp)
    return hp


def settings(hyper, **values):
    return hyper.settings(declared(hyper, **values))


# What is searched


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.5, 0.5),
        (3, 3.0),
        (0, 0.0),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2.0),
        (np.asarray(0.25), 0.25),
        ([1], [1.0]),
        ([0, 0.5, 3], [0.0, 0.5, 3.0]),
        ([0.2, 0.1], [0.2, 0.1]),  # in the order given
        (np.array([0.1, 0.2]), [0.1, 0.2]),
        ([np.float64(0.1), 2], [0.1, 2.0]),
        (range(1, 4), [1.0, 2.0, 3.0]),
        (ARTICLE_GRID, [1e-4, 1e-3, 1e-2, 0.1, 0.2]),
        ((0.1, 100), (0.1, 100.0)),
        ((np.float64(0.5), np.int64(2)), (0.5, 2.0)),
    ],
    ids=str,
)
def test_space(given, expected):
    found = space("alpha", given)
    assert found == expected and type(found) is type(expected)
    flat = [found] if isinstance(found, float) else found
    assert all(type(v) is float for v in flat)


BAD = {
    "negative in a list": [0.1, -1],
    "repeated as integer": [1, 1.0],
    "infinite range": (0.1, float("inf")),
    "empty": [],
    "three": (0.1, 0.2, 0.3),
    "low > high": (0.2, 0.1),
    "low = 0": (0, 0.1),
}


@pytest.mark.parametrize("given", BAD.values(), ids=BAD)
def test_bad_space(given):
    with pytest.raises(ValueError, match=r"`alpha`. Expected"):
        space("alpha", given)


@pytest.mark.parametrize("given", ["0.1", None, [True], [[0.1], [0.2]]], ids=str)
def test_what_is_no_number(given):
    with pytest.raises(TypeError, match=r"`alpha`. Expected"):
        space("alpha", given)


@pytest.mark.parametrize("argument", ["alpha", "beta", "learning_rate"])
def test_bad_space_names_the_argument(argument):
    with pytest.raises(ValueError) as e:
        hyper_model(**{argument: (0.2, 0.1)})
    assert str(e.value) == (
        f"Invalid value for argument `{argument}`. Expected a number, a list of "
        "numbers, or a range (low, high) with 0 < low < high. Received: "
        f"{argument}=(0.2, 0.1)"
    )


def test_what_is_declared():
    hyper = hyper_model(alpha=[0.1, 3], beta=(1e-4, 1), learning_rate=0.02)
    hp = declared(hyper)
    alpha, beta = hp.space
    assert (alpha.name, alpha.values, alpha.ordered) == ("alpha", [0.1, 3.0], True)
    assert (beta.name, beta.min_value, beta.max_value) == ("beta", 1e-4, 1.0)
    assert beta.sampling == "log" and beta.default == pytest.approx(0.01)
    assert hyper.settings(hp) == {
        "alpha": 0.1,
        "beta": beta.default,
        "learning_rate": 0.02,
    }
    found = settings(hyper, alpha=3.0, beta=0.5)
    assert found == {"alpha": 3.0, "beta": 0.5, "learning_rate": 0.02}
    assert list(found)[:2] == ["alpha", "beta"]


def test_nothing_searched():
    hyper = hyper_model(alpha=1, beta=0, learning_rate=0.1)
    assert declared(hyper).space == []
    assert settings(hyper) == {"alpha": 1.0, "beta": 0.0, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("regularizer", "kwargs", "expected"),
    [
        ("delta", {}, (0.1, 100.0)),
        ("feature_map", {}, (0.1, 100.0)),
        ("delta", {"variant": "relative"}, (0.1, 100.0)),
        ("delta", {"variant": "code"}, (1e-4, 0.2)),
        ("delta", {"variant": ["article"]}, (1e-4, 0.2)),
        ("l2_sp", {}, (1e-4, 0.2)),
        ("l2", {}, (1e-6, 2e-3)),
        ("at", {}, (10.0, 20_000.0)),
        ("dtnh", {}, (0.05, 100.0)),
        ("l2_fe", {}, (1e-4, 0.2)),
        (Delta, {}, (0.1, 100.0)),
        (uniform, {}, (1e-4, 0.2)),
        (lambda alpha, beta: Sum([Delta(alpha, beta)]), {}, (1e-4, 0.2)),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_default_alpha(regularizer, kwargs, expected):
    hp = declared(hyper_model(regularizer=regularizer, **kwargs))
    (alpha,) = (h for h in hp.space if h.name == "alpha")
    assert (alpha.min_value, alpha.max_value) == pytest.approx(expected)


def test_default_alpha_where_a_temperature_is_searched():
    """The function is called with it, to see which variant it gives."""

    def peaked(alpha, beta, temperature):
        return Delta(alpha, beta, temperature=temperature)

    hp = declared(hyper_model(regularizer=peaked, temperature=[2, 5]))
    assert hp.space[0].min_value == 0.1


def test_several_variants_have_an_alpha_each():
    alpha = {"code": [0.01, 0.02], "relative": (1, 10), "article": 0.005}
    hyper = hyper_model(regularizer="delta", variant=list(alpha), alpha=alpha, beta=1)
    hp = declared(hyper)
    assert [h.name for h in hp.space] == ["variant", "alpha_code", "alpha_relative"]
    conditions = {h.name: h.conditions for h in hp.space}
    assert [c.values for c in conditions["alpha_code"]] == [["code"]]
    assert settings(hyper)["alpha"] == 0.01
    found = settings(hyper, variant="code", alpha_code=0.02, alpha_relative=4.0)
    assert (found["variant"], found["alpha"]) == ("code", 0.02)
    found = settings(hyper, variant="relative", alpha_relative=4.0)
    assert (found["variant"], found["alpha"]) == ("relative", 4.0)
    assert settings(hyper, variant="article")["alpha"] == 0.005
    made = hyper.regularizer(found)
    assert (made.variant, made.alpha, made.beta) == ("relative", 4.0, 1.0)


def test_defaults_of_several_variants():
    hyper = hyper_model(regularizer="delta", variant=["code", "relative"])
    ranges = {h.name: h for h in declared(hyper).space if "alpha" in h.name}
    assert ranges["alpha_code"].max_value == 0.2
    assert ranges["alpha_relative"].max_value == 100.0


@pytest.mark.parametrize("alpha", [[0.1], 0.1, {"code": 0.1}, {"code": 1, "no": 1}])
def test_one_alpha_for_several_variants_is_refused(alpha):
    with pytest.raises(ValueError, match=r"`alpha`. Expected a dict"):
        hyper_model(regularizer="delta", variant=["code", "relative"], alpha=alpha)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("codes", r"`variant`. Received: 'codes'. Closest names: 'code'"),
        (["code", "code"], r"`variant`. Expected one value or more, all different"),
    ],
)
def test_bad_variant(variant, message):
    with pytest.raises(ValueError, match=message):
        hyper_model(regularizer="delta", variant=variant)


@pytest.mark.parametrize(
    "temperature", [[1, 2.5], [np.float32(1), 5], np.array([1, 2]), 3, 2.5], ids=str
)
def test_temperature(temperature):
    """Integers and NumPy's numbers as well; Keras Tuner takes no mixture."""
    hyper = hyper_model(regularizer="delta", temperature=temperature)
    (found,) = (h for h in declared(hyper).space if h.name == "temperature")
    assert found.values == np.ravel(temperature).tolist()
    assert all(type(v) is float for v in found.values)
    made = hyper.regularizer(settings(hyper, temperature=found.values[-1]))
    assert made.temperature == found.values[-1]


@pytest.mark.parametrize("temperature", [[1, 0], [1, 1], (1, 5)], ids=str)
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match=r"`temperature`. Expected"):
        hyper_model(regularizer="delta", temperature=temperature)


def test_taps():
    choice = {"all": "auto", "last": ["conv1"], "same": {"conv0": "conv0"}}
    hyper = hyper_model(taps=choice, alpha=1, beta=1)
    (found,) = declared(hyper).space
    assert (found.name, found.values) == ("taps", ["all", "last", "same"])
    expected = {"all": ["conv0", "conv1"], "last": ["conv1"], "same": ["conv0"]}
    for name, taps in expected.items():
        assert hyper.build(declared(hyper, taps=name)).taps == taps


@pytest.mark.parametrize(
    "taps", [["conv1"], {"conv1": "conv1"}, {"only": ["conv1"]}], ids=str
)
def test_taps_that_are_not_searched(taps):
    hyper = hyper_model(taps=taps, alpha=1, beta=1)
    assert declared(hyper).space == []
    assert hyper.build(declared(hyper)).taps == ["conv1"]


@pytest.mark.parametrize("taps", [{"": ["conv1"]}, {3: ["conv1"]}], ids=str)
def test_taps_without_names(taps):
    with pytest.raises(ValueError, match=r"`taps`. Expected a dict name -> taps"):
        hyper_model(taps=taps)


def test_what_is_searched_and_what_is_fixed():
    names = ("alpha", "beta", "learning_rate", "taps", "temperature", "variant")

    def searched(**given):
        hyper = hyper_model(regularizer="delta", **given)
        return {name for name in names if hyper.searches(name)}

    assert searched() == {"alpha", "beta"}
    assert searched(alpha=1, beta=[0.1], learning_rate=[0.1, 0.2]) == {"learning_rate"}
    assert searched(alpha=1, beta=1, variant="code") == set()
    assert searched(alpha=[1, 2], beta=1, variant="code") == {"alpha"}
    assert searched(beta=1, variant=["code", "relative"]) == {"alpha", "variant"}
    more = searched(alpha=1, beta=1, temperature=[1, 2], taps={"a": "auto", "b": ["x"]})
    assert more == {"temperature", "taps"}
    assert searched(alpha=1, beta=1, temperature=2, taps={"a": "auto"}) == set()


# What is built


def test_build():
    hyper = hyper_model(alpha=[0.25, 1], beta=0.5, learning_rate=0.125)
    model = hyper.build(declared(hyper, alpha=1.0))
    assert isinstance(model, kd.DeltaModel)
    assert type(model.regularizer) is Delta
    assert (model.regularizer.alpha, model.regularizer.beta) == (1.0, 0.5)
    assert float(model.optimizer.learning_rate.numpy()) == 0.125
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert model.optimizer.momentum == 0.9
    other = hyper.build(declared(hyper))
    for ours, theirs in (
        (model, other),
        (model.target, other.target),
        (model.source, other.source),
        (model.optimizer, other.optimizer),
        (model.regularizer, other.regularizer),
    ):
        assert ours is not theirs
    assert other.regularizer.alpha == 0.25


@pytest.mark.parametrize(("activation", "logits"), [(None, True), ("softmax", False)])
def test_the_loss_follows_the_head(activation, logits):
    def target(source):
        x = keras.layers.GlobalAveragePooling2D()(source.output)
        x = keras.layers.Dense(3, activation=activation, name="head")(x)
        return keras.Model(source.input, x)

    hyper = hyper_model(target=target)
    model = hyper.build(declared(hyper))
    assert isinstance(model.loss, keras.losses.SparseCategoricalCrossentropy)
    assert model.loss.from_logits is logits
    own = keras.losses.CategoricalCrossentropy(from_logits=logits)
    hyper = hyper_model(target=target, loss=own)
    assert hyper.build(declared(hyper)).loss is own


@pytest.mark.parametrize(
    ("optimizer", "kind", "rate"),
    [
        (keras.optimizers.Adam, keras.optimizers.Adam, 0.02),
        (lambda rate: keras.optimizers.SGD(2 * rate), keras.optimizers.SGD, 0.04),
        (lambda: keras.optimizers.SGD(0.5), keras.optimizers.SGD, 0.5),
        (
            functools.partial(keras.optimizers.RMSprop, momentum=0.5),
            keras.optimizers.RMSprop,
            0.02,
        ),
        (lambda learning_rate=1.0: keras.optimizers.SGD(learning_rate), None, 0.02),
    ],
)
def test_optimizers(optimizer, kind, rate):
    hyper = hyper_model(optimizer=optimizer, learning_rate=0.02)
    model = hyper.build(declared(hyper))
    assert isinstance(model.optimizer, kind or keras.optimizers.SGD)
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(rate)


def test_factories_may_take_no_arguments():
    def target():
        return kd.attach_head(source_of(), 3)

    def source(weights=None, *args, **kwargs):
        assert weights is None
        return source_of()

    model = hyper_model(source=source, target=target).build(declared(hyper_model()))
    assert model.pairing.new_layers == ["head"]


@pytest.mark.parametrize(
    ("regularizer", "kind"),
    [("l2_sp", L2SP), (L2SP, L2SP), (lambda alpha, beta: L2SP(alpha, beta), L2SP)],
)
def test_regularizers(regularizer, kind):
    hyper = hyper_model(regularizer=regularizer)
    made = hyper.regularizer({"alpha": 0.3, "beta": 0.2, "learning_rate": 1.0})
    assert type(made) is kind and (made.alpha, made.beta) == (0.3, 0.2)


@pytest.mark.parametrize("name", kd.regularizers.ALL)
def test_every_regularizer_can_be_searched(name):
    """With the strengths of a trial."""
    made = hyper_model(regularizer=name).regularizer({"alpha": 0.3, "beta": 0.2})
    assert (made.alpha, made.beta) == (0.3, 0.2)
    assert isinstance(made, kd.regularizers.ALL[name])


def test_metrics():
    hyper = hyper_model(metrics=["accuracy", keras.metrics.SparseCategoricalAccuracy])
    model = hyper.build(declared(hyper))
    x, y = reference.data(6)
    logs = model.fit(x, y, verbose=0).history
    names = metric_names(hyper.build(declared(hyper)))
    assert names == ["loss", "accuracy", "sparse_categorical_accuracy"]
    assert set(names) < set(logs)


# What is refused


@pytest.mark.parametrize("argument", ["source", "target", "optimizer"])
@pytest.mark.parametrize("given", ["model", "optimizer", 3], ids=str)
def test_instances_in_place_of_factories(argument, given):
    made = {"model": source_of(), "optimizer": keras.optimizers.SGD()}.get(given, given)
    with pytest.raises(TypeError) as e:
        hyper_model(**{argument: made})
    assert str(e.value).startswith(
        f"Invalid value for argument `{argument}`. Expected a function that creates a "
        "new object each time. Received:"
    )
    assert str(e.value).endswith(f"For example `{argument}=lambda ...: ...`.")


@pytest.mark.parametrize(
    ("argument", "function", "expected"),
    [
        ("source", lambda a: a, "no arguments"),
        ("target", lambda a, b: a, "one argument"),
        ("optimizer", lambda a, b: a, "one argument"),
        ("target", kd.attach_head, "one argument"),  # it needs the classes
    ],
)
def test_factories_of_more_arguments(argument, function, expected):
    with pytest.raises(
        TypeError, match=f"`{argument}`. Expected a function of {expected}"
    ):
        hyper_model(**{argument: function})


@pytest.mark.parametrize("rate", [[0.1, 0.2], (0.1, 0.2)])
def test_an_optimizer_that_does_not_take_the_rate(rate):
    with pytest.raises(
        TypeError, match=r"`optimizer`. Expected a function of the learn"
    ):
        hyper_model(optimizer=lambda: keras.optimizers.SGD(0.1), learning_rate=rate)


@pytest.mark.parametrize(
    ("metrics", "kind"),
    [([keras.metrics.SparseCategoricalAccuracy()], TypeError), ([3], TypeError)],
)
def test_bad_metrics(metrics, kind):
    with pytest.raises(kind, match=r"`metrics`. Expected names, or functions"):
        hyper_model(metrics=metrics)


def test_regularizer_instances_and_unknown_names():
    for given in (Delta(), ["delta", "l2_sp"], 3):
        with pytest.raises(TypeError, match=r"`regularizer`. Expected a name, a class"):
            hyper_model(regularizer=given)
    with pytest.raises(ValueError, match=r"Closest names: 'delta'"):
        hyper_model(regularizer="delat")


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda alpha: Delta(alpha), {}),
        (lambda a, b: Delta(a, b), {}),
        (lambda alpha, beta: Delta(alpha, beta), {"temperature": [1, 2]}),
        (lambda alpha, beta: Delta(alpha, beta), {"variant": "code"}),
    ],
)
@pytest.mark.parametrize("alpha", [None, [1.0, 2.0]])
def test_regularizers_of_other_arguments(function, given, alpha):
    """At once, not in the first trial."""
    with pytest.raises(TypeError) as e:
        hyper_model(regularizer=function, alpha=alpha, **given)
    names = ["alpha", "beta", *given]
    assert "`regularizer`. Expected a name, or a function with the arguments" in str(
        e.value
    )
    assert all(f"'{name}'" in str(e.value) for name in names)


def test_what_a_factory_gives_is_looked_at():
    hyper = hyper_model(regularizer=lambda alpha, beta: ["delta"], alpha=1)
    with pytest.raises(keras_tuner.errors.FatalTypeError, match="returns a Reg"):
        hyper.build(declared(hyper))
    hyper = hyper_model(optimizer=lambda rate: "sgd")
    with pytest.raises(keras_tuner.errors.FatalTypeError, match="returns an optimizer"):
        hyper.build(declared(hyper))


def shared(kind):
    """A factory that gives the same object each time."""
    if kind == "source":
        made = source_of()
        return lambda: made
    if kind == "target":
        made = target_of(source_of())
        return lambda source: made
    if kind == "optimizer":
        made = keras.optimizers.SGD()
        return lambda rate: made
    made = Delta(attention="uniform")
    return lambda alpha, beta: made


@pytest.mark.parametrize("kind", ["source", "target", "optimizer", "regularizer"])
def test_the_same_object_twice_is_refused(kind):
    hyper = hyper_model(**{kind: shared(kind)})
    with pytest.raises(keras_tuner.errors.FatalValueError) as e:
        for _ in range(2):
            hyper.build(declared(hyper))
    assert str(e.value).startswith(f"`{kind}` returned the same object twice: <")
    assert str(e.value).endswith(
        "It must create a new one each time it is called, or one training would "
        "continue where another ended. Create it inside the function: "
        f"`{kind}=lambda ...: ...`."
    )


# What makes one search another


class Mine(keras.metrics.Metric):
    pass


def test_the_description_is_the_same_in_another_process():
    cross_entropy = keras.losses.SparseCategoricalCrossentropy

    def loss(y, p):
        return keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)

    def described(**changed):
        hyper = hyper_model(alpha=[1, 2], beta=0.5, learning_rate=0.1, **changed)
        return json.dumps(hyper.description(declared(hyper)), sort_keys=True)

    first = described(loss=loss)
    assert first == described(loss=loss) and "0x" not in first
    found = json.loads(first)
    assert found["fixed"] == {"beta": 0.5, "learning_rate": 0.1}
    assert found["loss"] == "loss"
    assert [h["name"] for h in found["space"]] == ["alpha"]
    others = [
        described(),
        described(loss="sparse_categorical_crossentropy"),
        described(loss=cross_entropy()),
        described(loss=cross_entropy(from_logits=True)),
        described(metrics=["accuracy", "mae"]),
        described(metrics=[lambda: keras.metrics.F1Score(average="macro")]),
        described(metrics=[lambda: keras.metrics.F1Score(average="micro")]),
        described(taps=["conv1"]),
        described(optimizer=keras.optimizers.Adam),
        described(optimizer=lambda rate: keras.optimizers.SGD(rate, momentum=0.5)),
        described(regularizer="delta"),
        described(regularizer="delta", variant="code"),
        described(regularizer="delta", temperature=2),
    ]
    assert len({first, *others}) == len(others) + 1
    # Keras numbers names, of metrics as well.
    assert described(loss=cross_entropy(name="a")) == described(loss=cross_entropy())
    assert described(metrics=[Mine]) == described(metrics=[Mine])


# With the tuners of Keras Tuner


DATA = reference.learnable_data(12, size=SIZE)
TUNERS = {
    "random": (keras_tuner.RandomSearch, {"max_trials": 2}),
    "bayesian": (keras_tuner.BayesianOptimization, {"max_trials": 2}),
    "grid": (keras_tuner.GridSearch, {"max_trials": 2}),
    "hyperband": (keras_tuner.Hyperband, {"max_epochs": 2, "factor": 2}),
}


def tuner(kind, folder, hyper, objective="val_accuracy", **kwargs):
    return kind(
        hyper, objective=objective, directory=str(folder), project_name="t", **kwargs
    )


@pytest.mark.parametrize(("kind", "kwargs"), TUNERS.values(), ids=TUNERS)
def test_plain_tuners(tmp_path, kind, kwargs):
    hyper = hyper_model(alpha=[0.01, 0.02], beta=(0.001, 0.1), learning_rate=[0.1, 0.2])
    search = tuner(kind, tmp_path, hyper, seed=1, **kwargs)
    more = {} if kind is keras_tuner.Hyperband else {"epochs": 1}
    search.search(*DATA, validation_data=DATA, verbose=0, **more)
    trials = list(search.oracle.trials.values())
    assert len(trials) >= 2 and {t.status for t in trials} == {"COMPLETED"}
    tried = [tuple(sorted(t.hyperparameters.values.items())) for t in trials]
    assert len(set(tried)) == len(tried)
    for trial in trials:
        values = trial.hyperparameters.values
        assert values["alpha"] in (0.01, 0.02) and 0.001 <= values["beta"] <= 0.1
        assert 0 <= trial.score <= 1
    best = search.get_best_models()[0]
    hp = search.get_best_hyperparameters()[0]
    assert best.regularizer.alpha == pytest.approx(hp.get("alpha"))


def test_conditional_alphas_with_a_plain_tuner(tmp_path):
    alpha = {"code": [0.01, 0.02], "article": [0.001]}

    def of_variant(alpha, beta, variant):
        return Delta(alpha, beta, attention="uniform", variant=variant)

    hyper = hyper_model(
        regularizer=of_variant, variant=list(alpha), alpha=alpha, beta=0.1
    )
    search = tuner(keras_tuner.GridSearch, tmp_path, hyper, "loss")
    search.search(*DATA, epochs=1, verbose=0)
    found = [t.hyperparameters.values for t in search.oracle.trials.values()]
    assert sorted((v["variant"], v[f"alpha_{v['variant']}"]) for v in found) == [
        ("article", 0.001),
        ("code", 0.01),
        ("code", 0.02),
    ]


@pytest.mark.parametrize("objective", ["loss", "feature_penalty", "val_loss"])
def test_objectives_that_are_logged(tmp_path, objective):
    objective = keras_tuner.Objective(objective, "min")
    search = tuner(
        keras_tuner.RandomSearch, tmp_path, hyper_model(), objective, max_trials=1
    )
    search.search(*DATA, validation_split=0.25, epochs=1, verbose=0)
    (trial,) = search.oracle.trials.values()
    assert trial.status == "COMPLETED" and np.isfinite(trial.score)


@pytest.mark.parametrize(
    ("objective", "given", "message"),
    [
        ("val_acuracy", {"validation_data": DATA}, "Closest names: 'val_accuracy'"),
        ("val_accuracy", {}, "There is no validation data: pass `validation_data`."),
        ("val_accuracy", {"validation_split": 0.0}, "There is no validation data"),
        ("val_feature_penalty", {"validation_data": DATA}, "Unknown name"),
    ],
)
def test_an_objective_that_is_never_logged(
    tmp_path, monkeypatch, objective, given, message
):
    """Before the training, and it ends the search."""
    monkeypatch.setattr(kd.DeltaModel, "fit", None)
    objective = keras_tuner.Objective(objective, "max")
    search = tuner(
        keras_tuner.RandomSearch, tmp_path, hyper_model(), objective, max_trials=2
    )
    with pytest.raises(keras_tuner.errors.FatalValueError, match=r"`objective`") as e:
        search.search(*DATA, epochs=1, verbose=0, **given)
    assert message in str(e.value)


def test_every_name_of_several_objectives():
    model = (hyper := hyper_model()).build(declared(hyper))

    def several(*names):
        objectives = [keras_tuner.Objective(name, "min") for name in names]
        return keras_tuner.oracles.RandomSearchOracle(objectives).objective

    with pytest.raises(fatal, match=r"'task_lss'. Closest names: 'task_loss'"):
        check_objective(several("val_loss", "task_lss"), model, DATA)
    check_objective(several("val_loss", "task_loss"), model, DATA)


def test_the_same_object_ends_a_plain_search(tmp_path):
    hyper = hyper_model(target=shared("target"))
    with pytest.raises(fatal, match=r"`target` returned the same object twice"):
        search = tuner(keras_tuner.RandomSearch, tmp_path, hyper, "loss", max_trials=2)
        search.search(*DATA, epochs=1, verbose=0)
