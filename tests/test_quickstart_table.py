"""The check of the quickstart's table; `.ci/run` runs the quickstart itself."""

import subprocess
import sys

import quickstart_table as checked

SHOWN = checked.read(checked.in_readme())


def test_readme_agrees_with_itself():
    assert list(SHOWN)[-1] == "feature_map" and len(SHOWN) == 3
    assert checked.problems(SHOWN, SHOWN) == []


def test_what_is_out_of_range_is_named():
    last = SHOWN["feature_map"][0]
    measured = {**SHOWN, "l2_fe": (last - 1, 1.0, 0.6), "feature_map": (last + 4.1,)}
    behind, other = checked.problems(measured, SHOWN)
    assert behind == "the recipe is ahead of l2_fe by 1.0 ± 0.6"
    assert other.startswith("feature_map: ")
    (names,) = checked.problems({"l2": (80.0,)}, SHOWN)
    assert "l2_fe" in names


def test_exit_code(tmp_path):
    path = tmp_path / "result.md"
    for text, code in (
        (checked.in_readme(), 0),
        (checked.in_readme().replace("l2_fe", "l2"), 1),
    ):
        path.write_text(text, encoding="utf-8")
        done = subprocess.run([sys.executable, checked.__file__, path])
        assert done.returncode == code
