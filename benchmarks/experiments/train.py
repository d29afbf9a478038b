"""`Trainer`: runs a `Cell` and gives its record."""

import functools
import os
import time

import keras
import numpy as np
import tensorflow as tf

from keras_delta import _disk, backbones, callbacks, data, regularizers
from keras_delta._answers.calibration import expected_calibration_error
from keras_delta._network import memory
from keras_delta._errors import invalid
from keras_delta._runs.store import once
from experiments import baselines, methods
from experiments.bench import Bench
from experiments.clock import Clock

TEST_BATCH = 64
RIFLE_CYCLES = 3  # the authors' for CUB
POOLS = 4  # data sets in memory at a time


class Trainer:
    """Trains cells, one after another, and shares what they have in common.

    Args:
        once_in: `Path` of a folder for what is computed once.
        data_dir: folder of the data sets; None: their usual places.
        progress: whether to show the epochs.
    """

    def __init__(self, once_in, data_dir=None, progress=False):
        self._bench = Bench(once_in)
        self._data_dir, self._progress = data_dir, progress
        self._once, self._pools, self._teachers = once_in, {}, {}

    def warm(self, cell):
        """Whether a cell can begin without a model being built and traced."""
        return self._bench.warm(cell)

    def run(self, cell):
        """Train and test a cell.

        Returns:
            A dict for JSON: `accuracy` and `loss` on the test images, `correct` (a
            digit 0 or 1 for each), `seconds` and `prepare_seconds` of the processor,
            `wall_seconds`, `epochs`, `images`, `training_accuracy`, `curve`,
            `corrupted` (a dict from each corruption to such digits); or `failed`, the
            reason.
        """
        began = time.monotonic()
        try:
            record = self._run(cell)
        except callbacks.LossNotFinite as e:
            record = {"failed": str(e)}
        except (MemoryError, tf.errors.ResourceExhaustedError) as e:
            self._bench.drop()
            first, *_ = str(e).splitlines() or [type(e).__name__]
            record = {"failed": f"out of memory: {first}"}
        wall = time.monotonic() - began
        return {**record, "wall_seconds": wall, "threads": threads()}

    def _run(self, cell):
        size = cell.image_size or backbones.ALL[cell.network].size
        train_set, test_set = self._sets(cell, size)
        protocol = cell.protocol
        batches = {"image_size": size, "protocol": protocol.augmentation}

        def train(**options):
            options |= {"batch_size": protocol.batch_size, "seed": cell.seed}
            return train_set.batches(training=True, **options, **batches)

        test_batches = test_set.batches(
            batch_size=TEST_BATCH, ten_crop=protocol.ten_crop is not None, **batches
        )

        def test(model):
            return self._test(model, test_batches, test_set, protocol)

        if cell.method in methods.TRAINERS | methods.OF_TEACHER:
            teacher = cell.teacher and self._teacher(cell.of_teacher())
            model, trained = self._baseline(cell, train_set, train, teacher)
        else:
            model, trained = self._fit(cell, train_set, train, test)
        corrupted = {
            name: self._corrupted(model, test_set, name, batches)
            for name in cell.corruptions
        }
        return {
            **test(model),
            "images": len(train_set),
            **trained,
            "corrupted": corrupted or None,
        }

    def _teacher(self, cell):
        """The trained network of a cell, from a file that processes share."""
        path = self._once / f"teacher_{cell.key}.keras"

        def train():
            size = cell.image_size or backbones.ALL[cell.network].size
            images, _ = self._sets(cell, size)
            options = {"image_size": size, "protocol": cell.protocol.augmentation}
            options |= {"batch_size": cell.protocol.batch_size, "seed": cell.seed}
            its = functools.partial(images.batches, training=True, **options)
            return self._baseline(cell, images, its)[0]

        def save(model):
            with _disk.replace_file(path) as temporary:
                model.save(temporary)

        if cell.key not in self._teachers:
            self._teachers.clear()
            self._teachers[cell.key] = once(
                path.with_suffix(".lock"),
                lambda: keras.models.load_model(path) if path.exists() else None,
                *(train, save),
            )
        return self._teachers[cell.key]

    def _baseline(self, cell, train_set, train, teacher=None):
        """(model, part of the record) of a method that trains in its own way."""
        trained = baselines.run(
            *(cell, self._source(cell), len(train_set.class_names), train),
            images=len(train_set),
            verbose="auto" if self._progress else 0,
            teacher=teacher,
        )
        record = {"feature_penalty": None, "curve": None, **trained._asdict()}
        return record.pop("model"), record

    def _source(self, cell):
        """The pretrained network, with its classifier where the method needs that."""
        if cell.method != "recipe":
            return self._bench.source(cell)
        method = regularizers.get(cell.its_recipe().regularizer)
        include_top = method is not None and method.needs_source_head
        return self._bench.source(cell, include_top)

    def _fit(self, cell, train_set, train, test):
        """(model, part of the record) of a regularizer's method."""
        protocol, images = cell.protocol, len(train_set)
        epochs = protocol.epochs(images)
        where = {
            "data": [cell.dataset, cell.per_class, cell.fold, cell.label_noise],
            "augmentation": [protocol.augmentation, protocol.batch_size],
            "images": images,
        }
        classes = len(train_set.class_names)
        model, prepared = self._bench.begin(cell, classes, images, train, where)
        clock, curve = Clock(), None
        extra = self._attention_callbacks(cell, train, epochs)
        if cell.method == "rifle":
            extra.append(callbacks.Rifle(RIFLE_CYCLES))
        if cell.curve:
            curve = _Curve(lambda: test(model))
            extra.append(curve)
        rates = keras.callbacks.LearningRateScheduler(
            lambda epoch, _: protocol.rate(epoch, cell.network, images)
        )
        if cell.head == "only":
            epochs = 0
        history = model.fit(
            train(),
            epochs=epochs,
            shuffle=False,
            recipe="none",  # the article's networks begin with a random head
            verbose="auto" if self._progress else 0,
            callbacks=[
                *(clock, rates, callbacks.TerminateOnNaN(raise_error=True)),
                *extra,
            ],
        ).history
        if model.interrupted:
            raise KeyboardInterrupt
        return model, {
            "training_accuracy": history["accuracy"][-1] if epochs else None,
            "feature_penalty": history["feature_penalty"][-1] if epochs else 0.0,
            "epochs": epochs,
            "seconds": clock.training(),
            "prepare_seconds": prepared,
            "curve": curve and curve.points,
        }

    def _attention_callbacks(self, cell, train, epochs):
        """A list; with the attention `"moving"`, of what computes it again."""
        if cell.attention != "moving":
            return []
        samples = cell.attention_samples or cell.protocol.attention_samples
        return [
            callbacks.ChannelAttentionCallback(
                train(),
                every=max(1, epochs // 3),
                max_samples=samples,
                temperature=cell.temperature,
                verbose=0,
            )
        ]

    def _test(self, model, batches, images, protocol):
        """Accuracy, loss and which test images are right."""
        if protocol.ten_crop is None:
            logits = model.predict(batches, verbose=0)
        else:
            logits = data.predict_ten_crop(model, batches, of=protocol.ten_crop)
        return measured(logits, images.labels)

    def _corrupted(self, model, test_set, name, batches):
        """Which corrupted test images are right; such as `"blur 3"`."""
        kind, _, severity = name.partition(" ")
        images, labels = data.corrupted(
            test_set, kind=kind, severity=int(severity), **batches
        )
        logits = model.predict(images.astype("float32"), TEST_BATCH, verbose=0)
        return measured(logits, labels)["correct"]

    def _sets(self, cell, size):
        """(training images, test images) of a cell."""
        train, as_test, test = self._pool(cell, size)
        if cell.per_class is not None:
            chosen = [
                p.few_shot(cell.per_class, seed=cell.seed) for p in (train, as_test)
            ]
            train, as_test = chosen
        if cell.fold is not None:
            k, folds = cell.fold
            (train, _), (_, test) = [p.folds(folds)[k] for p in (train, as_test)]
        if cell.label_noise:
            train = train.with_wrong_labels(cell.label_noise, seed=cell.seed)
        return train, test

    def _pool(self, cell, size):
        """All training images, as for training and as for a test, and the test images.

        Decoded and resized once, where that fits into the memory.
        """
        augmentation = cell.protocol.augmentation
        key = cell.dataset, size, augmentation
        if key not in self._pools:
            if len(self._pools) >= POOLS:
                self._pools.clear()
            sets = data.load(cell.dataset, self._data_dir)
            for part in ("train", "test"):
                if part not in sets:
                    raise ValueError(
                        invalid(
                            "dataset", "one with train and test images", cell.dataset
                        )
                    )
            options = {"image_size": size, "protocol": augmentation}
            pool, test = sets["train"], sets["test"]
            needed = (2 * len(pool) + len(test)) * (size * 8 // 7) ** 2 * 12
            free = memory.available()  # None where it cannot be told
            if free is not None and needed > free / 4:
                self._pools[key] = pool, pool, test
            else:
                both = pool.resized(training=(True, False), **options)
                self._pools[key] = (*both, test.resized(**options))
        return self._pools[key]


def threads():
    """Threads of an operation, which decide the order in which it adds."""
    return int(os.environ.get("TF_NUM_INTRAOP_THREADS") or os.cpu_count())


def measured(logits, labels):
    """Dict with accuracy, mean cross-entropy, and which images are right."""
    logits = np.asarray(logits, "float64")
    right = logits.argmax(-1) == labels
    top = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    loss = log_sum - logits[np.arange(len(labels)), labels]
    return {
        "accuracy": float(right.mean()),
        "loss": float(loss.mean()),
        "calibration_error": float(expected_calibration_error(logits, labels)),
        "correct": "".join(map(str, right.astype(int))),
    }


class _Curve(keras.callbacks.Callback):
    """Tests after each epoch: `points` is a list of [epoch, accuracy]."""

    def __init__(self, test):
        super().__init__()
        self._test = test

    def on_train_begin(self, logs=None):
        self.points = []

    def on_epoch_end(self, epoch, logs=None):
        self.points.append([epoch + 1, self._test()["accuracy"]])
