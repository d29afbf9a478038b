"""`DATA_SETS`: facts about each data set of the literature.

A new data set needs one entry here and, unless its folder has the layout of another
one, a reader in `layouts.py`.

Sizes: Li et al., TKDD 2021, doi:10.1145/3473912, section 4; for Caltech-256 Li et al.,
"Explicit Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018,
arXiv:1802.01483, and its code; for the rest the data sets' own lists.
SHA-256: the checksums of TensorFlow Datasets 4.9.10. MD5: torchvision.
"""

import dataclasses
from collections.abc import Callable

from keras_delta.data import layouts

TRAIN_TEST = {"train": "train", "test": "test"}
WITH_VALIDATION = {"train": "train+validation", "test": "test"}

# Checksums of archives, as `sha256sum` and `md5sum` write them.
_LINES = """
67b4f42ca05d46448c6bb8ecd2220f6d 256_ObjectCategories.tar
a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58 images.tar
34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c lists.tar
0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081 CUB_200_2011.tgz
d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4 food-101.tar.gz
2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246 102flowers.tgz
4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d imagelabels.mat
46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd setid.mat
67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d images.tar.gz
52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91 annotations.tar.gz
e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205 dtd-r1.0.1.tar.gz
512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288 cars_train.tgz
bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243 cars_test.tgz
b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd car_devkit.tgz
790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05 cars_test_annos_withlabels.mat
331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91 caltech-101.zip
b224c7392d521a49829488ab0f1120d9 101_ObjectCategories.tar.gz
"""  # noqa: E501
CHECKSUMS = dict(line.split()[::-1] for line in _LINES.split("\n") if line)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set of the literature.

    Attributes:
        title: its name in the literature.
        classes, train, test: numbers of classes, training and test images with the
            default options of `load`.
        page: address of its home page.
        tfds: its name in TensorFlow Datasets; None if it is not available.
        remarks: notes on comparing results, and terms of use.
        key: folder below `data_dir` where it is searched for and unpacked.
        roots: usual names of the folder that its archive creates.
        needs: relative paths that such a folder contains; a tuple means one of several.
        archives: groups of files, each sufficient by itself.
        read: the reader of the folder.
        inner: archives in the archives.
        tfds_splits: the splits of TensorFlow Datasets by part.
        per_class: training images drawn per class if there is no predefined split.
        test_per_class: test images drawn per class; None for all others.
        images: number of images to draw from.
        clutter: (name, images) of the clutter class.
    """

    title: str
    classes: int
    train: int
    test: int
    page: str
    tfds: str | None
    remarks: str
    key: str
    roots: tuple
    needs: tuple
    archives: tuple
    read: Callable
    inner: tuple = ()
    tfds_splits: dict = dataclasses.field(default_factory=lambda: TRAIN_TEST)
    per_class: int | None = None
    test_per_class: int | None = None
    images: int | None = None
    clutter: tuple | None = None


def _caltech256(per_class):
    return DataSet(
        title=f"Caltech-256 with {per_class} training images per class",
        classes=257,
        train=257 * per_class,
        test=257 * 20,
        page="https://data.caltech.edu/records/nyy15-4j048",
        tfds=None,
        remarks="CC BY 4.0. Drawn by `seed`; 257 classes with the clutter and 20 test "
        "images of each, as for L2-SP.",
        key="caltech256",
        roots=("Caltech256", "caltech-256", "Caltech-256"),
        needs=("256_ObjectCategories",),
        archives=(("256_ObjectCategories.tar",),),
        read=layouts.class_folders("256_ObjectCategories"),
        per_class=per_class,
        test_per_class=20,
        images=30607,
        clutter=("257.clutter", 827),
    )


DATA_SETS = {
    "stanford_dogs": DataSet(
        title="Stanford Dogs",
        classes=120,
        train=12000,
        test=8580,
        page="http://vision.stanford.edu/aditya86/ImageNetDogs/",
        tfds="stanford_dogs",
        remarks="A part of ImageNet's training images: a source from ImageNet has seen "
        "them. Research only.",
        key="stanford_dogs",
        roots=("StanfordDogs", "Stanford_Dogs", "ImageNetDogs"),
        needs=("Images", ("lists/train_list.mat", "train_list.mat")),
        archives=(("images.tar", "lists.tar"),),
        read=layouts.stanford_dogs,
    ),
    "cub": DataSet(
        title="CUB-200-2011",
        classes=200,
        train=5994,
        test=5794,
        page="https://data.caltech.edu/records/65de6-vp158",
        tfds="caltech_birds2011",
        remarks="Some test images are also in ImageNet. Research only.",
        key="cub",
        roots=("CUB_200_2011",),
        needs=(
            *("images", "classes.txt", "images.txt", "image_class_labels.txt"),
            "train_test_split.txt",
        ),
        archives=(("CUB_200_2011.tgz",),),
        read=layouts.cub,
    ),
    "food101": DataSet(
        title="Food-101",
        classes=101,
        train=75750,
        test=25250,
        page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        tfds="food101",
        remarks="The training images are deliberately not cleaned. Research only.",
        key="food101",
        roots=("food-101",),
        needs=("images", "meta/train.txt", "meta/test.txt"),
        archives=(("food-101.tar.gz",),),
        read=layouts.lists(
            "images", ".jpg", train=["meta/train.txt"], test=["meta/test.txt"]
        ),
        tfds_splits={"train": "train", "test": "validation"},
    ),
    "caltech256_30": _caltech256(30),
    "caltech256_60": _caltech256(60),
    "indoor67": DataSet(
        title="MIT Indoor 67",
        classes=67,
        train=5360,
        test=1340,
        page="https://web.mit.edu/torralba/www/indoor.html",
        tfds=None,
        remarks="Some files named .jpg are GIF, PNG or BMP. Research only.",
        key="indoor67",
        roots=("indoorCVPR_09", "MIT_Indoors_67"),
        needs=("Images", "TrainImages.txt", "TestImages.txt"),
        archives=(("indoorCVPR_09.tar", "TrainImages.txt", "TestImages.txt"),),
        read=layouts.lists(
            "Images", train=["TrainImages.txt"], test=["TestImages.txt"]
        ),
    ),
    "flowers102": DataSet(
        title="Oxford 102 Flowers",
        classes=102,
        train=2040,
        test=6149,
        page="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        tfds="oxford_flowers102",
        remarks="`train` is the 1020 training and the 1020 validation images.",
        key="flowers102",
        roots=("flowers-102", "102flowers"),
        needs=("jpg", "imagelabels.mat", "setid.mat"),
        archives=(("102flowers.tgz", "imagelabels.mat", "setid.mat"),),
        read=layouts.flowers102,
        tfds_splits=WITH_VALIDATION,
    ),
    "pets": DataSet(
        title="Oxford-IIIT Pets",
        classes=37,
        train=3680,
        test=3669,
        page="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        tfds="oxford_iiit_pet",
        remarks="`train` is the authors' trainval. CC BY-SA 4.0.",
        key="pets",
        roots=("oxford-iiit-pet",),
        needs=("images", "annotations/trainval.txt", "annotations/test.txt"),
        archives=(("images.tar.gz", "annotations.tar.gz"),),
        read=layouts.pets,
    ),
    "dtd": DataSet(
        title="Describable Textures (DTD)",
        classes=47,
        train=3760,
        test=1880,
        page="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        tfds="dtd",
        remarks="The first of ten splits; `train` is its 1880 training and 1880 "
        "validation images. Research only.",
        key="dtd",
        roots=("dtd",),
        needs=("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"),
        archives=(("dtd-r1.0.1.tar.gz",),),
        read=layouts.lists(
            "images",
            train=["labels/train1.txt", "labels/val1.txt"],
            test=["labels/test1.txt"],
        ),
        tfds_splits=WITH_VALIDATION,
    ),
    "cars": DataSet(
        title="Stanford Cars",
        classes=196,
        train=8144,
        test=8041,
        page="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        tfds="cars196",
        remarks="The home page, and so the download of TensorFlow Datasets, is often "
        "unavailable. Research only.",
        key="cars",
        roots=("stanford_cars", "StanfordCars"),
        needs=(
            *("cars_train", "cars_test", "devkit/cars_meta.mat"),
            "devkit/cars_train_annos.mat",
            layouts.CARS_LABELS,
        ),
        archives=(
            (
                "cars_train.tgz",
                "cars_test.tgz",
                "car_devkit.tgz",
                "cars_test_annos_withlabels.mat",
            ),
        ),
        read=layouts.cars,
    ),
    "caltech101": DataSet(
        title="Caltech-101",
        classes=102,
        train=102 * 30,
        test=9144 - 102 * 30,
        page="https://data.caltech.edu/records/mzrjq-6wc02",
        tfds="caltech101",
        remarks="CC BY 4.0. Drawn by `seed`: 30 of each class, the rest for testing. "
        "102 classes with BACKGROUND_Google, as in TensorFlow Datasets.",
        key="caltech101",
        roots=("caltech-101", "Caltech101"),
        needs=("101_ObjectCategories",),
        archives=(("caltech-101.zip",), ("101_ObjectCategories.tar.gz",)),
        inner=("caltech-101/101_ObjectCategories.tar.gz",),
        read=layouts.class_folders("101_ObjectCategories"),
        per_class=30,
        images=9144,
        clutter=("BACKGROUND_Google", 467),
    ),
}
