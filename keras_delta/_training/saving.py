"""Saving and loading of `DeltaModel` files."""

import contextlib
import json
import zipfile
from collections.abc import Mapping
from typing import Any, Self

import h5py
import keras
import numpy as np
import tensorflow as tf

from keras_delta import _disk, regularizers
from keras_delta._errors import warn
from keras_delta._network import lora
from keras_delta._network.copies import keep_frozen
from keras_delta._network.graph import Graph
from keras_delta._training import fixed
from keras_delta._types import PathLike
from keras_delta.recipe import Recipe

ATOMIC = (".keras", ".weights.h5")
HIDDEN = ("source", "layers")  # would put the source into a weights file


def check_path(filepath):
    """Refuse Keras's old format, which cannot store a model with a source."""
    if str(filepath).endswith((".h5", ".hdf5")):
        raise ValueError(
            f"A DeltaModel cannot be saved to '{filepath}': Keras's old format loses "
            "the source. Use a name ending in `.keras`, or `save_weights` with one "
            "ending in `.weights.h5`."
        )


def stored_recipe(config, model):
    """The `Recipe` of a file or backup.

    The regularizer is the model's: one of an own class may not be registered.
    """
    return Recipe.from_config({**config, "regularizer": model.regularizer})


class Saving:
    """Mix-in for `DeltaModel`: files are written atomically.

    A `.keras` file contains the source; a weights file only its fingerprint, and the
    recipe.
    """

    _hidden = ()

    def get_config(self) -> dict[str, Any]:
        """Target, source, taps, regularizer and recipe, without weights."""
        return {
            "name": self.name,
            "target": keras.saving.serialize_keras_object(self.target),
            "source": keras.saving.serialize_keras_object(self.source),
            **self.networks.get_config(),
            "regularizer": regularizers.serialize(self.regularizer),
            "recipe": self.recipe and self.recipe.get_config(),
            "fixed": fixed.places(self),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        """See `keras.Model.from_config`."""
        config = dict(config)
        for part in ("target", "source", "regularizer"):
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        keep_frozen(config["target"])
        places, recipe = config.pop("places", {}), config.pop("recipe", None)
        of_recipe = config.pop("fixed", ())
        graphs = [Graph(config[part]) for part in ("target", "source")]
        for key, stored in places.items():
            its = graphs[::-1] if key == "source_taps" else graphs
            config[key] = _rename(config[key], stored, *its)
        model = cls(**config)
        model.recipe = recipe and stored_recipe(recipe, model)
        fixed.recall(model, of_recipe)
        return model

    def get_compile_config(self) -> dict[str, Any]:
        """See `keras.Model.get_compile_config`; omits Keras's default optimizer."""
        config = super().get_compile_config()
        if not self.optimizer_given:
            config.pop("optimizer", None)
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """See `keras.Model.compile_from_config`; the regularizer is in the model."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def save(self, filepath: PathLike, *args: Any, **kwargs: Any) -> None:
        """See `keras.Model.save`; an existing file is replaced atomically.

        With several workers only the first writes. The file contains everything needed
        to resume training, including the source.
        """
        check_path(filepath)
        with self.hosts.writing() as first:
            if first:
                self._write_whole(super().save, filepath, args, kwargs)

    def save_weights(self, filepath: PathLike, *args: Any, **kwargs: Any) -> None:
        """See `keras.Model.save_weights`; an existing file is replaced atomically.

        The file does not contain the frozen source, only its fingerprint: build the
        model on the same source before loading the weights.
        """
        writing = self.hosts.writing()
        with writing as first, self._hiding(HIDDEN):
            if first:
                self._write_whole(super().save_weights, filepath, args, kwargs)

    def _write_whole(self, write, filepath, args, kwargs):
        asks = (args or [kwargs.get("overwrite", True)])[0] is False
        name = str(filepath)
        folder = kwargs.get("zipped") is False or kwargs.get("max_shard_size")
        if asks or folder or not name.endswith(ATOMIC) or "://" in name:
            write(filepath, *args, **kwargs)
            return
        with _disk.replace_file(filepath) as temporary:
            write(temporary, *args, **kwargs)

    def load_weights(self, filepath: PathLike, *args: Any, **kwargs: Any) -> None:
        """See `keras.Model.load_weights`.

        Weights of another regularizer, or of none, are loaded without its state.

        Raises:
            ValueError: if the weights belong to a model with another source.
        """
        hidden: tuple[str, ...] = HIDDEN
        if str(filepath).endswith(".keras"):
            hidden = ()  # the file has the whole model, including the source
            self._take_recipe(_config(filepath).get("recipe"))
        elif str(filepath).endswith(".h5"):
            self._check_fingerprint(filepath)
            stored = _text(filepath, "recipe")
            self._take_recipe(stored and json.loads(stored))
            if not self._fits_regularizer(filepath):
                hidden = (*HIDDEN, "regularizer")
        with self._hiding(hidden):
            super().load_weights(filepath, *args, **kwargs)
        lora.draw_again(self.target)
        self.renew_step()

    @contextlib.contextmanager
    def _hiding(self, names):
        self._hidden = names
        try:
            yield
        finally:
            self._hidden = ()

    def __dir__(self):
        # Keras saves and loads what it finds here.
        hidden = (*self._hidden, "_regularizers")  # there is `regularizer`
        return [name for name in super().__dir__() if name not in hidden]

    @property
    def source_fingerprint(self) -> str:
        """Digest of the source's calls, weights and taps, as hexadecimal digits."""
        return self.networks.source_fingerprint

    def save_own_variables(self, store: Any) -> None:
        """Store the source's fingerprint and the recipe in a weights file."""
        if self._hidden:
            store["source_fingerprint"] = _as_bytes(self.source_fingerprint)
            if self.recipe is not None:
                store["recipe"] = _as_bytes(json.dumps(self.recipe.get_config()))

    def load_own_variables(self, store: Any) -> None:
        """Load nothing: the fingerprint was checked before loading."""

    def _fits_regularizer(self, filepath):
        """Whether a weights file fits the regularizer; warns if not."""
        if self.regularizer is None:
            return True
        stored = []
        with h5py.File(filepath, "r") as file:
            group = file.get("regularizer")
            if group is not None:
                group.visititems(lambda _, v: stored.append(getattr(v, "shape", None)))
        stored = sorted(shape for shape in stored if shape is not None)
        if stored == sorted(tuple(v.shape) for v in self.regularizer.variables):
            return True
        warn(
            f"'{filepath}' was written with another regularizer than the "
            f"{type(self.regularizer).__name__} in use, or with none. Target and "
            "optimizer are loaded; the regularizer is not changed."
        )
        return False

    def _take_recipe(self, config):
        """Adopt the recipe of a file, with the layers that it fixes."""
        if config is not None and self.recipe is None:
            self.recipe = stored_recipe(config, self)
            fixed.fix(self, self.recipe)

    def _check_fingerprint(self, filepath):
        """Refuse a weights file of another source; Keras would load part of it."""
        stored = _text(filepath, "source_fingerprint")
        if stored is None:
            raise ValueError(
                f"'{filepath}' was not written by `save_weights` of a DeltaModel. "
                "Load weights of the target alone with "
                "`model.target.load_weights(path)`; files written by "
                "`keras.saving.save_weights(model, path)` are not supported."
            )
        if stored != self.source_fingerprint:
            raise ValueError(
                f"'{filepath}' contains the weights of a model with another source: "
                f"its fingerprint is {stored}, this one's {self.source_fingerprint}. "
                "Weights files do not contain the frozen source. Build the model on "
                "the same source (network, weights, input shape), with the same taps, "
                "before loading."
            )


def _rename(names, places, graph, other):
    """Current names of layers, a dict of pairs or a list.

    A network rebuilt by its class may number its layers differently.
    """
    pairs = isinstance(names, dict)
    known = set(names) <= set(graph.nodes)
    if known and (not pairs or set(names.values()) <= set(other.nodes)):
        return names
    ours, theirs = graph.depth_first(), other.depth_first()
    return (
        {ours[i]: theirs[j] for i, j in places} if pairs else [ours[i] for i in places]
    )


def _config(filepath):
    """The config of the model in a `.keras` file."""
    with (
        tf.io.gfile.GFile(filepath, "rb") as file,
        zipfile.ZipFile(file) as archive,
    ):
        return json.loads(archive.read("config.json"))["config"]


def _as_bytes(text):
    return np.frombuffer(text.encode(), "uint8")


def _text(filepath, name):
    """The text that `save_own_variables` stored under a name, or None."""
    with h5py.File(filepath, "r") as file:
        stored = file.get(f"vars/{name}")
        return None if stored is None else bytes(np.asarray(stored)).decode()
