"""`Clock`: what a training costs, in seconds of the processor."""

import time

import keras
import numpy as np


class Clock(keras.callbacks.Callback):
    """Seconds of the processor of each epoch, and of the steps of the first."""

    def on_train_begin(self, logs=None):
        self.epochs, self._steps = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        if not self.epochs:
            self._steps.append(time.process_time() - self._began)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(time.process_time() - self._began)

    def training(self):
        """Seconds of all epochs, as if nothing had been traced in the first."""
        if not self.epochs:
            return 0.0
        if len(self.epochs) > 1:
            return float(np.median(self.epochs[1:])) * len(self.epochs)
        if len(self._steps) > 1:  # as if the first step had taken as long as the others
            rest = self._steps[-1] - self._steps[0]
            return rest * len(self._steps) / (len(self._steps) - 1)
        return self.epochs[0]
