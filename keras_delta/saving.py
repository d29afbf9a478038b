"""What a `DeltaModel` writes to files, and reads from them."""

import contextlib

import h5py
import numpy as np
from keras import tree

from keras_delta import files, fingerprint, multi_worker


class WholeFiles:
    """Mix-in for `DeltaModel`: files written as a whole, and the source only once.

    A `.keras` file holds the source; a weights file holds its fingerprint.
    """

    _hides_source = False

    def save(self, filepath, *args, **kwargs):
        """See `keras.Model.save`; a file that is there is replaced as a whole.

        Of several workers the first alone writes. The file holds all that training
        needs to go on, the source included.
        """
        with multi_worker.writing(self.distribute_strategy) as first:
            if first:
                self._written(super().save, filepath, args, kwargs)

    def save_weights(self, filepath, *args, **kwargs):
        """See `keras.Model.save_weights`; a file is replaced as a whole.

        The frozen source is not in it, only its fingerprint: what loads the weights
        has built a model on the same source before.
        """
        writing = multi_worker.writing(self.distribute_strategy)
        with writing as first, self._without_source():
            if first:
                self._written(super().save_weights, filepath, args, kwargs)

    def _written(self, write, filepath, args, kwargs):
        asks = (args or [kwargs.get("overwrite", True)])[0] is False
        name = str(filepath)
        folder = kwargs.get("zipped") is False or kwargs.get("max_shard_size")
        if asks or folder or not name.endswith((".keras", ".h5")) or "://" in name:
            write(filepath, *args, **kwargs)
            return
        with files.replacing(filepath) as temporary:
            write(temporary, *args, **kwargs)

    def load_weights(self, filepath, *args, **kwargs):
        """See `keras.Model.load_weights`.

        Raises:
            ValueError: for weights of a model with another source.
        """
        if str(filepath).endswith(".h5"):
            self._check_fingerprint(filepath)
        with self._without_source():
            super().load_weights(filepath, *args, **kwargs)
        if self.train_function is not None and not self.shares_what_it_shared():
            self.make_train_function(force=True)

    @contextlib.contextmanager
    def _without_source(self):
        self._hides_source = True
        try:
            yield
        finally:
            self._hides_source = False

    def __dir__(self):
        # Keras saves and loads what it finds here.
        hidden = ("source", "layers") if self._hides_source else ()
        return [name for name in super().__dir__() if name not in hidden]

    @property
    def source_fingerprint(self):
        """Digest of the source's calls, weights and taps, as hexadecimal digits."""
        taps = tree.flatten(self._source_taps)
        return fingerprint.of_model(self._source_graph, taps)

    def save_own_variables(self, store):
        """Notes in a weights file which source it belongs to."""
        if self._hides_source:
            digits = self.source_fingerprint.encode()
            store["source_fingerprint"] = np.frombuffer(digits, "uint8")

    def load_own_variables(self, store):
        """Nothing: the fingerprint was looked at before anything was loaded."""

    def _check_fingerprint(self, filepath):
        """Refuse a weights file of another source; Keras would load it half."""
        with h5py.File(filepath, "r") as file:
            stored = file.get("vars/source_fingerprint")
            stored = None if stored is None else bytes(np.asarray(stored)).decode()
        if stored is None:
            raise ValueError(
                f"'{filepath}' holds no weights of a DeltaModel. Weights of the target "
                "alone are loaded with `model.target.load_weights(path)`."
            )
        if stored != self.source_fingerprint:
            raise ValueError(
                f"'{filepath}' holds the weights of a model with another source: its "
                f"fingerprint is {stored}, this one's {self.source_fingerprint}. "
                "Weights files do not hold the frozen source. Build the model on the "
                "same source (network, weights, input shape), with the same taps, "
                "before loading."
            )
