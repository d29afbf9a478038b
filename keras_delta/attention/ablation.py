"""Exact scores: how much the loss rises when a channel is switched off.

For each batch and tap the work is a list of pairs of a sample and a channel; a call
runs as many pairs as fit into memory. Losses are compared sample by sample and summed
in float64.
"""

import itertools
import math
import sys

import keras
import numpy as np
from keras import tree

from keras_delta._checkpoint import Checkpoint
from keras_delta._inputs import samples
from keras_delta._network import memory
from keras_delta._network.fingerprint import digest
from keras_delta.attention.calls import Call, trace
from keras_delta.attention.tally import Progress

BATCH = 32
MOST_PAIRS = 2**16  # in a call


class Ablation:
    """Runs a network with channels switched off, on all samples.

    Args:
        network: a `CutNetwork`.
        loss: a `SampleLoss`.
        memory: bytes that the work may use besides the network; None: the default.
        tolerance: see `ChannelAttention.compute`.
        checkpoint: a `Checkpoint`, written after batches.
        state: contents of the checkpoint, if any.
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
        self._calls, self._batch = {}, None
        if state is None:
            channels = {tap: s.channels for tap, s in network.taps.items()}
            self._progress = Progress.of_nothing(channels)
        else:
            self._memory = int(state["memory"])  # calls of the same size: the same bits
            self._progress = Progress.from_arrays(state, network.taps)

    def run(self, data, max_samples=None, progress=True):
        """Process all data, or those that the checkpoint has not covered.

        Args:
            data: any data that `samples.batches` reads.
            max_samples: number of samples at most.
            progress: show a progress bar with the time left.

        Returns:
            A `Progress`, and the targets of all batches: a list of lists.
        """
        stream = samples.batches(data, batch_size=BATCH, max_samples=max_samples)
        first = next(stream, None)
        if first is None:
            raise ValueError("No samples: channel attention needs at least one.")
        self._fit_memory(self.network.feed(samples.take(first[0], 0, 1)))
        bar = _Bar(self._progress.tallies, data, max_samples, self._batch, progress)
        try:
            targets = self._look_at_all(itertools.chain([first], stream), bar)
        except KeyboardInterrupt:
            self._checkpoint.save(self._arrays, now=True)
            if self._checkpoint.written:
                print(
                    f"\nInterrupted. '{self._checkpoint.path}' contains the finished "
                    "batches; run the same call again to resume.",
                    flush=True,
                )
            raise
        self._checkpoint.save(self._arrays, now=True)
        bar.close(len(targets))
        return self._progress, targets

    def _look_at_all(self, stream, bar):
        """Work through the batches; returns their targets, a list."""
        seen = []
        before = self._progress.done
        for x, y in samples.regrouped(stream, self._batch):
            if len(seen) >= len(before) and not self._needs_more():
                return seen  # every score is known well enough
            targets = self.loss.targets(y)
            mark = digest((x, y))
            if len(seen) < len(before):
                self._check_same(len(seen), mark)
            else:
                self._progress = self._after(x, targets, mark, bar)
                self._checkpoint.save(self._arrays)
            seen.append(targets)
        if len(seen) < len(before):
            self._check_same(len(seen), "nothing")
        return seen

    def _fit_memory(self, feeds):
        """Set how many samples, and for each tap how many pairs, go into a call."""
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
                f"{needed}, including copies of weights. Pass a larger `memory`, or "
                "smaller images."
            )
        self._pairs = {
            tap: min(int(left // size), MOST_PAIRS) for tap, size in per_pair.items()
        }

    def _needs_more(self):
        tallies = self._progress.tallies.values()
        return any(tally.active(self._tolerance).any() for tally in tallies)

    def _after(self, x, targets, mark, bar):
        """The progress after one more batch, with all its taps."""
        size = samples.length(x)
        feeds = self.network.feed(tree.map_structure(self._padded, x))
        calls = self._calls_for(feeds)
        bases, outputs = calls["intact"](feeds)
        outputs = tree.map_structure(lambda v: v[:size], outputs)
        self.loss.check(targets, outputs)
        losses = self.loss(targets, outputs)
        if not np.isfinite(losses).all():
            raise ValueError(_not_finite(self.network.first_not_finite(feeds)))
        before, tallies = self._progress, {}
        for base, (tap, tally) in zip(bases, before.tallies.items(), strict=True):
            active = tally.active(self._tolerance)
            differences = np.zeros((size, len(active)))
            if active.any() and tap in calls:
                bar.begin(len(before.done), tap)
                changes = base["changes"].numpy()[:size] & active
                self._compare(tap, calls[tap], base, changes, targets, differences, bar)
            tallies[tap] = tally.add(differences, active)
        loss = before.loss + np.array([losses.sum(), size])
        return Progress(tallies, loss, [*before.done, mark])

    def _compare(self, tap, call, base, changes, targets, differences, bar):
        """Write the loss increases of one tap and batch into `differences`.

        Only for pairs that make a difference, `changes`, channel by channel; the
        intact network's losses come first, through the same call.
        """
        size = len(changes)
        channels, rows = np.nonzero(changes.T)
        rows = np.concatenate([np.arange(size), rows]).astype("int32")
        channels = np.concatenate([np.full(size, -1), channels]).astype("int32")
        intact = np.zeros(size)
        for start in range(0, len(rows), call.pairs):
            row = rows[start : start + call.pairs]
            channel = channels[start : start + call.pairs]
            outputs = call(base, row, channel)
            losses = self.loss([_rows(y, row) for y in targets], outputs)
            if not np.isfinite(losses).all():
                bad = channel[~np.isfinite(losses)][0]
                raise ValueError(
                    f"With channel {bad} of '{tap}' switched off, the loss is not "
                    "finite. Use a loss that bounds its logarithms, or logits."
                )
            whole = channel < 0
            intact[row[whole]] = losses[whole]
            row, channel, losses = row[~whole], channel[~whole], losses[~whole]
            differences[row, channel] = losses - intact[row]
            bar.show((start + call.pairs) / len(rows))

    def _calls_for(self, feeds):
        """The traced computations for inputs of these shapes, each traced once."""
        key = tuple(tuple(v.shape) for v in feeds)
        if key not in self._calls:
            self._fit_memory(feeds)
            intact = trace(self.network.run_intact, feeds)
            bases, _ = intact.structured_outputs
            calls = {"intact": intact}
            for base, (tap, s) in zip(bases, self.network.taps.items(), strict=True):
                if s.reaches:
                    most = self._batch * (s.channels + 1)
                    calls[tap] = Call(s, base, self._pairs[tap], most, self._strategy)
            self._calls[key] = calls
        return self._calls[key]

    def _padded(self, v):
        missing = self._batch - len(v)
        return np.concatenate([v, np.repeat(v[-1:], missing, 0)]) if missing else v

    def _arrays(self):
        memory = {"memory": np.array(self._memory)}
        return {**self._extra, **memory, **self._progress.as_arrays()}

    def _check_same(self, index, mark):
        if mark != self._progress.done[index]:
            raise ValueError(
                f"The checkpoint '{self._checkpoint.path}' was made from other data: "
                f"batch {index} of up to {self._batch} samples differs in images, "
                "labels, types or number. Pass the same samples in the same order "
                "and with the same augmentation, or pass another path."
            )


def _rows(y, rows):
    return y if y is None else np.asarray(y)[rows]


def _not_finite(name):
    """The text of the error; `name`: the first layer responsible, or None."""
    where = f"layer '{name}' outputs numbers that are not" if name else "it is not"
    return (
        f"The loss is not finite on some samples: {where} finite, before any channel "
        "was switched off. Check the images, the labels and the weights."
    )


class _Bar:
    """Keras's progress bar over channels, with the time left; silent if asked to."""

    def __init__(self, tallies, data, max_samples, batch, shown):
        self._channels = {tap: len(tally.sums) for tap, tally in tallies.items()}
        self._all = sum(self._channels.values())
        self._before = self._width = 0
        self._bar = None
        if shown:
            count = _number_of_samples(data, max_samples)
            target = count and self._all * math.ceil(count / batch)
            self._bar = keras.utils.Progbar(target, unit_name="step")
            print("Channel attention:", flush=True)

    def begin(self, batches, tap):
        """Set the next batch and tap."""
        taps = list(self._channels)
        before = sum(self._channels[t] for t in taps[: taps.index(tap)])
        self._before = batches * self._all + before
        self._width = self._channels[tap]

    def show(self, part):
        """Show which part of the tap is done, 0 to 1."""
        if self._bar and sys.stdout.isatty():  # a log file gets only the last line
            done = self._before + int(min(part, 1) * self._width)
            self._bar.update(done, finalize=False)

    def close(self, batches):
        """Show that all is done."""
        if self._bar:
            self._bar.update(batches * self._all, finalize=True)


def _number_of_samples(data, max_samples):
    """The number of samples if known, else None."""
    first = tree.flatten(data[0])[0] if isinstance(data, tuple) else None
    known = [n for n in (first is not None and len(first), max_samples) if n]
    return min(known) if known else None
