"""Tables of results: numbers derived by hand, what is missing, refusals."""

import math

import numpy as np
import pandas as pd
import pytest
from experiments import tables
from experiments.bootstrap import paired_interval, pooled_interval
from known_results import few, frame, row, wide

from keras_delta.statistics import holm


def bools(*texts):
    return np.array([[c == "1" for c in t] for t in texts])


def test_article_table():
    given = frame(
        row("delta", seed=0, accuracy=0.80),
        row("delta", seed=1, accuracy=0.82),
        row("l2", seed=0, accuracy=0.784),
        row("delta", "caltech256_30", 30, accuracy=0.866),
        # None of these is like the article's:
        row("l2_sp", per_class=10),
        row("l2_sp", schedule="exponential"),
        row("l2_sp", augmentation="improved"),
        row("l2_sp", label_noise=0.2),
        row("l2_sp", label="uniform", factor="attention"),
        row("l2_sp", network="resnet50"),
        row("l2_sp", "flowers12"),
        row("l2_sp", "caltech256_60", 30),
        row("l2_sp", "indoor67", accuracy=math.nan),
    )
    table = tables.article_table(given)
    assert table.frame.shape == (18, 12)
    cells = table.frame["ResNet-101"]
    # 81 ± 1.414 of 2 and 80.5: 0.5 / sqrt(2 / 2 + 0.3 ** 2 / 5) = 0.4956
    assert list(cells["DELTA"]["CUB-200-2011"]) == ["81.0 ± 1.4 (2)", "80.5", "+0.5"]
    assert list(cells["L2"]["CUB-200-2011"]) == ["78.4 (1)", "78.4", "–"]
    assert cells["DELTA"]["Caltech 256-30", "ours"] == "86.6 (1)"
    for name in ("L2-SP", "L2-FE"):
        assert set(cells[name][:, "ours"]) == {"–"}
        assert set(cells[name][:, "difference / SE"]) == {"–"}
    assert set(table.frame["InceptionV3"].xs("ours", level=1).stack()) == {"–"}
    assert "0.3 points are taken as the article's standard deviation" in table.caption
    assert table.caption.endswith("is known.")


def test_second_article_table():
    given = frame(row("delta", augmentation="improved", accuracy=0.83), row("l2"))
    table = tables.article_table(given, 2)
    assert list(table.frame["ResNet-101"]) == ["L2", "L2-SP", "L2-SP (ATT)", "DELTA"]
    cells = table.frame["ResNet-101"].loc["CUB-200-2011"]
    assert list(cells["DELTA"]) == ["83.0 (1)", "82.6", "–"]
    assert list(cells["L2"]) == ["–", "81.7", "–"]
    food = table.frame["InceptionV3", "DELTA"]["Food-101"]
    assert list(food) == ["–", "–", "–"]
    with pytest.raises(
        ValueError, match=r"`table`. Expected 1 or 2. Received: table=4"
    ):
        tables.article_table(given, 4)


def test_article_table_of_one_image_size():
    sizes = {"resnet101": 224, "inception_v3": 299}
    tables.article_table(
        frame(*(row(network=n, image_size=s) for n, s in sizes.items()))
    )
    other = frame(row(image_size=224), row(image_size=112, seed=1))
    with pytest.raises(ValueError, match="trainings with one value of `image_size`"):
        tables.article_table(other)


def test_few_shot_table():
    table = tables.few_shot_table(few())
    assert list(table.frame.index) == ["L2", "DELTA"]
    assert list(table.frame.columns) == [
        ("CUB-200-2011", "10 a class"),
        ("CUB-200-2011", "all"),
    ]
    # 75 and 100: mean 87.5, standard deviation 25 / sqrt 2
    assert list(table.frame.loc["DELTA"]) == ["87.5 ± 17.7 (2)", "100.0 (1)"]
    assert list(table.frame.loc["L2"]) == ["50.0 ± 0.0 (2)", "–"]
    assert "seeds (their number in brackets)" in table.caption


def test_counts_stand_in_the_caption_where_they_agree():
    table = tables.few_shot_table(wide())
    assert table.frame.loc["L2"].iloc[0] == "50.0 ± 0.0 *"
    assert table.frame.loc["L2-SP"].iloc[0] == "90.8 ± 1.4"
    assert "over seeds, 3 in each cell. A star: differs from DELTA" in table.caption
    assert "All 3 seeds agree by chance in 1 of 4 cases" in table.caption
    alone = tables.few_shot_table(wide(), reference="feature_map")
    assert "star" not in alone.caption
    assert alone.frame.loc["L2"].iloc[0] == "50.0 ± 0.0"


def test_differences():
    table = tables.differences(few())
    assert list(table.frame.index) == [
        ("L2", "CUB-200-2011, 10 a class"),
        ("L2", "CUB-200-2011"),
        ("L2", "mean of 1 of 2"),
    ]
    pair = bools("1110", "1111"), bools("1100", "0110")
    one, pooled = paired_interval(*pair), pooled_interval([pair])
    adjusted = holm([one.p_value, pooled.p_value])
    for line, found, p in ((0, one, adjusted[0]), (2, pooled, adjusted[1])):
        cells = dict(table.frame.iloc[line])
        assert cells["difference"] == "+37.5"
        low, high = (f"{100 * v:+.1f}" for v in (found.low, found.high))
        low, high = ("0.0" if v in ("+0.0", "-0.0") else v for v in (low, high))
        assert cells["95 % interval"] == f"[{low}, {high}]"
        assert cells["p"] == f"{found.p_value:.3f}"
        assert cells["p (Holm)"] == f"{p:.3f}"
        assert (cells["seeds"], cells["images"]) == ("2", "4")
    assert list(table.frame.iloc[1]) == ["–", "–", "–", "–", "0", "–"]


def test_differences_of_all_settings():
    table = tables.differences(wide())
    assert table.frame.index[-1] == ("L2-SP", "mean of 2")
    mean = dict(table.frame.loc[("L2", "mean of 2")])
    # DELTA has 36, 37 and 36 of 40 right, L2 has 20: 49 / 120 in both settings
    assert (mean["difference"], mean["images"]) == ("+40.8", "80")
    assert mean["p"] == "< 0.001"
    same = dict(table.frame.loc[("L2-SP", "mean of 2")])
    assert (same["difference"], same["95 % interval"]) == ("0.0", "[0.0, 0.0]")
    assert same["p (Holm)"] == "1.000"


def test_mean_over_settings():
    given = wide()
    table = tables.few_shot_table(given, mean=True)
    assert list(table.frame.columns)[-1] == ("mean", "over settings")
    # 36, 37 and 36 of 40 in both settings
    assert list(table.frame["mean", "over settings"]) == [
        *("50.0 ± 0.0 *", "90.8 ± 1.4", "90.8 ± 1.4"),
    ]
    one = given.drop(given.index[-1])  # a method without all settings of a seed
    last = tables.few_shot_table(one, mean=True).frame["mean", "over settings"]
    assert next(iter(last)) == "50.0 ± 0.0 (2) *"
    single = given[given["dataset"] == "food101"]
    assert tables.few_shot_table(single, mean=True).frame.shape == (3, 1)


def test_differences_of_the_mean_alone():
    table = tables.differences(wide(), mean=True)
    assert list(table.frame.index) == [("L2", "mean of 2"), ("L2-SP", "mean of 2")]
    whole = tables.differences(wide()).frame
    for name in table.frame.index:
        same = ["difference", "95 % interval", "p", "seeds", "images"]
        assert list(table.frame.loc[name][same]) == list(whole.loc[name][same])
    p = [float(v.strip("< ")) for v in table.frame["p (Holm)"]]
    assert p == pytest.approx([0.001, 1.0], abs=1e-3)
    single = wide()[lambda f: f["dataset"] == "food101"]
    place = tables.differences(single, mean=True).frame.index[0]
    assert place == ("L2", "Food-101, 5 a class")


def test_differences_without_answers():
    given = few().drop(columns="correct")
    assert set(tables.differences(given).frame["difference"]) == {"–"}


def test_differences_need_the_reference():
    text = "Unknown name for `reference`. Received: 'dleta'. Closest names: 'delta'"
    with pytest.raises(ValueError, match=text):
        tables.differences(few(), "dleta")


def test_times():
    given = frame(
        row("l2", per_class=5, seconds=10.0, prepare_seconds=0.0),
        row("delta", per_class=5, seconds=20.0, prepare_seconds=5.0),
        row("l2", per_class=10, seconds=40.0, prepare_seconds=0.0),
        row("delta", per_class=10, seconds=40.0, prepare_seconds=5.0),
        row("delta", per_class=20, seconds=90.0, prepare_seconds=5.0),
        row("l2_sp", per_class=50, seconds=7.0, prepare_seconds=0.0),
    )
    table = tables.times(given).frame
    # (2 + 1) / 2 and (2.5 + 1.125) / 2; the third setting has no L2
    expected = ["50.0", "5.0", "1.50", "1.81", "3", "2"]
    assert list(table.loc["DELTA"]) == expected
    assert list(table.loc["L2"]) == ["25.0", "0.0", "1.00", "1.00", "2", "2"]
    assert list(table.loc["L2-SP"]) == ["7.0", "0.0", "–", "–", "1", "0"]


def ablation():
    made = []
    for seed in range(2):
        for dataset in ("cub", "food101"):
            shared = {"dataset": dataset, "per_class": 10, "seed": seed}
            made.append(row(factor="", label="as it is", correct="1111", **shared))
            change = {"factor": "attention", "label": "uniform"}
            made.append(row(correct="1100", **change, **shared))
        change = {"factor": "taps", "label": "last"}
        made.append(row(correct="1110", per_class=10, seed=seed, **change))
    return frame(*made)


def test_ablation_table():
    table = tables.ablation_table(ablation(), "as it is")
    cub, food = (f"{n}, 10 a class" for n in ("CUB-200-2011", "Food-101"))
    assert list(table.frame.columns) == [
        (cub, "accuracy"),
        (cub, "difference"),
        (food, "accuracy"),
        (food, "difference"),
        ("all data", "difference"),
    ]
    assert list(table.frame.index) == [
        ("–", "as it is"),
        ("attention", "uniform"),
        ("taps", "last"),
    ]
    base = ["100.0 ± 0.0", "–", "100.0 ± 0.0", "–", "–"]
    assert list(table.frame.iloc[0]) == base
    full, half, most = (
        bools("1111", "1111"),
        bools("1100", "1100"),
        bools("1110", "1110"),
    )
    one = paired_interval(half, full)
    pooled = pooled_interval([(half, full)] * 2)

    def written(i, size):
        low, high = (f"{100 * v:+.1f}".replace("-", "−") for v in (i.low, i.high))
        return f"{size} [{low}, {high}]".replace("+0.0", "0.0")

    uniform = list(table.frame.iloc[1])
    assert uniform[:2] == ["50.0 ± 0.0", written(one, "−50.0")]
    assert uniform[4].startswith(written(pooled, "−50.0"))
    last = list(table.frame.iloc[2])
    alone = paired_interval(most, full)
    assert last[1:4] == [written(alone, "−25.0"), "–", "–"]
    assert last[4].endswith("(1 of 2)")


def test_ablation_with_a_reference_in_each_factor():
    given = ablation()
    own = given[given["label"] == "as it is"]
    both = [
        given[given["factor"] != ""],
        own.assign(factor="attention", correct="1110", accuracy=0.75),
        own.assign(factor="taps"),
    ]
    table = tables.ablation_table(pd.concat(both), "as it is")
    cell = table.frame["CUB-200-2011, 10 a class", "difference"]
    assert cell["attention", "uniform"].startswith("−25.0")
    assert cell["taps", "last"].startswith("−25.0")
    assert cell["taps", "as it is"] == "–"
    text = "`reference`. Expected a condition of each factor. .*'missing': 'new'"
    lost = row(factor="new", label="x", per_class=10)
    with pytest.raises(ValueError, match=text):
        tables.ablation_table(pd.concat([*both, frame(lost)]), "as it is")
    with pytest.raises(ValueError, match="Unknown name for `reference`"):
        tables.ablation_table(given, "as it was")


def test_stars_of_an_ablation():
    given = pd.concat(
        [
            wide().assign(factor="", label="base")[lambda f: f["method"] == "delta"],
            wide().assign(factor="x", label="bad")[lambda f: f["method"] == "l2"],
        ]
    )
    table = tables.ablation_table(given, "base")
    assert table.frame.loc[("x", "bad")].iloc[-1].endswith(" *")


def test_robustness_table():
    given = frame(
        row("delta", accuracy=0.8, corrupted={"blur 10": "01", "blur 3": "01101"}),
        row("delta", accuracy=0.7, seed=1, corrupted={"blur 3": "1101111001"}),
        row("delta", accuracy=0.4, label_noise=0.2, corrupted={"blur 3": "1"}),
        row("l2", accuracy=0.6, corrupted={}),
    )
    table = tables.robustness_table(given)
    assert [i[1:] for i in table.frame.index] == [
        ("wrong labels", "0 %"),
        ("wrong labels", "20 %"),
        ("images", "blur 3"),
        ("images", "blur 10"),
    ]
    expected = ["75.0 ± 7.1 (2)", "40.0 (1)", "65.0 ± 7.1 (2)", "50.0 (1)"]
    assert list(table.frame["DELTA"]) == expected
    assert list(table.frame["L2"]) == ["60.0 (1)", "–", "–", "–"]


def test_losses():
    given = frame(
        row("recipe", label="all", loss=0.5),
        row("recipe", label="all", loss=0.7, seed=1),
        row("recipe", label="all", loss=0.9, label_noise=0.2),
        row("recipe", label="half", loss=0.4),
    )
    table = tables.losses_table(tables.by_label(given))
    assert [share for _, share in table.frame.index] == ["0 %", "20 %"]
    assert list(table.frame["all"]) == ["0.60", "0.90"]
    assert list(table.frame["half"]) == ["0.40", "–"]


def test_robustness_differences():
    def rows(method, seed, plain, noisy, very, blurred):
        known = {"seed": seed, "accuracy": 0.5}
        return (
            row(method, correct=plain, corrupted={"blur 2": blurred}, **known),
            row(method, correct=noisy, label_noise=0.1, **known),
            row(method, correct=very, label_noise=0.4, **known),
        )

    given = frame(
        *rows("delta", 0, "1110", "1101", "1000", "1111"),
        *rows("delta", 1, "1111", "1001", "0110", "0111"),
        *rows("l2", 0, "0110", "1000", "1000", "0000"),
        *rows("l2", 1, "1100", "0101", "0000", "0110"),
        *rows("l2_sp", 1, "1111", "1001", "0110", "0111")[:1],
    )
    table = tables.robustness_differences(given)
    assert [i[1:] for i in table.frame.index] == [
        ("wrong labels", "0 %"),
        ("wrong labels", "10 %"),
        ("wrong labels", "40 %"),
        ("images", "blur 2"),
        ("wrong labels", "all"),
    ]
    clean = paired_interval(bools("1110", "1111"), bools("0110", "1100"))
    some = bools("1101", "1001"), bools("1000", "0101")
    much = bools("1000", "0110"), bools("1000", "0000")
    both = pooled_interval([some, much], ["a", "a"])
    assert (clean.difference, both.difference) == (3 / 8, 1 / 4)

    def ends(interval):
        pair = (f"{100 * v:+.1f}" for v in (interval.low, interval.high))
        return "[" + ", ".join(pair).replace("-", "−") + "]"

    cells = [cell.replace("[0.0", "[+0.0") for cell in table.frame["minus L2"]]
    assert cells[0] == f"+37.5 {ends(clean)}"
    assert cells[3].startswith("+62.5 [")
    assert cells[4] == f"+25.0 {ends(both)}"
    # Of one seed, and not trained with wrong labels.
    assert list(table.frame["minus L2-SP"]) == (
        ["0.0 [0.0, 0.0]", "–", "–", "0.0 [0.0, 0.0]", "–"]
    )
    with pytest.raises(ValueError, match="reference"):
        tables.robustness_differences(given, "l2_fe")


@pytest.mark.parametrize(
    "made",
    ["few_shot_table", "differences", "times", "robustness_table", "article_table"],
)
def test_frames_without_rows(made):
    empty = frame(row()).iloc[:0]
    if made == "differences":
        with pytest.raises(ValueError, match="reference"):
            tables.differences(empty)
        return
    table = getattr(tables, made)(empty)
    assert len(table.frame) == (18 if made == "article_table" else 0)
    assert table.title in table.text()
    assert table.title in table.markdown()
    table.picture()


def test_strengths():
    given = frame(
        row("delta", per_class=5, seed=0, alpha=20.0),
        row("delta", per_class=5, seed=1, alpha=20.0),
        row("delta", per_class=10, seed=0, alpha=5.0),
        row("delta", per_class=10, seed=1, alpha=0.5),
        row("l2", per_class=10, alpha=1e-4),
        row("l2_fe", per_class=5, alpha=0.0),
    )
    table = tables.strengths_table(given)
    assert list(table.frame.index) == ["L2", "DELTA"]  # alpha means nothing to L2-FE
    cells = table.frame["CUB-200-2011"]
    assert list(cells["5 a class"]) == ["–", "20"]
    assert list(cells["10 a class"]) == ["0.0001", "0.5, 5"]
