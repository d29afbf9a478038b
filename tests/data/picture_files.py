"""Folders of small pictures, made for the tests."""

import numpy as np
from PIL import Image


def write_image(path, value, shape=(40, 50)):
    """A grey picture of one level with some noise: the level tells it apart."""
    noise = np.random.default_rng(value).integers(0, 8, (*shape, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((noise + value).astype(np.uint8)).save(path)


def write_tree(root, classes=("ant", "bee", "cat"), per_class=4):
    """Class folders of PNG files; returns the root."""
    for label, name in enumerate(classes):
        for number in range(per_class):
            write_image(root / name / f"{number}.png", 60 * label + 10 * number)
    return root
