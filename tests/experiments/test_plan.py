"""`Choice` and `Plan`: which strengths are chosen, which cells are needed when."""

import pytest
from experiments import studies
from experiments.cell import Cell
from experiments.plan import Choice, Entry, Plan
from experiments.store import ResultStore
from fakes import plan

CELL = Cell("toy", "delta", per_class=5)
PAIRS = ((20.0, None), (5.0, None), (0.5, None))


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "store")


def put(store, choice, accuracies):
    """Records of the folds: dict pair -> accuracy of each, None for a failed one."""
    for pair, found in accuracies.items():
        for cell, accuracy in zip(choice.cells[pair], found, strict=True):
            record = {"failed": "nan"} if accuracy is None else {"accuracy": accuracy}
            store.put(cell, record)


def test_cells_of_a_choice():
    # What a choice's own cell is for, and its strengths, do not matter.
    cell = CELL.replace(
        alpha=3.0, curve=True, corruptions=("blur 3",), factor="a", label="b", seed=2
    )
    choice = Choice((cell,), ((0.1, 0.2), (0.3, None)), 3)
    plain = Cell("toy", "delta", per_class=5, seed=2)
    assert choice.cells == {
        (0.1, 0.2): [plain.replace(alpha=0.1, beta=0.2, fold=(k, 3)) for k in range(3)],
        (0.3, None): [plain.replace(alpha=0.3, fold=(k, 3)) for k in range(3)],
    }


def test_best_mean_of_the_folds(store):
    choice = Choice((CELL,), PAIRS, 2)
    # The best single fold is 20's, the best mean 5's.
    put(store, choice, {(20.0, None): (0.95, 0.5), (0.5, None): (0.6, 0.6)})
    assert choice.scores(store) is None and choice.chosen(store) is None
    put(store, choice, {(5.0, None): (0.7, 0.8)})
    assert choice.scores(store) == pytest.approx(
        {(20.0, None): 0.725, (5.0, None): 0.75, (0.5, None): 0.6}
    )
    assert choice.chosen(store) == (5.0, None)


def test_nothing_is_chosen_while_a_fold_lacks(store):
    choice = Choice((CELL,), PAIRS, 2)
    put(store, choice, {pair: (0.5, 0.5) for pair in PAIRS})
    store.forget(choice.cells[0.5, None][1])
    assert choice.chosen(store) is None


def test_ties_go_to_the_smaller_strengths(store):
    pairs = ((0.2, 0.01), (0.1, 0.1), (0.1, 0.01), (0.01, 0.2))
    choice = Choice((CELL,), pairs, 2)
    put(store, choice, dict.fromkeys(pairs, (0.25, 0.75)))
    assert choice.chosen(store) == (0.1, 0.01)
    put(store, choice, {(0.1, 0.01): (0.25, 0.7)})
    assert choice.chosen(store) == (0.1, 0.1)  # 0.2, before 0.21 and 0.21


def test_means_that_differ_by_rounding_are_a_tie(store):
    choice = Choice((CELL,), PAIRS, 3)
    # Sums in another order: 0.19999999999999998 and 0.2.
    folds = {(20.0, None): (0.1, 0.2, 0.3), (5.0, None): (0.3, 0.2, 0.1)}
    put(store, choice, {**folds, (0.5, None): (0.19, 0.2, 0.2)})
    scores = choice.scores(store)
    assert scores[20.0, None] == pytest.approx(scores[5.0, None], abs=1e-12)
    assert choice.chosen(store) == (5.0, None)


def test_pair_with_a_failed_fold_is_out(store):
    choice = Choice((CELL,), PAIRS, 2)
    folds = {(20.0, None): (1.0, None), (5.0, None): (0.6, 0.6)}
    put(store, choice, {**folds, (0.5, None): (0.5, 0.5)})
    assert choice.scores(store) == {(5.0, None): 0.6, (0.5, None): 0.5}
    assert choice.chosen(store) == (5.0, None)


def test_all_failed(store):
    choice = Choice((CELL,), PAIRS[:2], 2)
    lost, found = Entry(CELL, choice), Entry(CELL.replace(alpha=7.0))
    ours = Plan([lost, found])
    put(store, choice, {PAIRS[0]: (0.5, None), PAIRS[1]: (None, 0.5)})
    assert choice.scores(store) == {} and choice.chosen(store) is None
    assert lost.lost(store) and not found.lost(store) and ours.lost(store) == [lost]
    # All else goes on, and then there is nothing left to do.
    assert list(ours.pending(store)) == [found.cell] and not ours.complete(store)
    store.put(found.cell, {"accuracy": 0.5})
    assert ours.complete(store) and ours.results(store) == [found.cell]


def test_nothing_is_lost_while_folds_lack(store):
    choice = Choice((CELL,), PAIRS[:1], 2)
    store.put(choice.cells[PAIRS[0]][0], {"failed": "nan"})
    ours = Plan([Entry(CELL, choice)])
    assert ours.lost(store) == [] and len(ours.pending(store)) == 1
    assert not ours.complete(store)


def test_results_have_the_chosen_strengths(store):
    choice = Choice((CELL,), PAIRS, 2)
    entries = [Entry(CELL.replace(seed=s, label="x"), choice) for s in range(2)]
    ours = Plan([*entries, Entry(CELL.replace(alpha=7.0))])
    assert ours.results(store) == [CELL.replace(alpha=7.0)]
    put(store, choice, {pair: (0.5, pair[0] / 100) for pair in PAIRS})
    assert ours.results(store) == [
        CELL.replace(seed=0, alpha=20.0, label="x"),
        CELL.replace(seed=1, alpha=20.0, label="x"),
        CELL.replace(alpha=7.0),
    ]


def test_pending_becomes_less_and_more(store):
    ours = plan(seeds=2)
    first = ours.pending(store)
    assert len(first) == 3 * 3 * 2 + 2 and not ours.complete(store)
    assert ours.size() == 3 * 3 * 2 + 3 * 2 + 2
    choices = {e.choice for e in ours.entries if e.choice is not None}
    for choice in choices:
        put(store, choice, {pair: (0.5, 0.5) for pair in PAIRS})
    # The smallest alpha, with both seeds, for each of three methods; and L2-FE.
    left = ours.pending(store)
    assert sorted((c.method, c.alpha or 0, c.seed) for c in left) == sorted(
        [(m, 0.5, s) for m in ("l2_sp", "feature_map", "delta") for s in (0, 1)]
        + [("l2_fe", 0, s) for s in (0, 1)]
    )
    for cell in left:
        assert not ours.complete(store)
        store.put(cell, {"failed": "nan"})  # is done, too
    assert ours.complete(store) and ours.pending(store) == {}


def test_cells_of_equal_settings_are_one_of_the_first_stage(store):
    tables = Plan(
        [
            Entry(CELL.replace(factor="a"), stage=2),
            Entry(CELL.replace(factor="b"), stage=1),
            Entry(CELL.replace(seed=1), stage=3),
        ]
    )
    assert list(tables.pending(store).values()) == [1, 3]
    assert tables.size() == 2
    assert [c.factor for c in tables.results(store)] == ["a", "b", ""]


def test_choices_are_of_the_first_stage_that_needs_them(store):
    choice = Choice((CELL,), PAIRS, 2)
    late, early = (Entry(CELL.replace(seed=s), choice, s) for s in (1, 0))
    assert set(Plan([late, early]).pending(store).values()) == {0}


def test_cells_of_two_choices_are_of_the_first_stage(store):
    # They share the folds of 5.
    late, early = (Choice((CELL,), pairs, 2) for pairs in (PAIRS[:2], PAIRS[1:]))
    found = Plan([Entry(CELL, late, 1), Entry(CELL, early, 0)]).pending(store)
    assert len(found) == 6
    assert {c.alpha: stage for c, stage in found.items()} == {20.0: 1, 5.0: 0, 0.5: 0}


def test_cell_of_a_choice_and_of_a_result_is_one(store):
    choice = Choice((CELL,), PAIRS, 2)
    fold = choice.cells[5.0, None][0]
    assert len(Plan([Entry(CELL, choice), Entry(fold)]).pending(store)) == 6


@pytest.mark.parametrize("entries", ["few-shot", [], [CELL]])
def test_plan_of_something_else(entries):
    with pytest.raises(TypeError, match=r"`entries`\. Expected a list of at least one"):
        Plan(entries)


def test_study_of_the_parts_of_the_recipe():
    entries = studies.recipe((("cub", 5),), repeats=2)
    cells = [e.cell for e in entries]
    assert len({c.key for c in cells}) == len(cells) == 2 * (1 + len(studies.PARTS))
    assert {(c.method, c.protocol.name) for c in cells} == {("recipe", "bench")}
    (reference,) = [e.cell for e in studies.bench((("cub", 5),), methods="recipe")][:1]
    assert cells[0] == reference
    changed = {c.label: c.recipe for c in cells}
    assert changed["20"] == {"epochs": 20}


def test_study_of_averages():
    entries = studies.averages((("cub", 5),), repeats=1)
    cells = [e.cell for e in entries]
    assert [c.label_noise for c in cells] == [0.0] * 6 + [0.2] * 6
    assert all(bool(c.corruptions) == (c.label_noise == 0) for c in cells)
    assert [c.recipe["average"] for c in cells] == 4 * [0.0, 0.25, 0.5]
    assert [c.recipe.get("regularizer") for c in cells[2:4]] == [None, "l2"]


def test_study_of_the_recipe():
    entries = studies.bench(stage=4)
    names = ["probe", "l2_fe", "l2", "l2_sp", "feature_map"]
    names += ["keras_guide", "fastai", "recipe"]
    assert len(entries) == 8 * 9 * 5 == len({e.cell.key for e in entries})
    first = entries[:72]
    assert {e.stage for e in first} == {4} and {e.cell.seed for e in first} == {0}
    assert list(dict.fromkeys(e.cell.method for e in first)) == names
    assert [e.stage for e in entries] == sorted(e.stage for e in entries)
    assert all(4 <= e.stage < 5 and e.choice is None for e in entries)
    heads = {e.cell.method: e.cell.head for e in entries}
    assert heads.pop("probe") == "only" and set(heads.values()) == {"random"}
    cells = {e.cell.protocol.name: e.cell for e in entries}
    assert cells.keys() == {"bench"} and cells["bench"].image_size == 112
    some = studies.bench((("cub", 5),), methods=("l2", "fastai"), repeats=2)
    assert [(e.cell.method, e.cell.seed) for e in some] == [
        *(("l2", 0), ("fastai", 0), ("l2", 1), ("fastai", 1)),
    ]


def test_one_strength_for_several_settings(store):
    few, many = CELL, CELL.replace(per_class=40)
    choice = Choice((few, many), PAIRS, 3, held_out=2)
    assert [(c.per_class, c.fold) for c in choice.cells[5.0, None]] == [
        *((5, (0, 3)), (5, (1, 3)), (40, (0, 3)), (40, (1, 3)))
    ]
    put(store, choice, {pair: (0.5, 0.5, 0.5, 0.5) for pair in PAIRS})
    put(store, choice, {(5.0, None): (0.4, 0.4, 0.6, 0.7)})
    assert choice.chosen(store) == (5.0, None)
    ours = Plan([Entry(few, choice), Entry(many, choice)])
    assert {c.alpha for c in ours.results(store)} == {5.0} and ours.size() == 12 + 2


def test_study_of_the_family(store):
    members = (
        ("co_tuning", {"method": "recipe", "recipe": {"regularizer": "co_tuning"}}),
        ("probe", {"method": "probe"}),
    )
    settings = (("cub", 5), ("cub", 10))
    entries = studies.family(settings, members=members, repeats=3, noise_repeats=2)
    assert [e.cell.label for e in entries[:4]] == ["co_tuning"] * 2 + ["probe"] * 2
    assert [(e.cell.seed, e.cell.label_noise) for e in entries[::4]] == [
        *((0, 0.0), (0, 0.2), (1, 0.0), (1, 0.2), (2, 0.0))
    ]
    (choice,) = {e.choice for e in entries} - {None}
    assert choice == entries[12].choice and entries[2].choice is None
    assert list(choice.cells) == [(None, None), (0.23, None), (23.0, None)]
    folds = choice.cells[0.23, None]
    assert [(c.per_class, c.seed, c.label_noise, c.fold) for c in folds] == [
        *((5, 0, 0.0, (0, 3)), (10, 0, 0.0, (0, 3)))
    ]
    regularizer = folds[0].its_recipe().regularizer
    assert regularizer.alpha == 0.23 and type(regularizer).__name__ == "CoTuning"
    put(store, choice, {p: (p[0] or 0, 0) for p in choice.cells})
    assert Plan(entries).results(store)[0].alpha == 23.0
    # At its own strength it is the cell that it was without a choice.
    (own,) = {
        e.cell.key
        for e in studies.family(
            settings, members=members[:1], repeats=1, noises=(0.0,), choose=False
        )[:1]
    }
    assert own == entries[0].cell.key
