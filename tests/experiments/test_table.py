"""A table in every format, and its picture."""

import pandas as pd
import pytest
from experiments import tables
from experiments.table import Table, latex_escaped
from known_results import few, frame, row, wide
from matplotlib.backends.backend_agg import FigureCanvasAgg


@pytest.fixture
def table():
    index = pd.MultiIndex.from_tuples(
        [("taps_a", "x & y"), ("taps_a", "50 %"), ("b", "1|2")],
        names=["factor", "what"],
    )
    columns = pd.MultiIndex.from_tuples([("CUB", "mean"), ("CUB", "p"), ("", "all")])
    values = [["88.10 ± 1.3", "< 0.001", "−0.5"], ["–", "1", "2"], ["3", "4", "5"]]
    return Table("A title", pd.DataFrame(values, index, columns), "A caption, 5 %")


def test_markdown(table):
    lines = table.markdown().splitlines()
    assert lines[0] == "**A title**"
    cells = [[c.strip() for c in line.split(" | ")] for line in lines[2:7]]
    assert cells[0] == ["| factor", "what", "CUB, mean", "CUB, p", "all |"]
    assert cells[2] == ["| taps_a", "x & y", "88.10 ± 1.3", "< 0.001", "−0.5 |"]
    assert cells[3][:2] == ["|", "50 %"]
    assert cells[4][1] == "1\\|2"
    assert lines[-1] == "A caption, 5 %"


def test_text(table):
    assert table.text().splitlines() == [
        "A title",
        "                       CUB      CUB",
        "factor  what          mean        p   all",
        "taps_a  x & y  88.10 ± 1.3  < 0.001  −0.5",
        "        50 %             –        1     2",
        "b       1|2              3        4     5",
        "A caption, 5 %",
    ]
    assert repr(table) == table.text()


def test_latex(table):
    text = table.latex()
    for part in (
        "\\toprule",
        "\\midrule",
        "\\bottomrule",
        "\\begin{tabular}{llrrr}",
        "\\multicolumn{2}{c}{CUB}",
        "taps\\_a & x \\& y & 88.10 $\\pm$ 1.3 & $<$ 0.001 & $-$0.5 \\\\",
        " & 50 \\% & -- & 1 & 2 \\\\",
        "\\caption{A title. A caption, 5 \\%}",
    ):
        assert part in text
    assert text.isascii()
    assert "multirow" not in text


def test_escapes():
    assert latex_escaped("a_b~{50%}\\^") == (
        r"a\_b\textasciitilde{}\{50\%\}\textbackslash{}\textasciicircum{}"
    )


def test_save(table, tmp_path):
    paths = table.save(tmp_path / "new" / "v1.2")
    assert [p.name for p in paths] == [
        f"v1.2.{kind}" for kind in ("txt", "md", "tex", "csv", "png")
    ]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(
        p.name for p in paths
    )
    assert paths[0].read_text("utf-8") == table.text() + "\n"
    assert paths[1].read_text("utf-8") == table.markdown() + "\n"
    read = pd.read_csv(paths[3], dtype=str)
    assert list(read["factor"]) == ["taps_a", "taps_a", "b"]
    assert read["CUB, mean"][0] == "88.10 ± 1.3"
    assert paths[4].read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("which", ["fixture", "article", "few", "differences"])
def test_pictures_are_not_cut_off(which, table):
    if which != "fixture":
        made = {
            "article": lambda: tables.article_table(few()),
            "few": lambda: tables.few_shot_table(wide()),
            "differences": lambda: tables.differences(wide()),
        }
        table = made[which]()
    figure = table.picture()
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = figure.axes[0].texts
    assert [t.get_text() for t in texts] == table.text().splitlines()
    width, height = figure.bbox.size
    for text in texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= width and box.y1 <= height


def test_latex_without_rows():
    text = tables.robustness_table(frame(row()).iloc[:0]).latex()
    assert "data & what & how much" in text
