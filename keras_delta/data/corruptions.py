"""Blurred, noisy and compressed test images, in five degrees of severity.

They show how far a classifier's accuracy falls on images of lower quality than those
it was trained on.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, arXiv:1903.12261; the constants are those
of `gaussian_blur`, `gaussian_noise` and `jpeg_compression` in
hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py.
"""

import io

import numpy as np
from PIL import Image, ImageFilter

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._types import Corruption, ImageSize, ProtocolName
from keras_delta.data.image_set import ImageSet

SIDE = 224  # side of the images that the constants were chosen for
BLUR = (1, 2, 3, 4, 6)  # standard deviation in pixels of such an image
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation; white is 1
JPEG = (25, 18, 15, 10, 7)  # quality


def corrupt(
    images: np.ndarray, kind: Corruption, severity: int = 3, seed: int = 0
) -> np.ndarray:
    """Corrupts images by blur, noise or JPEG compression.

    | kind | effect | severities 1 to 5 |
    |---|---|---|
    | "blur" | Gaussian blur, standard deviation for a shorter edge of 224 pixels, \
scaled in proportion to it | 1, 2, 3, 4, 6 pixels |
    | "noise" | Gaussian noise in each pixel and channel, standard deviation where \
white is 1 | 0.08, 0.12, 0.18, 0.26, 0.38 |
    | "jpeg" | compression, Pillow's quality | 25, 18, 15, 10, 7 |

    JPEG works on blocks of 8 × 8 pixels, whatever the size of the image. Pillow
    approximates a Gaussian blur by three box filters. Unlike the files of
    ImageNet-C, the result is rounded and not compressed again.

    Args:
        images: `uint8` array (images, height, width, 3), of the size that the network
            sees, so that a severity means the same for all data.
        kind: "blur", "noise" or "jpeg".
        severity: 1 to 5.
        seed: integer, for the noise. Each image has separate noise, determined by the
            seed and the image's index; the severity only scales it.

    Returns:
        `uint8` array of the same shape.

    Raises:
        ValueError: if the kind is unknown, the severity is not an integer from 1 to 5,
            or the images have another type or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            invalid(
                "images",
                "a uint8 array of shape (images, height, width, 3)",
                f"{images.dtype} array of shape {images.shape}",
                'Create it with `ImageSet.arrays(size, dtype="uint8")`.',
            )
        )
    _check(kind, severity)
    _arguments.seed("seed", seed)
    result = np.empty_like(images)
    for number, image in enumerate(images):
        random = np.random.default_rng([seed, number])
        result[number] = KINDS[kind](image, severity - 1, random)
    return result


def corrupted(
    images: ImageSet,
    image_size: ImageSize,
    kind: Corruption,
    severity: int = 3,
    *,
    seed: int = 0,
    protocol: ProtocolName = "default",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns all images of a set, prepared as for a test and then corrupted.

    Args:
        images: `ImageSet` that fits into memory.
        image_size, protocol: as for `ImageSet.arrays`.
        kind, severity, seed: as for `corrupt`.

    Returns:
        (images, labels): `uint8` array (images, height, width, 3) and `int64` array,
        for `model.evaluate`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check(kind, severity)
    pixels, labels = images.arrays(image_size, protocol=protocol, dtype="uint8")
    return corrupt(pixels, kind, severity, seed), labels


def _check(kind, severity):
    _arguments.choice("kind", kind, KINDS)
    _arguments.integer("severity", severity, most=5)


def _blur(image, degree, random):
    deviation = BLUR[degree] * min(image.shape[:2]) / SIDE
    return Image.fromarray(image).filter(ImageFilter.GaussianBlur(deviation))


def _noise(image, degree, random):
    noise = random.standard_normal(image.shape) * (255 * NOISE[degree])
    return np.clip(np.rint(image + noise), 0, 255)


def _jpeg(image, degree, random):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=JPEG[degree])
    return Image.open(file)


KINDS = {"blur": _blur, "noise": _noise, "jpeg": _jpeg}
