"""What a search found: ranking, noise, words and TensorBoard, by hand-made numbers."""

import math
import sys

import numpy as np
import pytest
from scipy import stats
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from keras_delta.statistics import holm, paired_t_test
from keras_delta.tuning import results
from keras_delta.tuning.hparams import write_hparams
from keras_delta.tuning.noise import hopeless
from keras_delta.tuning.results import Cell, best, frame
from keras_delta.tuning.summary import summary


def cell(trial, scores=None, alpha=0.1, beta=0.01, **changes):
    """A finished cell, or a failed one without scores."""
    scores = dict(enumerate(scores or []))
    made = Cell(
        trial_id=f"{trial:04d}",
        values={"alpha": alpha, "beta": beta},
        status="COMPLETED" if scores else "FAILED",
        scores=scores,
        score=sum(scores.values()) / len(scores) if scores else None,
        discarded=False,
        seconds=2.0,
        message=None,
        metrics={},
    )
    return made._replace(**changes)


def paired(a, b, folds):
    return paired_t_test(a.scores, b.scores, folds)


def ids(cells):
    return [c.trial_id for c in cells]


# --- ranking and the winner


@pytest.mark.parametrize(("direction", "winner"), [("max", "0002"), ("min", "0001")])
def test_the_best_mean_wins(direction, winner):
    cells = [cell(0, [0.5, 0.7]), cell(1, [0.4, 0.6]), cell(2, [0.6, 0.8])]
    assert best(cells, direction).trial_id == winner


def test_ties_go_to_the_smaller_sum_and_then_the_earlier_trial():
    # 0.1 + 0.2 is not 0.3 in floats: equal to 1e-6 is a tie.
    cells = [
        cell(9, alpha=0.1, beta=0.2, scores=[0.3]),
        cell(10, alpha=0.1, beta=0.1, scores=[0.1 + 0.2]),
        cell(8, alpha=0.2, beta=0.0, scores=[0.3 - 1e-14]),
        cell(2, alpha=0.0, beta=0.0, scores=[0.3 - 1e-5]),
    ]
    assert 0.1 + 0.2 != 0.3
    for order in (cells, cells[::-1]):
        assert ids(results.ranked(order, "max")) == ["0008", "0010", "0009", "0002"]


def test_as_many_right_images_in_other_folds_are_a_tie():
    """Metrics are float32, so that the means differ by 1e-8."""
    right = ([18, 16, 20, 15, 16], [17, 17, 17, 17, 17])
    folds = [[float(np.float32(n / 20)) for n in counts] for counts in right]
    weak, strong = cell(1, folds[0], alpha=0.1), cell(0, folds[1], alpha=1.0)
    assert weak.score < strong.score
    for order in ([weak, strong], [strong, weak]):
        assert best(order, "max") is weak


def test_alphas_of_different_variants_are_not_compared():
    def of(trial, variant, alpha, scores):
        values = {"alpha": alpha, "beta": 0.01, "variant": variant}
        return cell(trial, scores, values=values)

    cells = [
        of(0, "relative", 0.5, [0.90] * 3),
        of(1, "code", 0.01, [0.88, 0.91, 0.94]),
        of(2, "code", 0.02, [0.905] * 3),
        of(3, "relative", 5.0, [0.90] * 3),
    ]
    assert best(cells, "max", "one_standard_error").trial_id == "0002"
    # Nor in ties, where the order of the variants decides.
    ties = [of(0, "relative", 0.1, [0.9]), of(1, "code", 50.0, [0.9])]
    ties.append(of(2, "code", 5.0, [0.9]))
    assert ids(results.ranked(ties, "max")) == ["0002", "0001", "0000"]


def test_trials_without_padding_are_in_order():
    cells = [cell(0, [0.3], trial_id=name) for name in ("10", "9", "2")]
    assert ids(results.ranked(cells, "max")) == ["2", "9", "10"]


def test_discarded_and_failed_never_win():
    cells = [
        cell(0, [0.9], discarded=True),
        cell(1, [0.8], status="FAILED"),
        cell(2, [0.7], score=math.nan),
        cell(3, [0.95], status="RUNNING", score=None),
        cell(4, [0.1]),
    ]
    assert best(cells, "max").trial_id == "0004"
    # finished, discarded, running, failed
    assert ids(results.ranked(cells, "max")) == ["0004", "0000", "0003", "0001", "0002"]


ONE_ERROR = [
    cell(0, [0.88, 0.90, 0.92], alpha=0.01, beta=0.2),  # se = 0.02/sqrt(3) = 0.01155
    cell(1, [0.89] * 3, alpha=0.1, beta=0.01),
    cell(2, [0.8886] * 3, alpha=0.1, beta=0.1),  # 0.0114 away
    cell(3, [0.888] * 3, alpha=1.0, beta=1.0),  # 0.0120 away
    cell(4, [0.899] * 3, alpha=2.0, discarded=True),
]


def test_one_standard_error_takes_the_strongest_of_the_near():
    assert best(ONE_ERROR, "max").trial_id == "0000"
    assert best(ONE_ERROR, "max", "one_standard_error").trial_id == "0002"
    losses = [
        c._replace(scores={k: -v for k, v in c.scores.items()}, score=-c.score)
        for c in ONE_ERROR
    ]
    assert best(losses, "min", "one_standard_error").trial_id == "0002"


def test_one_standard_error_takes_the_better_of_equally_strong():
    cells = [cell(0, [0.8, 0.9], alpha=0), cell(1, [0.82] * 2), cell(2, [0.84] * 2)]
    assert best(cells, "max", "one_standard_error").trial_id == "0002"


def test_one_standard_error_needs_two_folds():
    with pytest.raises(ValueError, match="which have no standard error"):
        best([cell(0, [0.5])], "max", "one_standard_error")


def test_bad_rules_and_directions():
    with pytest.raises(
        ValueError, match=r"Unknown name for `rule`.*one_standard_error"
    ):
        best([cell(0, [0.5])], "max", "one_standard_eror")
    with pytest.raises(ValueError, match="Unknown name for `direction`"):
        best([cell(0, [0.5])], "up")


def test_nothing_finished_says_what_happened():
    trace = "Traceback (most recent call last):\n  File x\nValueError: too hot.\n"
    cells = [cell(1, message="later"), cell(0, message=trace)]
    with pytest.raises(ValueError) as error:
        best(cells, "max")
    assert str(error.value) == (
        "No cell of the search is finished: of 2, 2 failed. Why (the first, trial "
        "0000: ValueError: too hot). Fix the cause, or search other values."
    )
    with pytest.raises(ValueError, match="no cells yet"):
        best([], "max")
    running = [cell(0, [0.5], status="RUNNING", score=None)]
    with pytest.raises(ValueError, match=r"1 not finished\. Run `search` again"):
        best(running, "max")


# --- noise


def test_standard_error_by_hand():
    # deviations -2, 0, 2 hundredths: sqrt(8 / 2) / sqrt(3) hundredths
    made = cell(0, [0.88, 0.90, 0.92])
    assert results.standard_error(made) == pytest.approx(0.02 / math.sqrt(3))
    assert math.isnan(results.standard_error(cell(0, [0.5])))


def test_corrected_test_by_hand():
    """d = 2, 4, 1, 3, 5 hundredths: mean 3, variance 2.5, times 1/5 + 1/4 = 0.45.

    t = 3 / sqrt(1.125) = sqrt(8); with 4 degrees of freedom P(T > t) is
    1/2 - 3/8 * s * (1 - s^2 / 12) = 0.0237104, with s = t / sqrt(1 + t^2 / 4).
    """
    d = [0.02, 0.04, 0.01, 0.03, 0.05]
    base = [0.5, 0.6, 0.55, 0.7, 0.65]
    a, b = cell(0, [x + y for x, y in zip(base, d, strict=True)]), cell(1, base)
    found = paired(a, b, folds=5)
    s = math.sqrt(8) / math.sqrt(3)
    tail = 0.5 - 3 / 8 * s * (1 - s**2 / 12)
    assert tail == pytest.approx(0.0237104, abs=1e-7)
    assert found.difference == pytest.approx(0.03)
    assert found.standard_error == pytest.approx(math.sqrt(1.125) / 100)
    assert found.p_value == pytest.approx(2 * tail)
    assert found.folds == 5
    assert paired(b, a, folds=5).p_value == pytest.approx(found.p_value)
    assert paired(b, a, folds=5).difference == pytest.approx(-0.03)


@pytest.mark.parametrize(("folds", "common"), [(5, 5), (5, 3), (10, 7), (2, 2)])
def test_corrected_test_is_scipys_with_a_larger_variance(folds, common):
    rng = np.random.default_rng(folds + common)
    a = dict(enumerate(rng.normal(0.8, 0.1, folds).tolist()))
    b = {k: float(rng.normal(0.7, 0.1)) for k in range(folds - common, folds)}
    d = np.array([a[k] - b[k] for k in b])
    t = stats.ttest_1samp(d, 0).statistic
    t *= math.sqrt((1 / common) / (1 / common + 1 / (folds - 1)))
    found = paired(cell(0)._replace(scores=a), cell(1)._replace(scores=b), folds)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), common - 1))
    assert found.folds == common


def test_no_variance():
    a = cell(0, [0.5, 0.6, 0.7])
    assert paired(a, a, 5)[:3] == (0.0, 0.0, 1.0)
    # Not exactly constant in floats.
    above = cell(1, [0.6, 0.7, 0.8])
    found = paired(above, a, 5)
    assert found.difference == pytest.approx(0.1)
    assert found[1:] == (0.0, 0.0, 3)
    near = cell(2, [0.5, 0.6, 0.7 + 1e-16])
    assert paired(near, a, 5).p_value == 1.0


def test_too_few_folds_for_a_test():
    a, b = cell(0, [0.5, 0.6]), cell(1, [0.75])
    found = paired(a, b, 5)
    assert found.difference == pytest.approx(-0.25)
    assert math.isnan(found.p_value) and math.isnan(found.standard_error)
    nothing = paired(a, b._replace(scores={3: 0.5}), 5)
    assert math.isnan(nothing.difference) and nothing.folds == 0


def test_hopeless_by_hand():
    """d = 10, 20, 30 hundredths on three of five folds: mean 20, variance 100 * 7/12.

    t = 20 / sqrt(700 / 12) = 2.619; with two degrees of freedom
    P(T > t) = 1/2 - t / (2 sqrt(2 + t^2)) = 0.0601.
    """
    scores, top = {0: 0.5, 1: 0.4, 3: 0.4}, {0: 0.6, 1: 0.6, 2: 0.1, 3: 0.7}
    t = 20 / math.sqrt(700 / 12)
    p = 0.5 - t / 2 / math.sqrt(2 + t**2)
    assert p == pytest.approx(0.0601, abs=1e-4)
    assert hopeless(scores, top, "max", p + 1e-6, 5)
    assert not hopeless(scores, top, "max", p - 1e-6, 5)
    # As a loss it is the better one.
    assert not hopeless(scores, top, "min", 0.5, 5)
    assert hopeless(top, scores, "min", p + 1e-6, 5)


def test_hopeless_needs_three_common_folds():
    low, high = dict.fromkeys(range(3), 0.1), dict.fromkeys(range(5), 0.9)
    assert not hopeless({0: 0.1}, high, "max", 0.5, 5)
    assert not hopeless(low, {1: 0.9, 2: 0.9, 3: 0.9}, "max", 0.5, 5)
    assert hopeless(low, high, "max", 0.05, 5)
    assert not hopeless(high, high, "max", 0.05, 5)
    # One image of twenty worse in each of two folds: no variance, and p = 0.
    assert not hopeless({0: 0.85, 1: 0.75}, {0: 0.9, 1: 0.8}, "max", 0.05, 5)


def test_hopeless_seldom_discards_an_equal():
    """One-sided at 5 %: the correction makes it rarer where folds are independent."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(2000, 2, 3)).tolist()
    found = [
        hopeless(dict(enumerate(a)), dict(enumerate(b)), "max", 0.05, 5)
        for a, b in drawn
    ]
    assert 0.005 < np.mean(found) < 0.05


def test_holm_by_hand():
    # sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 -> not below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


# --- the table


def test_frame():
    cells = [
        cell(0, [0.5, 0.7], values={"taps": "last", "beta": 0.3, "alpha": 0.2}),
        cell(1, [0.8, 0.9, 1.0], metrics={"val_loss": 0.4}),
        cell(2, message="out of memory", values={"tuner/epochs": 3, "alpha": 1.0}),
    ]
    table = frame(cells, "val_accuracy", "max")
    assert list(table.columns) == [
        *("trial", "alpha", "beta", "taps", "tuner/epochs", "val_accuracy"),
        *("standard_error", "folds", "fold_0", "fold_1", "fold_2", "val_loss"),
        *("status", "discarded", "seconds", "message"),
    ]
    assert table["trial"].tolist() == ["0001", "0000", "0002"]
    np.testing.assert_allclose(table["val_accuracy"], [0.9, 0.6, np.nan])
    errors = [0.1 / math.sqrt(3), 0.1, np.nan]
    np.testing.assert_allclose(table["standard_error"], errors)
    assert table["folds"].tolist() == [3, 2, 0]
    np.testing.assert_allclose(table["fold_2"], [1.0, np.nan, np.nan])
    assert table["message"].tolist()[2] == "out of memory"
    assert frame(cells, "loss", "min")["trial"].tolist() == ["0000", "0001", "0002"]


def test_frame_of_nothing_and_of_one_fold():
    empty = frame([], "val_loss", "min")
    assert len(empty) == 0
    assert list(empty.columns)[:3] == ["trial", "val_loss", "standard_error"]
    one = frame([cell(0, [0.5])], "val_loss", "min")
    assert one["val_loss"].tolist() == [0.5]
    assert math.isnan(one["standard_error"][0])


SOME = {0: 1, 1: 3, 2: 2}


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("pandas", lambda: frame([], "loss", "min")),
        ("scipy.special", lambda: hopeless(SOME, {0: 2, 1: 2, 2: 2}, "max", 0.1, 5)),
    ],
)
def test_missing_packages_are_named(module, use, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    name = module.partition(".")[0]
    with pytest.raises(
        ImportError, match=rf'{name}.*pip install "keras_delta\[tuning\]"'
    ):
        use()


# --- words


def text(cells, objective="val_accuracy", direction="max", **kwargs):
    return summary(cells, objective, direction, **kwargs)


def grid(score, noise=0.0, folds=5, alphas=(0.01, 0.1, 1.0), betas=(0.1, 1.0)):
    """Cells with scores `score(alpha, beta) + noise * N(0, 1)`."""
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a in alphas for b in betas]
    return [
        cell(i, (score(a, b) + noise * rng.normal(size=folds)).tolist(), a, b)
        for i, (a, b) in enumerate(pairs)
    ]


def test_summary_word_for_word():
    cells = [
        cell(0, [0.80, 0.82, 0.84], alpha=0.01),
        cell(1, [0.90, 0.92, 0.94], alpha=0.1),
        cell(2, [0.70, 0.72, 0.74], alpha=1.0),
        cell(3, [0.5, 0.5], alpha=2.0, discarded=True),
        cell(4, alpha=0.001, message="ResourceExhausted: OOM\nmore"),
    ]
    assert text(cells, folds=3).splitlines() == [
        "Best: alpha = 0.1, beta = 0.01 with val_accuracy 92.0% ± 1.2% (trial 0001, "
        "mean ± standard error of 3 folds).",
        "5 cells: 3 finished, 1 discarded early as clearly worse, 1 failed (trial "
        "0004: ResourceExhausted: OOM).",
        "",
        "Significantly worse than the best: 2 of 2 (paired t test, corrected for "
        "shared training images; 95 %, Holm).",
        "The best of 3 means is a little too good, for having been chosen: measure "
        "the winner on images that the search has not seen.",
        "",
        "trial  alpha  beta  val_accuracy",
        " 0001    0.1  0.01  92.0% ± 1.2%",
        " 0000   0.01  0.01  82.0% ± 1.2%",
        " 0002      1  0.01  72.0% ± 1.2%",
    ]


def test_summary_where_nothing_differs():
    found = text(grid(lambda a, b: 0.8, noise=0.05))
    assert "Significantly worse than the best: none of 5 (paired" in found
    assert "The search found no difference larger than the noise." in found
    assert "it can tell: alpha from 0.01 to 1 and beta from 0.1 to 1." in found
    assert "range of beta" not in found


def test_summary_says_which_are_as_good():
    def score(alpha, beta):
        return 0.9 if alpha >= 0.1 else 0.5

    found = text(grid(score, noise=0.005))
    assert "Significantly worse than the best: 2 of 5 (paired" in found
    assert "no difference" not in found
    assert "it can tell: alpha from 0.1 to 1 and beta from 0.1 to 1." in found


def test_summary_corrects_for_many_comparisons():
    """p = 0.0474, see above, is significant alone and not among two."""
    top = [0.52, 0.64, 0.56, 0.73, 0.70]
    other = [0.5, 0.6, 0.55, 0.7, 0.65]
    pair = [cell(0, top), cell(1, other, alpha=0.2)]
    assert "Significantly worse than the best: 1 of 1 (paired" in text(pair)
    assert "found no difference" in text([*pair, cell(2, other, alpha=0.3)])


def test_summary_at_the_border():
    found = text(grid(lambda a, b: 0.5 + 0.1 * a - 0.2 * b, noise=0.001))
    assert "The best mean has the largest alpha of the search, 1: a better" in found
    assert "Widen the range of alpha, say up to 10, and search again." in found
    assert "The best mean has the smallest beta of the search, 0.1: a better" in found
    assert "Widen the range of beta, say down to 0.01, and search again." in found
    inside = text(grid(lambda a, b: 0.9 - abs(a - 0.1), noise=0.001))
    assert "Widen" not in inside


def test_what_was_discarded_or_failed_was_searched():
    cells = grid(lambda a, b: 0.5 + 0.1 * a, noise=0.001)
    assert "largest alpha of the search, 1:" in text(cells)
    for lost in (cell(9, [0.1], alpha=10.0, discarded=True), cell(9, alpha=10.0)):
        assert "largest alpha" not in text([*cells, lost])


def test_summary_at_zero_and_where_all_are_equal():
    found = text(grid(lambda a, b: 0.9 - a, alphas=(0.0, 0.1), noise=0.001))
    assert "smallest alpha of the search, 0: no penalty of the features" in found
    assert "Widen" not in found
    assert "The best mean has" not in text(grid(lambda a, b: 0.9))


def test_summary_of_one_and_two_folds():
    one = text(grid(lambda a, b: 0.9 - a, folds=1), folds=1)
    assert "One fold gives no estimate of the noise" in one
    assert "±" not in one and "one fold)" in one
    two = text(grid(lambda a, b: 0.9 - a / 5, folds=2, noise=0.01), folds=2)
    assert "Two folds say little about the noise" in two


def test_summary_of_few_or_failed_cells():
    assert "no cells yet" in text([])
    assert "of 1, 1 failed. Why (trial 0000: score nan)" in text(
        [cell(0, [0.5], score=math.nan)]
    )
    alone = text([cell(0, [0.5, 0.6])])
    assert "Only one cell is finished" in alone
    assert "too good" not in alone
    running = cell(1, [0.5], status="RUNNING", score=None)
    assert "2 cells: 1 finished, 1 not finished." in text([cell(0, [0.5]), running])


def test_summary_of_one_standard_error_names_the_best_mean_too():
    found = text(ONE_ERROR, rule="one_standard_error", folds=3)
    assert found.startswith("Best: alpha = 0.1, beta = 0.1 with val_accuracy 88.9%")
    assert "best mean, which is 90.0% ± 1.2% for alpha = 0.01, beta = 0.2." in found


def test_summary_of_a_range_that_was_sampled():
    """What matters is the end of the range, not the largest value drawn."""
    cells = grid(lambda a, b: 0.5 + 0.1 * a, alphas=(0.1, 0.3, 1.0), noise=0.001)
    assert "largest alpha of the search, 1:" in text(cells)
    assert "Widen" not in text(cells, limits={"alpha": (0.01, 10.0)})
    near = text(cells, limits={"alpha": (0.01, 1.5)})
    assert "largest alpha of the search, 1: a better" in near and "up to 15" in near
    assert "Widen" in text(cells, limits={"beta": (0.0, 1.0)})


def test_summary_of_the_strongest_says_nothing_of_borders():
    cells = [
        cell(0, [0.70, 0.72, 0.74], alpha=0.01),
        cell(1, [0.88, 0.90, 0.92], alpha=0.1),
        cell(2, [0.87, 0.90, 0.92], alpha=1.0),
    ]
    found = text(cells, rule="one_standard_error")
    assert "Best: alpha = 1," in found and "Widen" not in found


def test_of_equal_ones_the_longest_training_is_first():
    short = cell(0, [0.9, 0.9], values={"alpha": 0.1, "tuner/epochs": 2})
    long = cell(1, [0.9, 0.9], values={"alpha": 1.0, "tuner/epochs": 6})
    assert results.ranked([short, long], "max") == [long, short]
    table = text([short, long]).splitlines()[-3:]
    assert table[0].split() == ["trial", "alpha", "epochs", "val_accuracy"]
    assert table[1].split()[:3] == ["0001", "1", "6"]


def test_summary_shows_settings_without_keras_tuners():
    values = {"tuner/bracket": 3, "learning_rate": 0.0123456, "alpha": 0.5}
    found = text([cell(0, [0.5, 0.6], values=values)])
    assert "Best: alpha = 0.5, learning_rate = 0.01235 with" in found
    assert "tuner/" not in found


@pytest.mark.parametrize(
    ("objective", "value", "mean", "error"),
    [
        ("val_accuracy", 0.12345, "12.3%", "12.3%"),
        ("val_accuracy", 0.0001234, "0.0%", "0.01%"),
        ("val_accuracy", 12.345, "12.35", "12"),  # not a share
        ("val_loss", 0.123456, "0.1235", "0.12"),
    ],
)
def test_how_scores_are_written(objective, value, mean, error):
    written = results.formatter(objective, [cell(0, [value])])
    assert (written(value), written(value, error=True)) == (mean, error)


# --- TensorBoard


def read(folder):
    """Dict run -> (hyperparameters, scalars, status, seconds), and all events."""
    runs, events = {}, 0
    for path in sorted(folder.rglob("*tfevents*")):
        run = runs.setdefault(path.parent.relative_to(folder).as_posix(), {})
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                events += 1
                assert value.tag not in run, "doubled"
                plugin = value.metadata.plugin_data
                if plugin.plugin_name == "hparams":
                    data = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
                    run[value.tag] = data
                else:
                    run[value.tag] = float(tensor_util.make_ndarray(value.tensor))
    return runs, events


HPARAMS = "_hparams_/session_start_info"
END = "_hparams_/session_end_info"


def some_cells():
    values = {"alpha": 0.5, "beta": 2, "taps": "last", "half": True, "none": None}
    return [
        cell(0, [0.5, 0.7], values=values, metrics={"val_loss": 0.25}),
        cell(1, alpha=1.0, message="x"),
        cell(2, [0.5], status="RUNNING", score=None),
    ]


def test_hparams_are_read_back(tmp_path):
    write_hparams(some_cells(), "val_accuracy", tmp_path / "tb")
    runs, _ = read(tmp_path / "tb")
    assert set(runs) == {".", "0000", "0001", "0002"}
    first = runs["0000"]
    hparams = first[HPARAMS].session_start_info.hparams
    assert set(hparams) == {"alpha", "beta", "taps", "half"}
    assert hparams["alpha"].number_value == 0.5
    assert hparams["beta"].number_value == 2
    assert hparams["taps"].string_value == "last"
    assert hparams["half"].bool_value is True
    assert first[HPARAMS].session_start_info.group_name == "0000"
    assert first["val_accuracy"] == pytest.approx(0.6)
    assert first["standard_error"] == pytest.approx(0.1)
    assert first["val_loss"] == pytest.approx(0.25)
    assert first[END].session_end_info.status == 1  # STATUS_SUCCESS
    assert first[END].session_end_info.end_time_secs == 2.0
    assert runs["0001"][END].session_end_info.status == 2  # STATUS_FAILURE
    assert "val_accuracy" not in runs["0001"]
    assert END not in runs["0002"]
    experiment = runs["."]["_hparams_/experiment"].experiment
    assert [h.name for h in experiment.hparam_infos][:2] == ["alpha", "beta"]
    alphas = experiment.hparam_infos[0].domain_discrete.values
    assert [v.number_value for v in alphas] == [0.1, 0.5, 1.0]
    tags = [m.name.tag for m in experiment.metric_infos]
    assert tags == ["val_accuracy", "val_loss", "standard_error"]


def test_a_second_call_doubles_nothing(tmp_path):
    cells = some_cells()
    write_hparams(cells, "val_accuracy", tmp_path)
    before, files = read(tmp_path), sorted(tmp_path.rglob("*"))
    cells[2] = cell(2, [0.5, 0.9])
    write_hparams(cells, "val_accuracy", tmp_path)
    runs, events = read(tmp_path)
    assert runs["0002"]["val_accuracy"] == pytest.approx(0.7)
    # mean, standard error and the end are new; nothing else
    assert events == before[1] + 3
    assert len(sorted(tmp_path.rglob("*"))) == len(files)


def test_runs_of_other_trials_go_and_other_files_stay(tmp_path):
    write_hparams(some_cells(), "val_accuracy", tmp_path)
    mine = tmp_path / "0001" / "events.out.tfevents.1.mine"
    mine.write_bytes(b"")
    write_hparams(some_cells()[:1], "val_accuracy", tmp_path)
    assert mine.exists()
    assert not (tmp_path / "0002").exists()
    runs, _ = read(tmp_path)
    assert set(runs) == {".", "0000", "0001"}
    assert runs["0001"] == {}
