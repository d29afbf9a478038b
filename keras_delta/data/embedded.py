"""Two small sets of real images that need no download."""

from importlib import resources

import numpy as np

from keras_delta import _arguments
from keras_delta._errors import import_optional, invalid
from keras_delta.data.decode import read_image
from keras_delta.data.image_set import ImageSet

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "tissue": "ihc.png",
}

# Grey levels; a patch of plain sky or shadow shows nothing of its photograph.
MIN_CONTRAST = 8.0


def embedded_photographs(
    patch_size: int = 40,
    train_per_class: int = 10,
    test_per_class: int = 25,
    *,
    colour: bool = False,
    seed: int = 0,
) -> dict[str, ImageSet]:
    """Patches of twelve photographs: tell from which one a patch was cut.

    The photographs ship with scikit-image. They show single things, so the classes are
    the photographs and the images are patches of them. The training patches come from
    the left half of each photograph, the test patches from the right half, and no two
    patches overlap. The patches are grey, as colours would give more of the photographs
    away. With the default sizes, a linear head on the frozen features of
    EfficientNet-Lite0 at 96 pixels gets 76 % of the test patches right (82 % in
    colour): there is room to gain.

    Args:
        patch_size: side of the square patches in pixels. Smaller ones show less
            and are harder to tell apart.
        train_per_class: training patches of each photograph.
        test_per_class: test patches of each photograph.
        colour: whether to keep the colours, which makes it easier.
        seed: integer; decides which patches are drawn.

    Returns:
        Dict of "train" and "test" to `ImageSet` with images in memory.

    Raises:
        ImportError: when scikit-image is not installed.
        ValueError: when a photograph has too few patches of that size.
    """
    _arguments.seed("seed", seed)
    patch_size = _arguments.integer("patch_size", patch_size)
    counts = {
        "train": _arguments.integer("train_per_class", train_per_class),
        "test": _arguments.integer("test_per_class", test_per_class),
    }
    images = {"train": [], "test": []}
    labels = {"train": [], "test": []}
    for label, (name, file) in enumerate(PHOTOGRAPHS.items()):
        photograph = _photograph(file, colour)
        middle = photograph.shape[1] // 2
        halves = {"train": photograph[:, :middle], "test": photograph[:, middle:]}
        for part, half in halves.items():
            patches = _patches(half, patch_size)
            if len(patches) < counts[part]:
                expected = (
                    f"at most {len(patches)}, the patches of {patch_size} pixels in "
                    f"one half of the photograph {name!r}"
                )
                remedy = "Ask for fewer patches or for a smaller `patch_size`."
                argument = f"{part}_per_class"
                raise ValueError(invalid(argument, expected, counts[part], remedy))
            random = np.random.default_rng([seed, label, len(part)])
            drawn = np.sort(random.permutation(len(patches))[: counts[part]])
            images[part] += [patches[i] for i in drawn]
            labels[part] += [label] * counts[part]
    return {
        part: ImageSet.from_arrays(images[part], labels[part], list(PHOTOGRAPHS))
        for part in images
    }


def embedded_digits(
    train_per_class: int = 20, test_per_class: int = 100, *, seed: int = 0
) -> dict[str, ImageSet]:
    """Scans of handwritten digits, which look like nothing in ImageNet.

    The images ship with scikit-learn: 1,797 digits of 13 people, 8 by 8 pixels in 16
    levels of grey.

    Args:
        train_per_class: training images per digit.
        test_per_class: test images per digit; together at most 174.
        seed: integer; decides which images are drawn.

    Returns:
        Dict of "train" and "test" to `ImageSet` with images in memory.

    Raises:
        ValueError: if there are fewer images of a digit than that.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
    Machine Learning Repository, 1998, doi 10.24432/C50P49, CC BY 4.0.
    """
    from sklearn.datasets import load_digits

    _arguments.seed("seed", seed)
    first = _arguments.integer("train_per_class", train_per_class)
    both = first + _arguments.integer("test_per_class", test_per_class)
    digits = load_digits()
    least = int(np.bincount(digits.target).min())
    if both > least:
        expected = f"at most {least - first} beside {first} for training"
        raise ValueError(invalid("test_per_class", expected, test_per_class))
    random = np.random.default_rng(seed)
    drawn = np.stack(
        [
            random.permutation(np.flatnonzero(digits.target == digit))[:both]
            for digit in digits.target_names
        ]
    )
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    parts = {"train": np.sort(drawn[:, :first]), "test": np.sort(drawn[:, first:])}
    return {
        part: ImageSet.from_arrays(
            images[rows.ravel()], digits.target[rows.ravel()], digits.target_names
        )
        for part, rows in parts.items()
    }


def _photograph(file, colour):
    # From the package's folder: `skimage.data.brick()` and its like may download.
    import_optional("skimage", "`embedded_photographs`", "examples")
    folder = resources.files("skimage") / "data"
    image = read_image((folder / file).read_bytes())
    if colour:
        return image
    # Luma of ITU-R BT.601, as in Pillow's conversion to grey.
    grey = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _patches(image, size):
    """The squares of a grid over the image that show some contrast."""
    rows = range(0, image.shape[0] - size + 1, size)
    columns = range(0, image.shape[1] - size + 1, size)
    squares = [image[r : r + size, c : c + size] for r in rows for c in columns]
    return [square for square in squares if square.mean(-1).std() >= MIN_CONTRAST]
