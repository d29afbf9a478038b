"""The files that a `DeltaModel` writes, and loads again."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Self

import h5py
import keras
import numpy as np

from keras_delta import _disk, regularizers
from keras_delta._errors import warn
from keras_delta._network.copies import keep_frozen
from keras_delta._network.graph import Graph
from keras_delta._training.beginning import fix_statistics
from keras_delta._types import PathLike
from keras_delta.recipe import Recipe

ATOMIC = (".keras", ".weights.h5")
HIDDEN = ("source", "layers")  # what would bring the source into a weights file


def check_path(filepath):
    """Refuse Keras's old format, which cannot hold a model with a source."""
    if str(filepath).endswith((".h5", ".hdf5")):
        raise ValueError(
            f"A DeltaModel cannot be saved to '{filepath}': Keras's old format loses "
            "the source. Use a name that ends in `.keras`, or `save_weights` with one "
            "that ends in `.weights.h5`."
        )


class Saving:
    """Mix-in for `DeltaModel`: files written as a whole, and the source only once.

    A `.keras` file holds the source; a weights file its fingerprint, and the recipe.
    """

    _hidden = ()

    def get_config(self) -> dict[str, Any]:
        """Target, source, taps, regularizer and recipe; weights are saved beside."""
        return {
            "name": self.name,
            "target": keras.saving.serialize_keras_object(self.target),
            "source": keras.saving.serialize_keras_object(self.source),
            **self.networks.get_config(),
            "regularizer": regularizers.serialize(self.regularizer),
            "recipe": self.recipe and self.recipe.get_config(),
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
        graphs = [Graph(config[part]) for part in ("target", "source")]
        for key, stored in places.items():
            its = graphs[::-1] if key == "source_taps" else graphs
            config[key] = _rename(config[key], stored, *its)
        model = cls(**config)
        model.recipe = recipe and Recipe.from_config(recipe)
        return model

    def get_compile_config(self) -> dict[str, Any]:
        """See `keras.Model.get_compile_config`; Keras's default optimizer is none."""
        config = super().get_compile_config()
        if not self.optimizer_given:
            config.pop("optimizer", None)
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """See `keras.Model.compile_from_config`; the regularizer is in the model."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def save(self, filepath: PathLike, *args: Any, **kwargs: Any) -> None:
        """See `keras.Model.save`; a file that is there is replaced as a whole.

        Of several workers the first alone writes. The file holds all that training
        needs to go on, the source included.
        """
        check_path(filepath)
        with self.hosts.writing() as first:
            if first:
                self._write_whole(super().save, filepath, args, kwargs)

    def save_weights(self, filepath: PathLike, *args: Any, **kwargs: Any) -> None:
        """See `keras.Model.save_weights`; a file is replaced as a whole.

        The frozen source is not in it, only its fingerprint: what loads the weights
        has built a model on the same source before.
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
            ValueError: for weights of a model with another source.
        """
        hidden: tuple[str, ...] = HIDDEN
        if str(filepath).endswith(".keras"):
            hidden = ()  # all of the model is there, the source as well
        elif str(filepath).endswith(".h5"):
            self._check_fingerprint(filepath)
            self._take_recipe(filepath)
            if not self._fits_regularizer(filepath):
                hidden = (*HIDDEN, "regularizer")
        with self._hiding(hidden):
            super().load_weights(filepath, *args, **kwargs)
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
        """Notes in a weights file which source it belongs to, and the recipe."""
        if self._hidden:
            store["source_fingerprint"] = _as_bytes(self.source_fingerprint)
            if self.recipe is not None:
                store["recipe"] = _as_bytes(json.dumps(self.recipe.get_config()))

    def load_own_variables(self, store: Any) -> None:
        """Nothing: the fingerprint was looked at before anything was loaded."""

    def _fits_regularizer(self, filepath):
        """Whether a weights file has what the regularizer has; a warning if not."""
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
            "optimizer are loaded; the regularizer stays as it is."
        )
        return False

    def _take_recipe(self, filepath):
        """Go on by the recipe of a weights file: its statistics do not move."""
        stored = _text(filepath, "recipe")
        if stored is not None and self.recipe is None:
            self.recipe = Recipe.from_config(json.loads(stored))
            fix_statistics(self, self.recipe)

    def _check_fingerprint(self, filepath):
        """Refuse a weights file of another source; Keras would load it half."""
        stored = _text(filepath, "source_fingerprint")
        if stored is None:
            raise ValueError(
                f"'{filepath}' was not written by `save_weights` of a DeltaModel. "
                "Weights of the target alone are loaded with "
                "`model.target.load_weights(path)`; what "
                "`keras.saving.save_weights(model, path)` wrote is not read."
            )
        if stored != self.source_fingerprint:
            raise ValueError(
                f"'{filepath}' holds the weights of a model with another source: its "
                f"fingerprint is {stored}, this one's {self.source_fingerprint}. "
                "Weights files do not hold the frozen source. Build the model on the "
                "same source (network, weights, input shape), with the same taps, "
                "before loading."
            )


def _rename(names, places, graph, other):
    """Names of layers as they are now, a dict of pairs or a list.

    A network that its own class builds again may number its layers differently.
    """
    pairs = isinstance(names, dict)
    known = set(names) <= set(graph.nodes)
    if known and (not pairs or set(names.values()) <= set(other.nodes)):
        return names
    ours, theirs = graph.depth_first(), other.depth_first()
    return (
        {ours[i]: theirs[j] for i, j in places} if pairs else [ours[i] for i in places]
    )


def _as_bytes(text):
    return np.frombuffer(text.encode(), "uint8")


def _text(filepath, name):
    """What `save_own_variables` wrote under a name; None if nothing."""
    with h5py.File(filepath, "r") as file:
        stored = file.get(f"vars/{name}")
        return None if stored is None else bytes(np.asarray(stored)).decode()
