"""Serving options: the checked arguments of `export_for_serving`."""

import dataclasses

from keras_delta import _arguments
from keras_delta._errors import invalid
from keras_delta._types import ImageSize
from keras_delta.data.augment import PROTOCOLS
from keras_delta.data.ten_crop import AVERAGES, height_width
from keras_delta.serving import folders, litert, onnx
from keras_delta.serving.conversion import IMAGES

INPUTS = ("image_bytes", "tensor")
CONVERTERS = {"litert": litert, "onnx": onnx}
FILES = {"saved_model": "saved_model.pb", "litert": litert.FILE, "onnx": onnx.FILE}


@dataclasses.dataclass(frozen=True)
class Options:
    """Serving options; the fields are arguments of `export_for_serving`.

    Raises:
        ValueError: if a value is out of range or some values are incompatible.
        ImportError: if a package for the format is missing.
    """

    input: str = "image_bytes"
    format: str = "saved_model"
    top_k: int = 5
    image_size: ImageSize | None = None
    protocol: str = "default"
    ten_crop_average: str = "logits"
    calibrate: bool = False
    quantize: str | None = None

    def __post_init__(self):
        _arguments.choice("input", self.input, INPUTS)
        _arguments.choice("format", self.format, FILES)
        _arguments.choice("protocol", self.protocol, PROTOCOLS)
        _arguments.choice("ten_crop_average", self.ten_crop_average, AVERAGES)
        _arguments.integer("top_k", self.top_k)
        _arguments.flag("calibrate", self.calibrate)
        if self.quantize is not None:
            if self.format != "litert":
                expected = f'None with `format="{self.format}"`; only "litert" has it'
                raise ValueError(invalid("quantize", expected, self.quantize))
            _arguments.choice("quantize", self.quantize, litert.QUANTIZE)
        if self.converter is not None:
            self.converter.check()

    @property
    def converter(self):
        """The module that writes the file for another runtime, or None."""
        return CONVERTERS.get(self.format)

    @property
    def file(self):
        """The name of the file with the network."""
        return FILES[self.format]

    def fitted(self, network):
        """The same options with the size and number of classes of a `Network`."""
        return dataclasses.replace(
            self,
            image_size=_image_size(network.image_size, self.image_size),
            top_k=network.task.top(network.classes, self.top_k),
        )

    def facts(self):
        """The options for the model card."""
        shown = {k: getattr(self, k) for k in ("image_size", "protocol")}
        if self.converter is not None:
            return {"format": self.format, "file": self.file, "input": IMAGES, **shown}
        names = "format", "input", "top_k", "ten_crop_average"
        return {**{k: getattr(self, k) for k in names}, **shown}


def check_data(options, validation_data, representative_data):
    """Reject data that are missing or would not be used."""
    if options.calibrate and validation_data is None:
        raise ValueError(
            "`calibrate=True` needs `validation_data`, images that the model was not "
            "trained on, with their labels."
        )
    if options.quantize == "int8" and representative_data is None:
        raise ValueError(
            '`quantize="int8"` needs `representative_data`, '
            f"{litert.FEWEST} or more typical images from which the ranges of numbers "
            'in the network are determined. `"dynamic"` needs none.'
        )
    if options.quantize != "int8" and representative_data is not None:
        expected = 'None, because only `quantize="int8"` uses it'
        raise ValueError(invalid("representative_data", expected, representative_data))


def check_formats(folder, options):
    """Reject versions of different formats in one folder: servers load the newest."""
    versions = folders.versions_in(folder.parent) if folder.parent.exists() else {}
    for number, other in versions.items():
        files = [name for name in FILES.values() if (other / name).exists()]
        if other != folder and files and options.file not in files:
            raise ValueError(
                f"Version {number} in '{folder.parent}' is a `{files[0]}`, which a "
                f"`{options.file}` cannot follow. Export to a separate folder, e.g. "
                f"'{folder.parent}_{options.format}'."
            )


def _image_size(taken, given):
    """The size to resize images to: that of the network, or the argument."""
    given = None if given is None else height_width(given, "image_size")
    if given is None and None in taken:
        raise ValueError(
            f"The model takes images of any size, {taken}. Pass `image_size`, the "
            "size used in training."
        )
    given = given or taken
    if any(a not in (None, b) for a, b in zip(taken, given, strict=True)):
        raise ValueError(invalid("image_size", f"{taken}, as the model's input", given))
    return given
