"""TensorBoard summaries written by callbacks: images and histograms."""

import tensorflow as tf


class Summaries:
    """Writes summaries to a folder; a copy of it writes a separate file.

    Args:
        folder: TensorBoard log folder, a `Path`; if None, nothing is written.
    """

    def __init__(self, folder):
        self.folder, self._writer = folder, None

    def __getstate__(self):
        return {"folder": self.folder, "_writer": None}

    def write_picture(self, name, path, step):
        """Write a PNG file as an image."""
        if self.folder is not None:
            image = tf.io.decode_png(path.read_bytes(), channels=3)
            with self._open().as_default():
                tf.summary.image(name, image[None], step)
            self._writer.flush()

    def write_histograms(self, values, step):
        """Write a dict of names to arrays as histograms."""
        if self.folder is not None:
            with self._open().as_default():
                for name, array in values.items():
                    tf.summary.histogram(name, array, step)
            self._writer.flush()

    def _open(self):
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.folder))
        return self._writer
