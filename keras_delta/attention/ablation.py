"""Exact scores: how much the loss rises when a channel is switched off.

The work is a list of pairs, a sample and a channel, for each batch and tap; a call
runs as many as the memory allows. Losses are compared sample by sample and summed
in float64.
"""

import contextlib
import itertools
import math
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_delta._checkpoint import Checkpoint
from keras_delta._inputs import samples
from keras_delta._network import memory
from keras_delta._network.fingerprint import digest
from keras_delta.attention.tally import Result, Tally

BATCH = 32
MOST_PAIRS = 2**16  # in a call


class Ablation:
    """Runs a network with channels switched off, on all samples.

    Args:
        network: `networks.Cut` or `networks.Whole`.
        loss: a `SampleLoss`.
        memory: bytes that the work may take besides the network; None: as usual.
        tolerance: see `ChannelAttention.compute`.
        checkpoint: a `Checkpoint`.
        state: what the checkpoint holds, if anything.
        extra: dict of further arrays for the checkpoint.
        strategy: a `tf.distribute.Strategy` over whose replicas pairs are spread.
    """

    def __init__(
        self,
        network,
        loss,
        memory,
        tolerance=None,
        checkpoint=None,
        state=None,
        extra=None,
        strategy=None,
    ):
        self.network, self.loss = network, loss
        self._memory, self._tolerance = memory, tolerance
        self._checkpoint = checkpoint or Checkpoint(None, {})
        self._extra = extra or {}
        self._strategy = strategy
        self._tallies = {t: Tally(s.channels) for t, s in network.taps.items()}
        self._done = []  # digests of the batches that are done
        self._tap, self._part = 0, None  # the tap in work, and how far it is
        self._loss = np.zeros(2)  # sum and number of the intact network's losses
        self._programs, self._batch = {}, None
        self._consistent = True
        if state is not None:
            self._restore(state)

    def run(self, data, max_samples=None, progress=True):
        """Look at all of the data, or what the checkpoint left of it.

        Args:
            data: what `samples.batches` reads.
            max_samples: look at no more than so many.
            progress: show a progress bar with the time left.

        Returns:
            A `Result`.
        """
        stream = samples.batches(data, batch_size=BATCH, max_samples=max_samples)
        first = next(stream, None)
        if first is None:
            raise ValueError("No samples: channel attention needs at least one.")
        self._fit_memory(self.network.feed(samples.take(first[0], 0, 1)))
        stream = itertools.chain([first], stream)
        bar = None
        if progress:
            expected = _expected(data, max_samples)
            batches = expected and math.ceil(expected / self._batch)
            bar = _Bar([len(t.sums) for t in self._tallies.values()], batches)
        seen, digests = [], []
        try:
            for x, y in samples.regrouped(stream, self._batch):
                if len(digests) >= len(self._done) and not self._needed():
                    break  # every score is known well enough
                targets = self.loss.targets(y)
                digests.append(digest((x, y)))
                seen.append(targets)
                if len(digests) <= len(self._done):
                    self._check_same(digests)
                else:
                    self._look_at(x, targets, digests[-1], bar)
            if len(digests) < len(self._done):
                self._check_same([*digests, "nothing"])
        except KeyboardInterrupt:
            self._interrupted()
            raise
        self._checkpoint.save(self._state, now=True)
        if bar:
            bar.close(len(digests))
        return Result.of(self._tallies, *self._loss, seen, self._done)

    def _fit_memory(self, feeds):
        """How many samples, and for each tap how many pairs, go into a call."""
        fixed, per_sample, per_pair = self.network.needs(feeds)
        if self._memory is None:
            self._memory = memory.usual() + fixed
        left = self._memory - fixed
        widest = max(per_pair, key=per_pair.get)
        if self._batch is None:
            most = min(left / 2, left - per_pair[widest])
            self._batch = max(1, min(BATCH, int(most // per_sample)))
        left -= self._batch * per_sample
        if left < per_pair[widest]:
            needed = memory.show(fixed + self._batch * per_sample + per_pair[widest])
            raise ValueError(
                f"The memory budget of {memory.show(self._memory)} is too small for "
                f"one channel of '{widest}' on {self._batch} sample(s), which takes "
                f"{needed}, copies of weights included. Pass a larger `memory`, or "
                "smaller images."
            )
        self._pairs = {
            tap: min(int(left // size), MOST_PAIRS) for tap, size in per_pair.items()
        }

    def _active(self, tap):
        return self._tallies[tap].active(self._tolerance)

    def _needed(self):
        return any(self._active(tap).any() for tap in self._tallies)

    def _look_at(self, x, targets, digest, bar):
        """One batch: all taps, from where an interruption left off."""
        size = samples.length(x)
        feeds = self.network.feed(tree.map_structure(self._padded, x))
        calls = self._calls(feeds)
        bases, outputs = calls["intact"](feeds)
        outputs = tree.map_structure(lambda v: v[:size], outputs)
        self.loss.check(targets, outputs)
        losses = self.loss(targets, outputs)
        if not np.isfinite(losses).all():
            raise ValueError(not_finite(self.network.first_not_finite(feeds)))
        for i, (tap, base) in enumerate(zip(self._tallies, bases, strict=True)):
            if i < self._tap:
                continue
            active = self._active(tap)
            if self._part is None:
                self._part = _Part(size, len(active))
            if active.any() and self.network.taps[tap].reaches:
                if bar:
                    bar.begin(len(self._done), i)
                self._look_behind(tap, calls[tap], base, active, targets, bar)
            with self._changing():
                self._tallies[tap].add(self._part.differences, active)
                self._tap, self._part = i + 1, None
            self._checkpoint.save(self._state)
        with self._changing():
            self._loss += losses.sum(), size
            self._done.append(digest)
            self._tap = 0

    def _look_behind(self, tap, call, base, active, targets, bar):
        """One tap on one batch: pairs that make a difference, channel by channel."""
        part = self._part
        size = len(part.intact)
        changes = base["changes"].numpy()[:size] & active
        channels, rows = np.nonzero(changes.T)
        rows = np.concatenate([np.arange(size), rows]).astype("int32")
        channels = np.concatenate([np.full(size, -1), channels]).astype("int32")
        while part.position < len(rows):
            now = slice(part.position, part.position + call.pairs)
            row, channel = rows[now], channels[now]
            outputs = call(base, row, channel)
            losses = self.loss([_rows(y, row) for y in targets], outputs)
            if not np.isfinite(losses).all():
                bad = channel[~np.isfinite(losses)][0]
                raise ValueError(
                    f"With channel {bad} of '{tap}' switched off the loss is not "
                    "finite. Use a loss that bounds its logarithms, or logits."
                )
            whole = channel < 0
            part.intact[row[whole]] = losses[whole]
            row, channel, losses = row[~whole], channel[~whole], losses[~whole]
            part.differences[row, channel] = losses - part.intact[row]
            part.position += len(rows[now])
            self._checkpoint.save(self._state)
            if bar:
                bar.show(part.position / len(rows))

    def _calls(self, feeds):
        """The traced computations for inputs of these shapes, each traced once."""
        key = tuple(tuple(v.shape) for v in feeds)
        if key not in self._programs:
            self._fit_memory(feeds)
            intact = traced(self.network.run_intact, feeds)
            bases, _ = intact.structured_outputs
            calls = {"intact": intact}
            for (tap, tapped), base in zip(
                self.network.taps.items(), bases, strict=True
            ):
                if tapped.reaches:
                    most = self._batch * (tapped.channels + 1)
                    calls[tap] = _Call(
                        tapped, base, self._pairs[tap], most, self._strategy
                    )
            self._programs[key] = calls
        return self._programs[key]

    def _padded(self, v):
        missing = self._batch - len(v)
        return np.concatenate([v, np.repeat(v[-1:], missing, 0)]) if missing else v

    # --- interruptions ---

    @contextlib.contextmanager
    def _changing(self):
        """Ctrl-C in here leaves what must not be written."""
        self._consistent = False
        yield
        self._consistent = True

    def _state(self):
        arrays = {**self._extra, "memory": np.array(self._memory)}
        arrays["done"] = np.array(self._done, "U32")
        arrays["loss"] = self._loss
        for i, tally in enumerate(self._tallies.values()):
            arrays.update({f"tap{i}/{k}": v for k, v in vars(tally).items()})
        arrays["tap"] = np.array(self._tap)
        if self._part is not None:
            arrays.update({f"part/{k}": v for k, v in vars(self._part).items()})
        return arrays

    def _restore(self, arrays):
        self._memory = int(arrays["memory"])  # calls of the same size: the same bits
        self._done = arrays["done"].tolist()
        self._loss = arrays["loss"]
        for i, tally in enumerate(self._tallies.values()):
            vars(tally).update({k: arrays[f"tap{i}/{k}"] for k in vars(tally)})
        self._tap = int(arrays["tap"])
        if "part/position" in arrays:
            self._part = _Part(0, 0)
            vars(self._part).update({k: arrays[f"part/{k}"] for k in vars(self._part)})
            self._part.position = int(self._part.position)

    def _check_same(self, digests):
        index = len(digests) - 1
        if digests[index] != self._done[index]:
            raise ValueError(
                f"The checkpoint '{self._checkpoint.path}' was made from other data: "
                f"batch {index} of up to {self._batch} samples differs in images, "
                "labels, types or number. Give the same samples in the same order "
                "and with the same augmentation, or pass another path."
            )

    def _interrupted(self):
        if self._consistent:
            self._checkpoint.save(self._state, now=True)
        if self._checkpoint.written:
            print(
                f"\nInterrupted. '{self._checkpoint.path}' holds what was done so far; "
                "run the same again to go on from there.",
                flush=True,
            )


class _Part:
    """One tap on one batch, while it is worked at."""

    def __init__(self, size, channels):
        self.differences = np.zeros((size, channels))
        self.intact = np.zeros(size)
        self.position = 0


class _Call:
    """Pairs of a batch through one tapped network, as many at a time as it takes.

    Args:
        tapped: a `Suffix`, or what has its interface.
        base: structure of tensors with the shapes of `Suffix.base`'s.
        fitting: number of pairs that fit into memory.
        most: number of pairs that there can be.
        strategy: spreads a call over its replicas.

    Attributes:
        pairs: number of pairs in a call.
    """

    def __init__(self, tapped, base, fitting, most, strategy):
        replicas = strategy.num_replicas_in_sync if strategy else 1
        rounds = math.ceil(most / (fitting * replicas))
        self._each = math.ceil(most / (rounds * replicas))  # calls of equal size
        self.pairs = self._each * replicas
        self._shape = (replicas, self._each)

        def run(base, rows, channels):
            if replicas == 1:
                return tapped.outputs(base, rows[0], channels[0])

            def own():
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                return tapped.outputs(base, rows[replica], channels[replica])

            results = strategy.run(own)
            return tf.nest.map_structure(
                lambda v: tf.concat(strategy.experimental_local_results(v), axis=0),
                results,
            )

        pairs = tf.TensorSpec(self._shape, "int32")
        self._run = traced(run, base, pairs, pairs)

    def __call__(self, base, rows, channels):
        """Outputs for up to `pairs` pairs, a list of arrays."""
        count = len(rows)
        padded = np.zeros((2, self.pairs), "int32")
        padded[1] = -1
        padded[:, :count] = rows, channels
        rows, channels = tf.constant(padded.reshape(2, *self._shape))
        outputs = self._run(base, rows, channels)
        return tree.map_structure(lambda v: v.numpy()[:count], outputs)


def traced(function, *arguments):
    """The function traced for tensors of these shapes, for good."""
    specs = tree.map_structure(lambda v: tf.TensorSpec(v.shape, v.dtype), arguments)
    try:
        fast = tf.function(function, autograph=False)  # half the time
        return fast.get_concrete_function(*specs)
    except tf.errors.OperatorNotAllowedInGraphError:
        # A layer with Python's `if` or `while` on tensors.
        return tf.function(function).get_concrete_function(*specs)


def _rows(y, rows):
    return y if y is None else np.asarray(y)[rows]


def not_finite(name):
    """The text of the error; `name` of the first layer that is to blame, or None."""
    where = f"layer '{name}' puts out numbers that are not" if name else "it is not"
    return (
        f"The loss is not finite on some samples: {where} finite, before any channel "
        "was switched off. Check the images, the labels and the weights."
    )


def _expected(data, max_samples):
    """Number of samples, where it is known."""
    first = tree.flatten(data[0])[0] if isinstance(data, tuple) else None
    known = [n for n in (first is not None and len(first), max_samples) if n]
    return min(known) if known else None


class _Bar:
    """Keras's progress bar over channels, with the time left."""

    def __init__(self, channels, batches):
        self._channels = channels
        target = sum(channels) * batches if batches else None
        self._bar = keras.utils.Progbar(target, unit_name="step")
        self._before = self._width = 0
        print("Channel attention:", flush=True)

    def begin(self, batches, tap):
        """Say which batch and tap comes next."""
        self._before = batches * sum(self._channels) + sum(self._channels[:tap])
        self._width = self._channels[tap]

    def show(self, part):
        """Say which part of the tap is done, 0 to 1."""
        if sys.stdout.isatty():  # a log file gets the last line alone
            done = self._before + int(part * self._width)
            self._bar.update(done, finalize=False)

    def close(self, batches):
        self._bar.update(batches * sum(self._channels), finalize=True)
