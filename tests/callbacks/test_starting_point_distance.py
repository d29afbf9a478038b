"""Distances of filters over the epochs: logs, history, files."""

import math

import model_reference as reference
import pytest

from keras_delta import analysis
from keras_delta.callbacks import StartingPointDistance
from keras_delta.regularizers import L2SP

X, Y = reference.learnable_data(8)
TAPS = reference.TAPS


def make(new_backbone):
    pair = reference.pair(new_backbone)
    return reference.compiled(*pair, L2SP(0.1, 0.1), run_eagerly=True)


def fit(model, *callbacks, epochs=3, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs).history


def assert_same(found, expected, rtol=0.0):
    assert list(found) == list(expected)
    for stage, layers in expected.items():
        for name, values in layers.items():
            assert found[stage][name] == pytest.approx(values, rel=rtol, abs=0)


@pytest.mark.parametrize("every, expected", [(1, [0, 1, 2]), (2, [1]), (4, [])])
def test_epochs_logs_and_files(every, expected, new_backbone, tmp_path):
    model = make(new_backbone)
    moved = StartingPointDistance(tmp_path / "new", every)
    logs = fit(model, moved)
    assert [entry["epoch"] for entry in moved.history] == expected
    files = [f"distances-{epoch + 1:04d}.npz" for epoch in expected]
    assert sorted(p.name for p in tmp_path.glob("new/*")) == files
    for tap in TAPS:
        mean, largest = (logs[f"filter_distance{x}/{tap}"] for x in ("", "_max"))
        known = [i for i in range(3) if not math.isnan(mean[i])]
        assert known == [i for i in range(3) if not math.isnan(largest[i])] == expected
        for entry in moved.history:
            values = entry["distances"][tap][tap]
            assert mean[entry["epoch"]] == pytest.approx(values.mean(), rel=1e-6)
            assert largest[entry["epoch"]] == values.max()
    for entry, file in zip(moved.history, files, strict=True):
        written = analysis.load_filter_distances(tmp_path / "new" / file)
        assert_same(written, entry["distances"])
    if every == 1:
        assert_same(moved.distances, analysis.filter_distances(model))


def test_resumed(new_backbone, tmp_path):
    model, moved = make(new_backbone), StartingPointDistance(tmp_path, every=2)
    fit(model, moved, epochs=3)
    fit(model, moved, initial_epoch=3, epochs=6)
    assert [entry["epoch"] for entry in moved.history] == [3, 5]
    names = [f"distances-000{i}.npz" for i in (2, 4, 6)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_two_replicas(strategy, new_backbone):
    found = []
    one = make(new_backbone)
    with strategy.scope():
        two = make(new_backbone)
    for model in (one, two):
        moved = StartingPointDistance()
        fit(model, moved, epochs=1)
        found.append(moved.distances)
    assert_same(*found, rtol=1e-4)


def test_plot_table_and_comparison(new_backbone, tmp_path):
    model, moved = make(new_backbone), StartingPointDistance(tmp_path)
    with pytest.raises(ValueError, match="Nothing has been measured"):
        moved.plot()
    fit(model, moved, epochs=1)
    figure = moved.plot(tmp_path / "p.svg", other=moved)
    assert len(figure.axes[0].lines) == 2 and (tmp_path / "p.svg").exists()
    assert len(moved.table()["distance"]) == 7
    file = tmp_path / "distances-0001.npz"
    assert_same(StartingPointDistance.load(file), moved.distances)
    for other in (model, moved, file):
        shares = StartingPointDistance.compare(moved, other)
        assert shares["all"] == {"rank_wise": 0.0, "filter_wise": 0.0}


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`every`\. Expected a positive integer"):
        StartingPointDistance(every=0)
