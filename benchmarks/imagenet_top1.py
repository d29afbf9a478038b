"""Top-1 accuracy of the backbones with their classifiers on ImageNet photographs.

    python benchmarks/imagenet_top1.py FOLDER [--backbones efficientnet_lite0 ...]

FOLDER holds images whose names start with the index of their class, 0 to 999 in
the order of the ILSVRC-2012 synsets, such as `0207_golden_retriever.jpg`. Each
image is prepared as in the evaluation of the original EfficientNets: the central
square of size / (size + 32) of the shorter side, resized bicubically to the
network's input size.

Wrong preprocessing or padding raises no error; it costs some points, and this script
shows whether it does.
"""

import argparse
import math
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import quiet  # noqa: F401  first: it silences TensorFlow's start-up

import numpy as np
from PIL import Image

import keras_delta as kd

LITES = [name for name in kd.backbones.ALL if name.startswith("efficientnet_lite")]


def labelled_images(folder):
    """Pairs (path, class index) of a folder's images."""
    if not folder.is_dir():
        sys.exit(f"{folder} is no folder.")
    pairs = []
    for path in sorted(folder.iterdir()):
        match = re.match(r"(\d+)", path.name)
        if match and path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            pairs.append((path, int(match.group(1))))
    if not pairs:
        sys.exit(f"{folder} holds no image whose name begins with a class index.")
    return pairs


def centre_crop(path, size):
    """The centre of an image as a `uint8` array of shape (size, size, 3)."""
    image = Image.open(path).convert("RGB")
    side = size / (size + 32) * min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbones", nargs="+", default=LITES, metavar="NAME")
    parser.add_argument("--batch", type=int, default=20)
    arguments = parser.parse_args()
    pairs = labelled_images(arguments.folder)
    labels = np.array([label for _, label in pairs])
    print(f"{'backbone':<20}{'pixels':>7}{'right':>9}{'top-1':>9}{'± s.e.':>9}{'s':>7}")
    for name in arguments.backbones:
        model = kd.backbones.get(name)(include_top=True)
        size = kd.backbones.ALL[name].size
        start = time.perf_counter()
        images = np.stack([centre_crop(path, size) for path, _ in pairs])
        scores = model.predict(images, batch_size=arguments.batch, verbose=0)
        right = scores.argmax(-1) == labels
        error = math.sqrt(right.mean() * (1 - right.mean()) / len(right))
        print(
            f"{name:<20}{size:>7}{f'{right.sum()}/{len(right)}':>9}"
            f"{right.mean():>9.1%}{error:>9.1%}{time.perf_counter() - start:>7.1f}"
        )
        for (path, _), guess, good in zip(pairs, scores.argmax(-1), right, strict=True):
            if not good:
                print(f"    {path.name}: class {guess}")


if __name__ == "__main__":
    main()
