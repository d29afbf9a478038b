"""What cross-validation chooses: against results that are worked out by hand."""

import pytest
from experiments import searched, studies
from known_results import frame, row

REFERENCE = "as it is"


def rows(label, seed, folds, correct, dataset="waste"):
    """A candidate: its accuracies over two folds, and on ten test images."""
    given = {"label": label, "factor": "alpha", "per_class": 5, "seed": seed}
    tested = row(
        "recipe", dataset, correct="1" * correct + "0" * (10 - correct), **given
    )
    return [
        {**tested, "fold": None},
        *({**tested, "fold": k, "accuracy": a} for k, a in enumerate(folds)),
    ]


@pytest.fixture
def results():
    """Seed 0: the folds choose 50 (6 right) of 5 (8) and 0.5 (9); seed 1: all alike."""
    return frame(
        *rows(REFERENCE, 0, (0.5, 0.6), 8),
        *rows("50", 0, (0.6, 0.6), 6),
        *rows("0.5", 0, (0.9, 0.2), 9),
        *rows("50", 1, (0.6, 0.6), 9),
        *rows(REFERENCE, 1, (0.6, 0.6), 8),
        *rows("0.5", 1, (0.6, 0.6), 7),
    )


def test_choice(results):
    table = searched.search_table(results, REFERENCE)
    accuracy = table.frame["waste, 5 a class", "accuracy"]
    assert [name for _, name in accuracy.index] == [
        *(REFERENCE, searched.CHOSEN, searched.BEST)
    ]
    # The default stays where it is as good as the best: 6 and 8, not 6 and 9.
    assert [v.split(" ")[0] for v in accuracy] == ["80.0", "70.0", "90.0"]


def test_a_candidate_that_failed_in_a_fold_is_not_chosen(results):
    """It has the easier of the two folds left."""
    lost = (results["label"] == "0.5") & (results["seed"] == 0)
    results = results[~(lost & (results["accuracy"] == 0.2))]
    accuracy = searched.search_table(results, REFERENCE).frame
    accuracy = accuracy["waste, 5 a class", "accuracy"]
    assert [v.split(" ")[0] for v in accuracy] == ["80.0", "70.0", "90.0"]


def test_candidates(results):
    table = searched.candidates_table(results)
    folds, test = (table.frame["waste, 5 a class", k] for k in ("folds", "test"))
    by_name = {name: v.split(" ")[0] for (_, name), v in folds.items()}
    assert by_name == {REFERENCE: "57.5", "50": "60.0", "0.5": "57.5"}
    assert [v.split(" ")[0] for v in test] == ["80.0", "75.0", "80.0"]


def test_study_of_a_search():
    entries = studies.search((("cub", 6),), repeats=2)
    cells = [e.cell for e in entries]
    count = 2 * (1 + len(studies.CANDIDATES))
    assert len({c.key for c in cells}) == len(cells) == 4 * count
    assert [c.fold for c in cells] == [
        fold for fold in (None, (0, 3), (1, 3), (2, 3)) for _ in range(count)
    ]
    tests = {c.key for c in cells if c.fold is None}
    parts = {e.cell.key for e in studies.recipe((("cub", 6),), repeats=2)}
    assert len(tests - parts) == 2  # of the head alone, which is a study's own
