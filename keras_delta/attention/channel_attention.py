"""`ChannelAttention`: how much each channel of each tap matters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import keras
import numpy as np

from keras_delta import _disk
from keras_delta._errors import invalid
from keras_delta._types import ArrayLike, Data, Loss, Normalization, PathLike
from keras_delta.attention import files, normalize
from keras_delta.attention.compute import measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        scores: dict tap -> `(C,)`, or None if only weights are known.
        normalization: how the weights were computed from the scores.
        temperature: of that normalisation.
        samples: number of samples used, or None.
        standard_errors: dict tap -> `(C,)`, of the scores; None if unknown.
        counts: dict tap -> `(C,)`, number of samples of each score, if a
            `tolerance` let some stop early; else None.
        made_of: dict describing the computation of the scores: method, loss,
            fingerprints of network and data, versions; None if unknown.

    Attributes:
        weights, scores, standard_errors: dict tap -> float32 `(C,)`.
        perplexity, effective_channels: dict tap -> number of channels over which the
            weights are spread, absolute and as a share of C.

    Source: Li et al., "DELTA", TKDD 2021, doi 10.1145/3473912, Eq. 9 and Algorithm
    1; github.com/lixingjian/DELTA for the standardised softmax.
    """

    def __init__(
        self,
        weights: Mapping[str, ArrayLike],
        scores: Mapping[str, ArrayLike] | None = None,
        normalization: Normalization | None = "standardized",
        temperature: float | None = 5.0,
        samples: int | None = None,
        standard_errors: Mapping[str, ArrayLike] | None = None,
        counts: Mapping[str, ArrayLike] | None = None,
        made_of: Mapping[str, Any] | None = None,
    ) -> None:
        self.weights = {tap: _weights(tap, w) for tap, w in weights.items()}
        if not self.weights:
            raise ValueError(invalid("weights", "at least one tap", weights))
        self.scores = _like("scores", scores, "float32", self.weights)
        self.standard_errors = _like(
            "standard_errors", standard_errors, "float32", self.weights
        )
        self.counts = _like("counts", counts, "int64", self.weights)
        self.normalization, self.made_of = normalization, made_of
        # JSON takes no NumPy numbers.
        self.temperature = None if temperature is None else float(temperature)
        self.samples = None if samples is None else int(samples)

    @classmethod
    def compute(
        cls,
        model: keras.Model,
        data: Data,
        taps: Sequence[str] | None = None,
        *,
        max_samples: int | None = None,
        normalization: Normalization = "standardized",
        temperature: float = 5.0,
        method: Literal["exact"] = "exact",
        tolerance: float | None = None,
        memory: int | str | None = None,
        train_head: bool | Literal["auto"] = False,
        loss: Loss = None,
        checkpoint: PathLike | None = None,
        progress: bool = True,
    ) -> Self:
        """Measure the attention of a model on data (Algorithm 1).

        The scores equal those of setting the channel to zero and running the whole
        network again, up to float32 rounding of the outputs; losses are compared
        per sample and summed in float64. The model runs in inference mode and is not
        changed. Sample weights are not used. Under a `tf.distribute.MirroredStrategy`
        the work is spread over its replicas.

        Args:
            model: a `DeltaModel`, or a Functional or Sequential model with a head.
            data: data as for `fit`; read once, or twice with `train_head`.
            taps: list of layer names (for a layer called more than once, a tap
                is one call, `"conv#1"`); default: the `DeltaModel`'s, else those that
                `DeltaModel(taps="auto")` chooses.
            max_samples: number of samples at most; default: all.
            normalization: `"standardized"` (the authors' program:
                `softmax(zscore(scores) / temperature)`), `"softmax"` of the scores,
                `"softmax_of_sums"` over the samples (the article's; it mostly leaves
                a single channel), `"ratio"` of the rectified scores, `"uniform"`.
            temperature: of the softmax, default 5 as in the authors' program.
            method: `"exact"`; nothing is approximated unless requested.
            tolerance: stop a channel once its score's 95 % interval extends to each
                side by at most this many standard deviations of its tap's scores,
                after 64 samples at the earliest; None: never. With 0.5 and the
                standardised softmax, a weight is then within 10 % of its value over
                all samples in 19 of 20 cases. Needs samples in random order.
            memory: bytes that the work may use besides model and data, or text such
                as `"2GB"`; default: 512 MiB for maps (2 GiB on a GPU, at most a
                quarter of the free memory) and 2.5 times the weights behind the taps.
                It affects only the rounding of scores; but with `tolerance`, which is
                checked after each batch, a small value may stop channels earlier.
            train_head: first train a copy of the head on frozen features, as in
                Algorithm 1; `"auto"`: if the head is no better than chance.
            loss: Keras loss (a list or dict for several outputs); default: the
                compiled one, else cross-entropy as the output's activation and the
                labels suggest. A regression needs one.
            checkpoint: path of a file to which the work is saved after each batch of at
                most 32 samples. After an interruption the same call resumes from it
                with bit-identical results; a file made for another network, data,
                loss or taps is refused. The file is kept at the end.
            progress: show a progress bar with the time left.

        Returns:
            A `ChannelAttention`.

        Raises:
            TypeError: if the model is subclassed, so its graph cannot be read.
            ValueError: if taps are unknown, data have no targets or no samples, the
                loss is not finite (naming the first such layer), labels are outside
                the classes, or the budget is too small for one channel.

        Example:
            >>> attention = kd.ChannelAttention.compute(model, (x, y))
            >>> model.fit(x, y, regularizer=kd.regularizers.Delta(attention=attention))
        """
        normalize.weights([0.0, 1.0], normalization, temperature, 1)  # fail early
        result, made_of = measure(
            *(model, data, taps),
            max_samples=max_samples,
            method=method,
            tolerance=tolerance,
            memory_budget=memory,
            train_head=train_head,
            loss=loss,
            checkpoint=checkpoint,
            progress=progress,
        )
        return cls.from_scores(
            *(result.scores, normalization, temperature, result.samples),
            standard_errors=result.standard_errors,
            counts=result.counts if tolerance else None,
            made_of=made_of,
        )

    @classmethod
    def from_scores(
        cls,
        scores: Mapping[str, ArrayLike],
        normalization: Normalization = "standardized",
        temperature: float = 5.0,
        samples: int | None = None,
        **known: Any,
    ) -> Self:
        """Attention from scores, a dict tap -> `(C,)`; see `compute`.

        Warns if the weights collapse on less than a tenth of the channels: such
        attention multiplies the step of a few channels and has made training
        diverge. Also warns if they are nearly uniform although the normalisation
        is not: the attention then carries no information. (Weights from the authors'
        scores are spread over 90 to 99 % of the channels.)

        Args:
            scores: dict tap -> `(C,)`.
            normalization, temperature: see `compute`.
            samples: number of samples, required for `"softmax_of_sums"`.
            **known: further arguments of the class.
        """
        weights = {
            tap: normalize.weights(s, normalization, temperature, samples)
            for tap, s in scores.items()
        }
        attention = cls(weights, scores, normalization, temperature, samples, **known)
        normalize.warn_of_extremes(attention.weights, attention.scores, normalization)
        return attention

    @classmethod
    def from_weights(cls, weights: Mapping[str, ArrayLike]) -> Self:
        """Attention from weights, a dict tap -> `(C,)`; each is scaled to sum 1."""
        scaled = {}
        for tap, w in weights.items():
            w = np.asarray(w, "float64")
            scaled[tap] = w / w.sum() if w.ndim == 1 and w.sum() > 0 else w
        return cls(scaled, normalization=None, temperature=None)

    @classmethod
    def from_official_json(
        cls,
        path: PathLike,
        taps: Sequence[str],
        normalization: Normalization = "standardized",
        temperature: float = 5.0,
    ) -> Self:
        """Attention from the authors' `channel_wei.*.json`.

        Args:
            path: the file: a list of lists of scores, one list per tap.
            taps: the taps' names, in the same order.
            normalization: see `compute`.
            temperature: see `compute`.

        Raises:
            ValueError: if the file has another form or number of taps.
        """
        scores = files.read_official(path, taps)
        return cls.from_scores(scores, normalization, temperature)

    def to_official_json(self, path: PathLike) -> None:
        """Write the scores as the authors' program reads them: a list of lists."""
        if self.scores is None:
            raise ValueError(
                "The authors' file contains scores, but this attention was made from "
                "weights alone. Use `save`, or compute the attention."
            )
        _disk.write_json(path, [s.tolist() for s in self.scores.values()])

    def save(self, path: PathLike) -> None:
        """Write to a JSON file, atomically."""
        _disk.write_json(path, {"format": FORMAT, **self.get_config()})

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Read a file written by `save`.

        Raises:
            ValueError: if the file is damaged or of another kind.
        """
        content = files.read(path)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(files.damaged(path, "what `ChannelAttention.save` writes"))
        try:
            return cls.from_config(content)
        except (AttributeError, TypeError, ValueError, KeyError) as e:
            raise ValueError(files.damaged(path, f"sound contents ({e})")) from e

    @property
    def perplexity(self) -> dict[str, float]:
        """Dict tap -> number of channels over which the weights are spread, 1 to C."""
        return {tap: normalize.perplexity(w) for tap, w in self.weights.items()}

    @property
    def effective_channels(self) -> dict[str, float]:
        """Dict tap -> `perplexity` as a share of the channels, 1/C to 1."""
        return {tap: p / len(self.weights[tap]) for tap, p in self.perplexity.items()}

    def check_taps(self, channels: Mapping[str, int]) -> None:
        """Refuse attention that was made for other taps.

        Args:
            channels: dict tap -> number of channels in the model.

        Raises:
            ValueError: if a tap is missing or has another width, naming it.
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

    def plot(self, path: PathLike | None = None) -> "Figure":
        """Plot the distribution of the weights; see `keras_delta.attention.plot`."""
        from keras_delta.attention.plot import plot

        return plot(self, path)

    def get_config(self) -> dict[str, Any]:
        """The arguments for `from_config`, as plain numbers."""
        return {
            "weights": _lists(self.weights),
            "scores": _lists(self.scores),
            "normalization": self.normalization,
            "temperature": self.temperature,
            "samples": self.samples,
            "standard_errors": _lists(self.standard_errors),
            "counts": _lists(self.counts),
            "made_of": self.made_of,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The attention that `get_config` describes."""
        return cls(**config)

    def __repr__(self):
        taps = ", ".join(
            f"{tap}: {self.perplexity[tap]:.0f} of {len(w)}"
            for tap, w in self.weights.items()
        )
        return f"ChannelAttention(effective channels {taps})"


def _lists(arrays):
    """Plain numbers, with None for NaN, which JSON lacks."""
    if arrays is None:
        return None
    return {
        tap: [None if v != v else v for v in array.tolist()]
        for tap, array in arrays.items()
    }


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


def _like(argument, values, dtype, weights):
    """Arrays of the shapes of the weights; None for None."""
    if values is None:
        return None
    arrays = {tap: np.asarray(v, dtype) for tap, v in values.items()}
    shapes = {tap: w.shape for tap, w in weights.items()}
    received = {tap: a.shape for tap, a in arrays.items()}
    if received != shapes:
        expected = f"None, or arrays of the weights' shapes {shapes}"
        raise ValueError(invalid(argument, expected, received))
    return arrays
