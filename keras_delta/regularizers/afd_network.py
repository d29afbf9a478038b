"""The meta network of AFD, which can load the weights of the authors' program."""

import math

import keras
from keras import ops

from keras_delta._errors import invalid

QUERIES = "attention.linear_trans_t.query_layer"
KEYS = "attention.linear_trans_s.key_layer"
BILINEAR = "attention.linear_trans_s.bilinear"


class Projection(keras.layers.Layer):
    """A dense layer and BatchNormalization, with PyTorch's defaults.

    Statistics are those of all replicas together, so that the number of replicas does
    not change the result.

    Args:
        inputs: length of the input vectors.
        outputs: length of the output vectors.
        name: name of the layer, and prefix of the names of its parts.
    """

    def __init__(self, inputs, outputs, name):
        super().__init__(name=name, dtype="float32")
        uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        self.dense = keras.layers.Dense(
            outputs,
            kernel_initializer=uniform,
            dtype="float32",
            name=f"{name}_dense",
        )
        self.norm = keras.layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            synchronized=True,
            dtype="float32",
            name=f"{name}_norm",
        )
        self.dense.build((None, inputs))
        self.norm.build((None, outputs))
        self.built = True

    def call(self, x, training=False):
        """`(N, inputs)` to `(N, outputs)`."""
        return self.norm(self.dense(x), training=training)


class MetaNetwork(keras.layers.Layer):
    """The layers of `AFD`: queries of the source maps, keys of the target maps.

    Args:
        source_channels: tuple of T integers.
        target_channels: tuple of S integers.
        dimension: length d of keys and queries.
    """

    def __init__(self, source_channels, target_channels, dimension):
        super().__init__(dtype="float32")
        self.source_channels = tuple(source_channels)
        self.target_channels = tuple(target_channels)
        self.dimension = d = dimension
        self.queries = [
            Projection(c, d, name=f"query_{i}") for i, c in enumerate(source_channels)
        ]
        self.keys = [
            Projection(c, d, name=f"key_{i}") for i, c in enumerate(target_channels)
        ]
        taps = len(source_channels)
        self.bilinear = Projection(d, taps * d, name="bilinear")
        self.source_positions = self._make_positions("source_positions", taps)
        taps = len(target_channels)
        self.target_positions = self._make_positions("target_positions", taps)
        self.built = True

    def _make_positions(self, name, taps):
        # Xavier normal as PyTorch draws it; Keras's GlorotNormal is truncated.
        initializer = keras.initializers.VarianceScaling(
            1.0, "fan_avg", "untruncated_normal"
        )
        return self.add_weight(
            name=name, shape=(taps, self.dimension), initializer=initializer
        )

    def attend(self, source_maps, target_maps, training):
        """Attention of each source map over the target maps.

        Args:
            source_maps, target_maps: lists of float32 maps `(B, H, W, C)`.
            training: whether BatchNormalization uses the batch.

        Returns:
            `(B, T, S)` float32.
        """
        queries = [
            layer(_global_pool(m), training=training)
            for layer, m in zip(self.queries, source_maps, strict=True)
        ]
        keys = [
            ops.relu(layer(_global_pool(m), training=training))
            for layer, m in zip(self.keys, target_maps, strict=True)
        ]
        # One normalisation over the samples and target taps together.
        keys = ops.reshape(ops.stack(keys, axis=1), (-1, self.dimension))
        keys = ops.reshape(
            self.bilinear(keys, training=training),
            (-1, len(self.keys), len(self.queries), self.dimension),
        )
        positions = self.source_positions, self.target_positions
        return attend(ops.stack(queries, axis=1), keys, *positions)

    def set_official(self, state):
        """Set all weights from arrays with the authors' names; see `AFD`."""
        variables = self._official_variables()
        missing = [name for name in variables if name not in state]
        unknown = [name for name in state if name not in variables]
        if missing or unknown:
            t, s = len(self.queries), len(self.keys)
            raise ValueError(
                invalid(
                    "state",
                    f"the authors' names for {t} source and {s} target taps",
                    list(state),
                    f"Missing: {missing or 'none'}; unknown: {unknown or 'none'}.",
                )
            )
        values = {}
        for name, variable in variables.items():
            # PyTorch stores kernels as (outputs, inputs).
            transpose = name.endswith("linear.weight")
            shape = tuple(variable.shape)[:: -1 if transpose else 1]
            if state[name].shape != shape:
                expected = f"an array of shape {shape}"
                received = state[name].shape
                raise ValueError(invalid(f"state[{name!r}]", expected, received))
            values[name] = state[name].T if transpose else state[name]
        for name, variable in variables.items():
            variable.assign(values[name])

    def _official_variables(self):
        """Dict, name in the authors' state dict -> variable."""
        projections = {BILINEAR: self.bilinear}
        for prefix, layers in ((KEYS, self.keys), (QUERIES, self.queries)):
            projections |= {f"{prefix}.{i}": layer for i, layer in enumerate(layers)}
        variables = {
            "attention.p_t": self.source_positions,
            "attention.p_s": self.target_positions,
        }
        for name, projection in projections.items():
            dense, norm = projection.dense, projection.norm
            variables |= {
                f"{name}.linear.weight": dense.kernel,
                f"{name}.linear.bias": dense.bias,
                f"{name}.bn.weight": norm.gamma,
                f"{name}.bn.bias": norm.beta,
                f"{name}.bn.running_mean": norm.moving_mean,
                f"{name}.bn.running_var": norm.moving_variance,
            }
        return variables


def infer_network(state):
    """A `MetaNetwork` with the taps, channels and dimension of the authors' arrays.

    Its weights are not set yet.
    """
    source, target = (_infer_kernels(state, prefix) for prefix in (QUERIES, KEYS))
    channels = ([int(k.shape[1]) for k in kernels] for kernels in (source, target))
    return MetaNetwork(*channels, dimension=int(source[0].shape[0]))


def _infer_kernels(state, prefix):
    kernels = []
    while (name := f"{prefix}.{len(kernels)}.linear.weight") in state:
        kernels.append(state[name])
        if kernels[-1].ndim != 2:
            expected = "an array of shape (dimension, channels)"
            received = kernels[-1].shape
            raise ValueError(invalid(f"state[{name!r}]", expected, received))
    if not kernels:
        expected = f"the authors' names, {name!r} among them"
        raise ValueError(invalid("state", expected, list(state)))
    return kernels


def attend(queries, keys, source_positions, target_positions):
    """Attention of source taps over target taps.

    `softmax_s((<keys_st, queries_t> + <source_positions_t, target_positions_s>) /
    sqrt(d))`.

    Args:
        queries: `(B, T, d)`.
        keys: `(B, S, T, d)`.
        source_positions: `(T, d)`.
        target_positions: `(S, d)`.

    Returns:
        `(B, T, S)`.
    """
    positions = ops.matmul(source_positions, ops.transpose(target_positions))
    logits = ops.einsum("bstd,btd->bts", keys, queries) + positions
    logits = logits / math.sqrt(queries.shape[-1])
    # Keras's softmax warns where there is a single tap to choose from.
    return ops.exp(logits - ops.logsumexp(logits, axis=-1, keepdims=True))


def _global_pool(feature_map):
    return ops.mean(feature_map, axis=(1, 2))
