"""The article's numbers."""

from experiments.published import COLUMNS, NUMBERS, published
from experiments.rows import DATA, data_name, data_order, method_name, method_order


def test_numbers():
    assert published(1, "indoor67", "resnet101", "l2_fe") == 80.4
    assert published(1, "food101", "resnet101", "delta") == 86.3
    assert published(1, "cub", "inception_v3", "feature_map") == 74.5
    assert published(2, "stanford_dogs", "resnet101", "l2_sp_att") == 89.97
    assert published(2, "cub", "inception_v3", "delta") == 77.6


def test_what_the_article_has_not_is_none():
    assert published(1, "cub", "resnet50", "delta") is None
    assert published(1, "flowers12", "resnet101", "delta") is None
    assert published(1, "cub", "resnet101", "delta_code") is None
    assert published(2, "cub", "resnet101", "l2_fe") is None
    assert published(2, "food101", "inception_v3", "delta") is None


def test_rows_are_whole():
    for (table, _), rows in NUMBERS.items():
        for dataset, row in rows.items():
            assert dataset in DATA
            assert len(row) == len(COLUMNS[table])


def test_where_delta_is_not_best():
    lost = {
        (network, dataset): COLUMNS[table][row.index(max(row))]
        for (table, network), rows in NUMBERS.items()
        for dataset, row in rows.items()
        if row[-1] < max(row)
    }
    assert lost == {
        ("resnet101", "food101"): "l2_sp",
        ("inception_v3", "stanford_dogs"): "l2_sp",
    }


def test_names_and_order():
    assert method_name("l2_sp_att") == "L2-SP (ATT)"
    assert method_name("mine") == "mine"
    assert data_name("cub") == "CUB-200-2011"
    given = ["mine", "delta", "a", "l2_fe"]
    assert sorted(given, key=method_order) == ["l2_fe", "delta", "a", "mine"]
    assert sorted(["b", "food101", "cub"], key=data_order) == ["cub", "food101", "b"]
