"""Images with per-pixel concepts, in folders like Broden (Network Dissection)."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from keras_delta._errors import invalid
from keras_delta.data.decode import read_image


class Concept(NamedTuple):
    """A concept shown in images: its number in the labels, name, and category."""

    number: int
    name: str
    category: str


class Broden:
    """A folder of images with concepts.

    `index.csv` has one row per image: `image`, a file in `images/`; `sh` and `sw`,
    height and width of the labels; and one column per category. A category's cell
    contains label files in `images/` (separated by ";"), whose pixels are numbers of
    concepts, red + 256 green, 0 for none; or the numbers of concepts of the whole
    image; or nothing, if the category was not annotated. `label.csv` has the `number`
    and `name` of the concepts, `category.csv` the `name` of the categories.

    Args:
        folder: its path.
        split: of `index.csv`, such as "train"; None for all.

    Attributes:
        categories: list of names.
        concepts: dict number -> name.
        rows: list of dicts, one per image.

    Raises:
        ValueError: if a file is missing, or there are no images.

    Source: Bau et al., "Network Dissection", CVPR 2017, arXiv:1704.05796.
    """

    def __init__(self, folder, split=None):
        self.folder = Path(folder)
        for name in ("index.csv", "label.csv", "category.csv"):
            if not (self.folder / name).is_file():
                expected = "a folder with index.csv, label.csv and category.csv"
                remedy = f"It has no {name}."
                raise ValueError(invalid("data", expected, str(folder), remedy))
        self.categories = [row["name"] for row in self._table("category.csv", "name")]
        self.concepts = {
            int(row["number"]): row["name"]
            for row in self._table("label.csv", "number", "name")
        }
        rows = self._table("index.csv", "image", "sh", "sw")
        self.rows = [r for r in rows if split in (None, r.get("split"))]
        if not self.rows:
            found = sorted({r.get("split") or "" for r in rows})
            raise ValueError(invalid("split", f"one of {found} or None", split))

    def __len__(self):
        return len(self.rows)

    def image(self, row):
        """The image of a row, `(height, width, 3)` uint8."""
        return read_image(self.folder / "images" / row["image"])

    def size(self, row):
        """(height, width) of the labels of a row."""
        return int(row["sh"]), int(row["sw"])

    def labels(self, row):
        """Dict category -> list of concept numbers: arrays `(sh, sw)` or integers.

        Categories that were not annotated are left out.
        """
        found = {}
        for category in self.categories:
            parts = [p for p in (row.get(category) or "").split(";") if p]
            if parts:
                found[category] = [
                    int(p) if p.isdigit() else self._segments(p, self.size(row))
                    for p in parts
                ]
        return found

    def _segments(self, name, size):
        rgb = np.asarray(Image.open(self.folder / "images" / name).convert("RGB"))
        if rgb.shape[:2] != size:
            expected = f"labels of {size[0]} x {size[1]} pixels, as in index.csv"
            received = f"{name} of {rgb.shape[0]} x {rgb.shape[1]}"
            raise ValueError(invalid("data", expected, received))
        return rgb[..., 0].astype("int32") + 256 * rgb[..., 1].astype("int32")

    def _table(self, name, *needed):
        with open(self.folder / name, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [n for n in needed if n not in (reader.fieldnames or ())]:
                expected = f"{name} with the columns {', '.join(needed)}"
                remedy = f"Missing: {', '.join(missing)}."
                raise ValueError(invalid("data", expected, reader.fieldnames, remedy))
            return list(reader)
