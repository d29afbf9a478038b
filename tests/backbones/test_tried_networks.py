"""docs/backbones.md: what a user does with a network, from the taps to the export."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def tried():
    spec = importlib.util.spec_from_file_location("tried", BENCHMARKS / "networks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_network_tried_whole(tried):
    """As the table in docs/backbones.md says."""
    row = tried.try_whole(tried.builders()["MobileNetV3Small"])
    assert row["equal"] and row["start"] == 0
    count, calls = row["pairs"].split("/")
    assert count == calls
    text = (BENCHMARKS.parent / "docs" / "backbones.md").read_text("utf-8")
    (line,) = [x for x in text.splitlines() if x.startswith("| MobileNetV3Small |")]
    taps = ", ".join(f"`{name}`" for name in row["taps"].split(", "))
    assert taps in line and f"{row['parameters']:,}" in line


def test_the_table_has_all_that_are_tried(tried):
    text = (BENCHMARKS.parent / "docs" / "backbones.md").read_text("utf-8")
    assert set(tried.SMALLEST) <= {
        line.split("|")[1].strip() for line in text.splitlines() if line[:2] == "| "
    }
