"""`Protocol`: lengths, rates and strengths of the published programs, by hand."""

import dataclasses
import itertools
import re

import pytest
from experiments import methods, protocols
from experiments.protocols import Protocol

from keras_delta import data, regularizers

DOGS, CUB = 12_000, 5_994  # training images


def refused(sentence):
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def rates(protocol, images, network="resnet101"):
    epochs = protocol.epochs(images)
    return [protocol.rate(epoch, network, images) for epoch in range(epochs)]


@pytest.mark.parametrize(
    "iterations, epochs, decay_epoch, gamma",
    [(9000, 48, 33, 0.932603), (6000, 32, 22, 0.900628)],
)
def test_lengths_of_the_program_on_dogs(iterations, epochs, decay_epoch, gamma):
    protocol = protocols.get("code").replace(iterations=iterations)
    assert protocol.epochs(DOGS) == epochs
    assert protocol.decay_epoch(DOGS) == decay_epoch
    assert protocol.gamma(DOGS) == pytest.approx(gamma, abs=5e-7)


def test_program_as_its_script_calls_it():
    code = protocols.get("code")
    assert (code.iterations, code.batch_size, code.repeats) == (6000, 64, 3)
    assert code.schedule == "exponential"
    assert not code.nesterov and code.backbone_rate == 1
    assert code.variant == "code"


def test_lengths_are_cut_to_whole_epochs_as_the_program_does():
    # 6000 * 64 / 5994 = 64.06 and 0.67 of it 42.92; rounded, it would be 43 as well.
    code = protocols.get("code")
    assert code.epochs(CUB) == 64 and code.decay_epoch(CUB) == 43
    # 6000 * 64 / 5360 = 71.64: down, not to 72; 48.0 -> 48 + 1.
    assert code.epochs(5360) == 71 and code.decay_epoch(5360) == 49
    assert code.replace(whole_epochs="round").epochs(5360) == 72
    assert code.replace(whole_epochs="round").decay_epoch(5360) == 48


def test_first_epoch_runs_at_the_first_rate_and_the_eth_at_a_tenth():
    code = protocols.get("code")
    found = rates(code, DOGS)
    assert found[0] == 0.01
    assert found[1] == pytest.approx(0.00900628, rel=1e-6)
    assert found[22] == pytest.approx(0.001, rel=1e-12)
    for before, after in itertools.pairwise(found):
        assert after / before == pytest.approx(0.900628, rel=1e-6)


def test_exponential_schedule_with_a_given_constant():
    # The article's Fig. 3: 0.93 after each epoch.
    protocol = protocols.get("article").replace(schedule="exponential", decay=0.93)
    assert rates(protocol, DOGS)[:3] == pytest.approx([0.01, 0.0093, 0.008649])


@pytest.mark.parametrize(
    "network, first", [("resnet101", 0.01), ("inception_v3", 0.001)]
)
@pytest.mark.parametrize("name", ["article", "code"])
def test_first_rate_depends_on_the_network(name, network, first):
    assert protocols.get(name).rate(0, network, DOGS) == first


def test_article():
    article = protocols.get("article")
    assert (article.iterations, article.batch_size) == (9000, 64)
    assert article.decay_at * article.iterations == 6000
    # 9000 and 6000 iterations of 187.5 a epoch.
    assert article.epochs(DOGS) == 48 and article.decay_epoch(DOGS) == 32
    assert rates(article, DOGS) == pytest.approx([0.01] * 32 + [0.001] * 16)
    found = rates(article, DOGS, "inception_v3")
    assert found == pytest.approx([0.001] * 32 + [0.0001] * 16)
    assert (article.repeats, article.folds) == (5, 5)
    assert article.attention_samples is None  # all
    assert article.variant == "article" and article.augmentation == "default"
    assert article.ten_crop is None and not article.nesterov


def test_tllib():
    tllib = protocols.get("tllib")
    # 20 epochs of 500 batches of 48: a data set of 24 000 images has just these.
    assert tllib.iterations == 20 * 500 and tllib.batch_size == 48
    assert tllib.epochs(24_000) == 20 and tllib.decay_epoch(24_000) == 12
    found = rates(tllib, 24_000, "resnet50")
    assert found == pytest.approx([0.01] * 12 + [0.001] * 8)
    assert tllib.backbone_rate == 0.1 and tllib.nesterov
    assert tllib.augmentation == "tllib" and tllib.ten_crop is None
    assert tllib.attention_samples == 10 * 32
    # 10 000 * 48 / 5994 = 80.08, and 0.6 of it 48.05.
    assert tllib.epochs(CUB) == 80 and tllib.decay_epoch(CUB) == 48


def test_strengths():
    article, code = protocols.get("article"), protocols.get("code")
    tllib, ours = protocols.get("tllib"), protocols.get("few_shot")
    for dataset in ("stanford_dogs", "cub"):
        for method in methods.ARTICLE:
            assert article.strength(method, dataset) == (0.01, 0.01)
            assert ours.strength(method, dataset) == (None, None)
    # run.sh has 0.1 for Dogs, for DELTA.
    assert code.strength("delta", "stanford_dogs") == (0.1, 0.01)
    assert code.strength("delta", "cub") == (0.01, 0.01)
    assert code.strength("l2_sp", "stanford_dogs") == (0.01, 0.01)
    # Weight decay: of everything, head included.
    assert code.strength("l2", "cub") == (1e-4, 1e-4)
    assert tllib.strength("l2", "cub") == (5e-4, 5e-4)
    assert tllib.strength("delta", "cub") == (0.01, 0.01)


def test_program_has_its_l2_as_weight_decay():
    # Weight decay d adds d w to the gradient, which half the square times d does.
    alpha, beta = protocols.get("code").strength("l2", "cub")
    made = methods.get("l2").make(alpha, beta, "code")
    assert (made.alpha, made.beta, made.head_factor) == (1e-4, 1e-4, 1.0)


@pytest.mark.parametrize(
    "images, epochs, decay_epoch",
    [
        # 64 * 16 / images
        (60, 17, 11),  # 17.07, 11.38
        (120, 9, 6),  # 8.53, 5.69
        (240, 4, 3),  # 4.27, 2.84
        (720, 3, 2),  # 1.42: at least 3, and two thirds of these
        (100_000, 3, 2),
    ],
)
def test_min_epochs(images, epochs, decay_epoch):
    ours = protocols.get("few_shot")
    assert ours.min_epochs == 3
    assert ours.epochs(images) == epochs
    assert ours.decay_epoch(images) == decay_epoch


@pytest.mark.parametrize("images", [60, 100, 400])
def test_bench_has_fifteen_epochs(images):
    bench = protocols.get("bench")
    found = rates(bench, images, "efficientnet_lite0")
    assert found == pytest.approx([0.01] * 10 + [0.001] * 5)
    assert (bench.batch_size, bench.repeats, bench.nesterov) == (16, 5, False)


def test_at_least_one_epoch():
    short = Protocol("short", iterations=1, batch_size=2)
    assert short.epochs(1000) == 1
    assert short.rate(0, "resnet50", 1000) == 0.01
    cut = short.replace(whole_epochs="floor", schedule="exponential")
    assert cut.epochs(1000) == 1
    assert cut.rate(0, "resnet50", 1000) == 0.01


def test_replace_leaves_the_rest():
    article = protocols.get("article")
    changed = article.replace(iterations=10, repeats=1)
    expected = {**dataclasses.asdict(article), "iterations": 10, "repeats": 1}
    assert dataclasses.asdict(changed) == expected
    assert article.iterations == 9000
    assert article.replace() == article


def test_replace_refuses_unknown_arguments():
    with refused(
        "Unknown name for `protocol`. Received: 'iteration'. Closest names: "
        "'iterations', 'augmentation'."
    ):
        protocols.get("article").replace(iteration=10)


def test_get():
    article = protocols.get("article")
    assert article is protocols.PROTOCOLS["article"]
    assert protocols.get(article) is article
    assert [p.name for p in protocols.PROTOCOLS.values()] == [*protocols.PROTOCOLS]
    with refused(
        "Unknown name for `protocol`. Received: 'articel'. Closest names: 'article'."
    ):
        protocols.get("articel")
    with refused(
        "Unknown name for `protocol`. Received: 'xyz'. Known names: 'article', "
        "'code', 'tllib', 'few_shot', 'bench'."
    ):
        protocols.get("xyz")


@pytest.mark.parametrize("name", ["iterations", "batch_size", "repeats", "min_epochs"])
@pytest.mark.parametrize("value", [0, -3, 2.0, True, None, "5"])
def test_refuses_numbers_that_are_none(name, value):
    with refused(
        f"Invalid value for argument `{name}`. Expected a positive integer. "
        f"Received: {name}={value!r}"
    ):
        protocols.get("few_shot").replace(**{name: value})


def test_refuses_unknown_schedule():
    with refused(
        "Unknown name for `schedule`. Received: 'cosine'. Known names: 'step', "
        "'exponential'."
    ):
        Protocol("mine", 10, 2, schedule="cosine")


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_data_and_regularizers_know_what_it_asks_for(name):
    protocol = protocols.get(name)
    ten_crop = protocol.ten_crop is not None
    for augmentation in (protocol.augmentation, "improved", "improved_code"):
        assert data.Protocol(augmentation, 224, training=True).name == augmentation
    data.Protocol(protocol.augmentation, 224, ten_crop=ten_crop)
    made = regularizers.Delta(variant=protocol.variant)
    assert made.variant == protocol.variant


def test_methods_have_the_articles_names_and_its_order():
    titles = [methods.get(name).title for name in methods.ARTICLE]
    article = ["L2-FE", "L2", "L2-SP", "L2-SP (ATT)", "DELTA w/o ATT", "DELTA"]
    assert titles == article
    with refused(
        "Unknown name for `method`. Received: 'detla'. Closest names: 'delta', "
        "'delta_code'."
    ):
        methods.get("detla")


@pytest.mark.parametrize("name", methods.ALL)
def test_methods_make_what_they_are_asked_for(name):
    method = methods.get(name)
    variant = "code" if name == "delta_code" else "article"
    made = method.make(0.25, 0.5, "article")
    assert made.beta == 0.5
    assert getattr(made, "variant", variant) == variant
    assert made.alpha == (0.25 if method.alphas else 0.0)
    assert method.make(0.25, 0.5, "article") is not made
    assert method.attended == bool(regularizers.with_attention(made))
    default = method.make(None, None, "relative")
    own = type(made)()
    assert default.beta == own.beta
    if name != "delta_code":
        assert default.alpha == own.alpha
