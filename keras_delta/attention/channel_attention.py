"""`ChannelAttention`: how much each channel of each tap matters."""

import json
import os
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import tree

from keras_delta import labels, samples
from keras_delta.attention import ablation, normalize
from keras_delta.attention.head_fit import HeadFit
from keras_delta.errors import invalid
from keras_delta.graph import Graph
from keras_delta.heads import head_layers, output_activation
from keras_delta.taps import auto, check

FORMAT = "keras_delta.ChannelAttention/1"


@keras.saving.register_keras_serializable("keras_delta")
class ChannelAttention:
    """Scores and weights of the channels of tapped layers.

    The score of channel j is the mean increase of the loss when the channel is set
    to zero (the article's Eq. 9; the listing of Algorithm 1 has the opposite sign).
    The weights, non-negative and of sum 1 in each tap, are a normalisation of the
    scores.

    Make one with `compute`, `from_scores`, `from_weights`, `from_official_json` or
    `load`.

    Args:
        weights: dict tap -> `(C,)` non-negative, sum 1.
        scores: dict tap -> `(C,)`, or None where only weights are known.
        normalization: how the weights came from the scores.
        temperature: of that normalisation.
        samples: number of samples the scores are means of, or None.

    Attributes:
        weights, scores: dict tap -> float32 `(C,)`.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Eq. 9 and Algorithm
    1; github.com/lixingjian/DELTA for the standardised softmax.
    """

    def __init__(
        self,
        weights,
        scores=None,
        normalization="standardized",
        temperature=5.0,
        samples=None,
    ):
        self.weights = {tap: _weights(tap, w) for tap, w in weights.items()}
        if not self.weights:
            raise ValueError(invalid("weights", "at least one tap", weights))
        self.scores = (
            None
            if scores is None
            else {tap: np.asarray(s, "float32") for tap, s in scores.items()}
        )
        self.normalization, self.temperature = normalization, temperature
        self.samples = samples

    @classmethod
    def compute(
        cls,
        model,
        data,
        taps=None,
        *,
        max_samples=None,
        normalization="standardized",
        temperature=5.0,
        progress=True,
        train_head=False,
        loss=None,
    ):
        """Measure the attention of a model on data (Algorithm 1).

        Exact: the scores are what setting the channel to zero and running the whole
        network again would give, up to float32 rounding of the outputs; losses are
        taken and compared per sample in float64. Only what lies behind a tap is run
        again, for many channels at once. The model runs in inference mode and is
        not changed.

        Args:
            model: a `DeltaModel`, or a Functional or Sequential classifier.
            data: what `fit` takes: `(x, y)`, a `tf.data.Dataset`, a `PyDataset`.
                Read once, twice with `train_head`.
            taps: list of layer names; default: the `DeltaModel`'s taps, else as
                `DeltaModel(taps="auto")` chooses.
            max_samples: look at no more than so many; default: all.
            normalization: `"standardized"` (the authors' program:
                `softmax(zscore(scores) / temperature)`), `"softmax"`, `"ratio"` of
                the rectified scores, `"uniform"`.
            temperature: of the softmax, default 5 as in the authors' program.
            progress: show a progress bar with the time left.
            train_head: train a copy of the head on frozen features first, as
                Algorithm 1 says. `"auto"`: where the head is no better than
                chance. With False such a head gets a warning.
            loss: Keras loss; default: the one the model was compiled with, else
                cross-entropy as the output's activation and the labels suggest.

        Returns:
            A `ChannelAttention`.

        Raises:
            ValueError: for unknown taps, data without targets, no samples, a loss
                that is not finite, labels outside the classes.
        """
        if train_head not in (True, False, "auto"):
            raise ValueError(invalid("train_head", 'True, False or "auto"', train_head))
        samples.check_count("max_samples", max_samples)
        graph = Graph(getattr(model, "target", model))
        taps = _taps(model, graph, taps)
        normalize.weights([0.0, 1.0], normalization, temperature)  # fail early
        loss = _loss(model, graph, loss, data)
        per_sample = ablation.per_sample_loss(loss)
        call = None
        if train_head:
            head = HeadFit(graph, _head(model, graph), data, max_samples)
            intact = per_sample(head.labels, head.outputs()).mean()
            if train_head is True or _poor(intact, head.labels, loss):
                call = head.train(loss)
        result = ablation.scores(
            graph, taps, data, per_sample, call, max_samples, progress
        )
        if _poor(result.loss, result.labels, loss):
            remedy = (
                "Training a copy of the head on these features did not help: check "
                "the labels, or use `attention='uniform'`."
                if call
                else "Pass `train_head=True` to train a copy of the head first."
            )
            warnings.warn(
                f"The head is no better than chance (loss {result.loss:.3f}, best "
                f"constant prediction {labels.chance(result.labels, loss):.3f}), so "
                f"these scores say little about which channels matter. {remedy}",
                stacklevel=2,
            )
        return cls.from_scores(
            result.scores, normalization, temperature, samples=result.count
        )

    @classmethod
    def from_scores(
        cls, scores, normalization="standardized", temperature=5.0, samples=None
    ):
        """Attention from scores, a dict tap -> `(C,)`; see `compute`."""
        weights = {
            tap: normalize.weights(s, normalization, temperature)
            for tap, s in scores.items()
        }
        return cls(weights, scores, normalization, temperature, samples)

    @classmethod
    def from_weights(cls, weights):
        """Attention from weights, a dict tap -> `(C,)`; each is scaled to sum 1."""
        scaled = {}
        for tap, w in weights.items():
            w = np.asarray(w, "float64")
            scaled[tap] = w / w.sum() if w.ndim == 1 and w.sum() > 0 else w
        return cls(scaled, normalization=None, temperature=None)

    @classmethod
    def from_official_json(
        cls, path, taps, normalization="standardized", temperature=5.0
    ):
        """Attention from the authors' `channel_wei.*.json`.

        Args:
            path: the file: a list of lists of scores, one list a tap.
            taps: the taps' names, in the same order.
            normalization: see `compute`.
            temperature: see `compute`.

        Raises:
            ValueError: for a file of another form, or another number of taps.
        """
        lists = _read(path)
        if not isinstance(lists, list) or not all(
            isinstance(v, list) and all(isinstance(s, (int, float)) for s in v)
            for v in lists
        ):
            raise ValueError(_corrupt(path, "a list of lists of numbers"))
        if len(lists) != len(taps):
            raise ValueError(
                invalid("taps", f"{len(lists)} names, one a list in '{path}'", taps)
            )
        scores = dict(zip(taps, lists, strict=True))
        return cls.from_scores(scores, normalization, temperature)

    def save(self, path):
        """Write to a JSON file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"format": FORMAT, **self.get_config()})
        # Not `tempfile`, whose files nobody else may read.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(content, encoding="utf-8")
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path):
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is damaged or something else.
        """
        content = _read(path)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(_corrupt(path, "what `ChannelAttention.save` writes"))
        try:
            return cls.from_config(content)
        except (AttributeError, TypeError, ValueError, KeyError) as e:
            raise ValueError(_corrupt(path, f"sound contents ({e})")) from e

    @property
    def perplexity(self):
        """Dict tap -> over how many channels the weights are spread, 1 to C."""
        return {tap: normalize.perplexity(w) for tap, w in self.weights.items()}

    def check_taps(self, channels):
        """Refuse attention that was made for other taps.

        Args:
            channels: dict tap -> number of channels, as the model has them.

        Raises:
            ValueError: naming the taps that are missing or have another width.
        """
        for tap, count in channels.items():
            if tap not in self.weights:
                raise ValueError(
                    f"The attention has no weights for the tap '{tap}': it was made "
                    f"for {list(self.weights)}. Compute it for this model's taps, or "
                    f"pass `taps={list(self.weights)}` to the DeltaModel."
                )
            if len(self.weights[tap]) != count:
                raise ValueError(
                    f"The attention has {len(self.weights[tap])} weights for the tap "
                    f"'{tap}', but its map has {count} channels: it was made for "
                    "another network. Compute it for this one."
                )

    def plot(self, path=None):
        """Plot the distribution of the weights; see `keras_delta.attention.plot`."""
        from keras_delta.attention.plot import plot  # matplotlib loads slowly

        return plot(self, path)

    def get_config(self):
        """What `from_config` needs, as plain numbers."""
        scores = self.scores
        return {
            "weights": {tap: w.tolist() for tap, w in self.weights.items()},
            "scores": scores and {tap: s.tolist() for tap, s in scores.items()},
            "normalization": self.normalization,
            "temperature": self.temperature,
            "samples": self.samples,
        }

    @classmethod
    def from_config(cls, config):
        """The attention that `get_config` describes."""
        return cls(**config)

    def __repr__(self):
        taps = ", ".join(
            f"{tap}: {self.perplexity[tap]:.0f} of {len(w)}"
            for tap, w in self.weights.items()
        )
        return f"ChannelAttention(effective channels {taps})"


def _weights(tap, weights):
    w = np.asarray(weights, "float32")
    if w.ndim != 1 or w.size == 0 or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError(
            invalid(
                f"weights['{tap}']",
                "a vector of non-negative finite numbers",
                np.asarray(weights).tolist(),
            )
        )
    if not np.isclose(w.sum(dtype="float64"), 1, atol=1e-3):
        raise ValueError(invalid(f"weights['{tap}']", "a sum of 1", float(w.sum())))
    return w


def _read(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(_corrupt(path, f"JSON ({e})")) from e


def _corrupt(path, expected):
    return (
        f"The attention file '{path}' cannot be used: expected {expected}. It is "
        "damaged or of another kind; compute the attention again."
    )


def _taps(model, graph, taps):
    if taps is None:
        return list(getattr(model, "taps", None) or auto(graph))
    taps = [taps] if isinstance(taps, str) else list(taps)
    for tap in taps:
        check(tap, graph)
    return taps


def _head(model, graph):
    pairing = getattr(model, "pairing", None)
    return (pairing and pairing.new_layers) or head_layers(graph)


def _loss(model, graph, loss, data):
    loss = loss if loss is not None else getattr(model, "loss", None)
    if len(tree.flatten(graph.outputs)) != 1 or isinstance(loss, (dict, list, tuple)):
        raise ValueError(
            "Channel attention needs one loss, but the model has "
            f"{len(tree.flatten(graph.outputs))} outputs. Pass a model with the one "
            "output that matters: `keras.Model(model.inputs, model.outputs[0])`."
        )
    if loss is not None:
        return keras.losses.get(loss) if isinstance(loss, str) else loss
    activation = output_activation(graph)
    if activation not in ("softmax", "linear"):
        raise ValueError(
            "Cannot tell the loss of a model whose output activation is "
            f"{activation!r}. Pass `loss=`, or compile the model first."
        )
    _, y = next(samples.batches(data, max_samples=1), (None, None))
    if y is None:
        raise ValueError("No samples: channel attention needs at least one.")
    width = tree.flatten(graph.outputs)[0].shape[-1]
    dense = np.ndim(y) > 1 and np.shape(y)[-1] == width
    kind = (
        keras.losses.CategoricalCrossentropy
        if dense
        else keras.losses.SparseCategoricalCrossentropy
    )
    return kind(from_logits=activation == "linear")


def _poor(mean_loss, y, loss):
    level = labels.chance(y, loss)
    return level is not None and not mean_loss < level
