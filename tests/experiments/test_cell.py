"""`Cell` and its key: the same in every process, another for every setting."""

import csv
import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from experiments import methods, protocols, studies
from experiments.cell import Cell, digest, from_settings
from experiments.plan import Plan
from experiments.protocols import Protocol

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results"

# Another value of each argument of a `Cell`.
OTHER = {
    "dataset": "dogs",
    "method": "l2_sp_att",
    "protocol": "article",
    "network": "resnet50",
    "image_size": 96,
    "weights": "places.h5",
    "per_class": 5,
    "seed": 1,
    "fold": (1, 3),
    "alpha": 0.5,
    "beta": 0.5,
    "attention": "uniform",
    "attention_samples": 16,
    "temperature": 1.0,
    "taps": ("conv1", "conv2"),
    "batch_norm": "frozen",
    "head": "fitted",
    "strength": "decaying",
    "label_noise": 0.2,
    "corruptions": ("blur 3",),
    "curve": True,
    "teacher": {"network": "resnet50"},
    "factor": "attention",
    "label": "uniform",
}
# Another value of each argument of a `Protocol`.
OTHER_WAY = {
    "name": "ours",
    "iterations": 65,
    "batch_size": 17,
    "rates": {"default": 0.02},
    "schedule": "exponential",
    "decay_at": 0.5,
    "decay": 0.9,
    "whole_epochs": "floor",
    "min_epochs": 4,
    "backbone_rate": 0.1,
    "nesterov": True,
    "batch_norm_momentum": 0.99,
    "augmentation": "tllib",
    "ten_crop": "logits",
    "variant": "code",
    "strengths": {"l2": (1.0, 1.0)},
    "strengths_of": {"dogs": 1.0},
    "attention_samples": 65,
    "repeats": 7,
    "folds": 7,
}
FOR_TABLES = {"factor", "label"}
# They make cells, and are no part of one.
OF_THE_PLAN = {"strengths", "strengths_of", "repeats", "folds"}
OF_ATTENTION = {"attention", "attention_samples", "temperature"}


@pytest.fixture
def cell():
    return Cell("cub", "delta")


def refused(sentence):
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def names(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_other_values_are_complete():
    assert OTHER.keys() == names(Cell) - {"recipe"}  # of one method: test_baselines.py
    assert OTHER_WAY.keys() == names(Protocol)


def test_key_changes_with_every_setting(cell):
    found = {name: cell.replace(**{name: v}).key for name, v in OTHER.items()}
    assert {name for name, key in found.items() if key == cell.key} == FOR_TABLES
    settings = [key for name, key in found.items() if name not in FOR_TABLES]
    assert len({cell.key, *settings}) == len(settings) + 1


def test_key_changes_with_every_setting_of_the_protocol(cell):
    found = {
        name: cell.replace(protocol=cell.protocol.replace(**{name: value})).key
        for name, value in OTHER_WAY.items()
    }
    assert {name for name, key in found.items() if key == cell.key} == OF_THE_PLAN
    settings = [key for name, key in found.items() if name not in OF_THE_PLAN]
    assert len({cell.key, *settings}) == len(settings) + 1


@pytest.mark.parametrize("method", methods.ALL)
def test_attention_counts_where_the_method_has_one(method):
    plain = Cell("cub", method)
    same = {n for n in OF_ATTENTION if plain.replace(**{n: OTHER[n]}).key == plain.key}
    assert same == (set() if methods.get(method).attended else OF_ATTENTION)


def test_probe_has_a_head_alone():
    probe = Cell("cub", "probe")
    assert probe.head == "only" and probe.settings()["head"] == "only"
    assert from_settings(probe.settings()) == probe
    assert probe.key != Cell("cub", "l2_fe", head="only").key
    with_training = [n for n in methods.KNOWN if Cell("cub", n).head != "only"]
    others = methods.PEERS | methods.TRAINERS | methods.OF_TEACHER
    assert with_training == [*methods.ALL, *others]


def test_key_is_sixteen_digits_of_the_settings(cell):
    assert re.fullmatch("[0-9a-f]{16}", cell.key)
    assert cell.key == digest(cell.settings()) == digest(dict(cell.settings()))
    backwards = dict(reversed(cell.settings().items()))
    assert digest(backwards) == cell.key
    assert cell.key == pickle.loads(pickle.dumps(cell)).key


def test_protocol_by_name_or_value(cell):
    by_value = Cell("cub", "delta", protocol=protocols.get("few_shot"))
    assert by_value == cell and by_value.key == cell.key


def test_integers_and_floats_of_one_value_are_one_cell(cell):
    for name, whole in (
        ("alpha", 5),
        ("beta", 1),
        ("temperature", 2),
        ("label_noise", 0),
    ):
        ours, theirs = (cell.replace(**{name: kind(whole)}) for kind in (int, float))
        assert ours == theirs
        assert ours.key == theirs.key, name
        assert len({ours, theirs}) == 1


def test_key_is_the_same_in_another_process(cell):
    several = [
        cell,
        Cell("cub", "l2", protocol="code", alpha=1e-4, fold=(0, 5), factor="x"),
        Cell("dogs", "l2_sp_att", taps=("a", "b"), corruptions=("blur 3", "noise 2")),
    ]
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import light\n"
        "from experiments.cell import Cell\n"
        "cell = Cell('cub', 'delta')\n"
        "for c in (cell, Cell('cub', 'l2', protocol='code', alpha=1e-4, fold=(0, 5), "
        "label='y'), Cell('dogs', 'l2_sp_att', taps=('a', 'b'), "
        "corruptions=('blur 3', 'noise 2'))):\n"
        "    print(c.key)"
    )
    for seed in "1", "2":
        found = subprocess.run(
            [sys.executable, "-c", program, str(HERE / "scripts")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.split() == [c.key for c in several]


@pytest.mark.parametrize("name", OTHER)
def test_round_trip(cell, name):
    there = cell.replace(**{name: OTHER[name]})
    text = json.dumps(there.settings())
    back = from_settings(json.loads(text))
    assert back.key == there.key
    assert back.settings() == there.settings()
    for field in names(Cell) - FOR_TABLES - {"protocol", "recipe"}:
        assert getattr(back, field) == getattr(there, field)
        assert type(getattr(back, field)) is type(getattr(there, field))


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_round_trip_of_protocols(name):
    there = Cell("cub", "l2", protocol=name)
    back = from_settings(there.settings())
    assert back.key == there.key
    for field in names(Protocol) - OF_THE_PLAN:
        assert getattr(back.protocol, field) == getattr(there.protocol, field)


def test_published_rows_keep_their_keys():
    """Those of docs/results, which `--known` takes over."""

    def published(name):
        with open(RESULTS / f"{name}.csv", encoding="utf-8", newline="") as file:
            return {row["key"] for row in csv.DictReader(file)}

    for name, study in (
        ("few-shot-choices", studies.few_shot),
        ("robustness-choices", studies.robustness),
    ):
        assert published(name) == {cell.key for cell in Plan(study()).folds()}
    why = {entry.cell.key for entry in studies.why()}
    keys = published("why")
    assert keys and keys <= why  # some diverged


def test_settings_are_a_copy(cell):
    key = cell.key
    cell.settings()["protocol"]["rates"]["default"] = 5.0
    assert cell.settings()["protocol"]["rates"]["default"] == 0.01
    assert digest(cell.settings()) == key


def test_settings_of_another_version_are_refused(cell):
    settings = {**cell.settings(), "wheight_decay": 0.1}
    known = "'weights'"
    with refused(
        "Unknown name for `settings`. Received: 'wheight_decay'. Closest names: "
        f"{known}."
    ):
        from_settings(settings)


def test_what_it_is_for_does_not_tell_cells_apart(cell):
    other = cell.replace(factor="alpha", label="5")
    assert other.key == cell.key and hash(other) == hash(cell)


@pytest.mark.parametrize(
    "argument, value, sentence",
    [
        (
            "method",
            "l2sp",
            "Unknown name for `method`. Received: 'l2sp'. Closest names: 'l2_sp', "
            "'l2', 'l2_sp_att', 'fsp', 'l2_sp_fisher'.",
        ),
        (
            "protocol",
            "cod",
            "Unknown name for `protocol`. Received: 'cod'. Closest names: 'code'.",
        ),
        (
            "attention",
            "permutated",
            "Unknown name for `attention`. Received: 'permutated'. Closest names: "
            "'permuted', 'computed'.",
        ),
        (
            "batch_norm",
            "off",
            "Unknown name for `batch_norm`. Received: 'off'. Known names: "
            "'training', 'frozen'.",
        ),
        (
            "strength",
            "fixed",
            "Unknown name for `strength`. Received: 'fixed'. Known names: "
            "'constant', 'decaying', 'every_second'.",
        ),
    ],
)
def test_errors(cell, argument, value, sentence):
    with refused(sentence):
        cell.replace(**{argument: value})


def test_shown_as_a_line():
    cell = Cell("cub", "delta", per_class=5, alpha=5.0, seed=3)
    assert str(cell) == "cub, 5 a class, efficientnet_lite0, DELTA, alpha 5, seed 3"
    fold = cell.replace(fold=(0, 3), beta=0.01, per_class=None)
    assert str(fold) == (
        "cub, efficientnet_lite0, DELTA, alpha 5, beta 0.01, fold 1 of 3"
    )
    labelled = Cell("cub", "l2", factor="penalty", label="none")
    assert str(labelled) == "cub, efficientnet_lite0, L2, penalty none, seed 0"
