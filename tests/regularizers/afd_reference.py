"""AFD again, in NumPy: slow, obvious, float64, by the authors' names of the weights.

Formulas: Ji, Heo, Park, "Show, Attend and Distill", AAAI 2021, and the program at
github.com/clovaai/attention-feature-distillation.
`sources` and `targets` are lists of maps `(B, H, W, C)`.
"""

import math

import numpy as np

from keras_delta.regularizers.afd import AFD

QUERY = "attention.linear_trans_t.query_layer"
KEY = "attention.linear_trans_s.key_layer"
BILINEAR = "attention.linear_trans_s.bilinear"


def state_shapes(source_channels, target_channels, d):
    """Dict name -> shape, as PyTorch has it: kernels are (outputs, inputs)."""
    taps = len(source_channels)
    layers = {BILINEAR: (d, taps * d)}
    layers |= {f"{QUERY}.{i}": (c, d) for i, c in enumerate(source_channels)}
    layers |= {f"{KEY}.{i}": (c, d) for i, c in enumerate(target_channels)}
    shapes = {"attention.p_t": (taps, d), "attention.p_s": (len(target_channels), d)}
    for name, (inputs, outputs) in layers.items():
        shapes[f"{name}.linear.weight"] = (outputs, inputs)
        for kind in ("linear.bias", "bn.weight", "bn.bias", "bn.running_mean"):
            shapes[f"{name}.{kind}"] = (outputs,)
        shapes[f"{name}.bn.running_var"] = (outputs,)
    return shapes


def random_state(source_channels, target_channels, d, seed=0):
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in state_shapes(source_channels, target_channels, d).items():
        value = rng.normal(size=shape)
        if name.endswith("running_var"):
            value = 0.2 + value**2
        state[name] = value.astype("float32")
        if name.endswith("running_mean"):
            counter = name.replace("running_mean", "num_batches_tracked")
            state[counter] = np.array(7)
    return state


def project(x, state, name, training):
    """BatchNormalization of a dense layer, on rows `(N, inputs)`."""
    rows = x @ state[f"{name}.linear.weight"].astype("float64").T
    rows = rows + state[f"{name}.linear.bias"]
    mean, variance = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
    if training:
        mean, variance = rows.mean(axis=0), rows.var(axis=0)
    rows = (rows - mean) / np.sqrt(variance + 1e-5)
    return rows * state[f"{name}.bn.weight"] + state[f"{name}.bn.bias"]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def attention(sources, targets, state, training):
    count, d = len(sources[0]), state["attention.p_t"].shape[1]
    queries = [
        project(m.mean(axis=(1, 2)), state, f"{QUERY}.{t}", training)
        for t, m in enumerate(sources)
    ]
    rows = np.zeros((count, len(targets), d))
    for s, m in enumerate(targets):
        key = project(m.mean(axis=(1, 2)), state, f"{KEY}.{s}", training)
        rows[:, s] = np.maximum(key, 0)
    rows = project(rows.reshape(-1, d), state, BILINEAR, training)
    result = np.zeros((count, len(sources), len(targets)))
    for b in range(count):
        for t in range(len(sources)):
            logits = []
            for s in range(len(targets)):
                key = rows[b * len(targets) + s][t * d : (t + 1) * d]
                position = state["attention.p_t"][t] @ state["attention.p_s"][s]
                logits.append((key @ queries[t][b] + position) / math.sqrt(d))
            result[b, t] = softmax(np.array(logits))
    return result


def adaptive_pool(x, height, width):
    """One array `(H, W)`, bin by bin, as PyTorch's AdaptiveAvgPool2d says."""
    pooled = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            top = math.floor(i * x.shape[0] / height)
            bottom = math.ceil((i + 1) * x.shape[0] / height)
            left = math.floor(j * x.shape[1] / width)
            right = math.ceil((j + 1) * x.shape[1] / width)
            pooled[i, j] = x[top:bottom, left:right].mean()
    return pooled


def unit(x):
    return x / max(math.sqrt((x**2).sum()), 1e-12)


def energy_distances(sources, targets):
    count = len(sources[0])
    result = np.zeros((count, len(sources), len(targets)))
    for b in range(count):
        for t, source in enumerate(sources):
            ours = (source[b].astype("float64") ** 2).mean(axis=-1)
            for s, target in enumerate(targets):
                theirs = (target[b].astype("float64") ** 2).mean(axis=-1)
                theirs = adaptive_pool(theirs, *ours.shape)
                result[b, t, s] = ((unit(theirs) - unit(ours)) ** 2).mean()
    return result


def afd(sources, targets, state, training):
    """The whole distance, before alpha."""
    weights = attention(sources, targets, state, training)
    products = weights * energy_distances(sources, targets)
    total = 0.0
    for t in range(len(sources)):
        total += products[:, t].sum(axis=-1).mean()
    return total


def kd(source, target, temperature):
    """`T^2 KL`, per sample."""
    result = []
    for s, t in zip(source, target, strict=True):
        p, q = softmax(s / temperature), softmax(t / temperature)
        result.append(
            temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        )
    return np.array(result)


# --- maps and weights for the tests ---

D = 6
# Two source taps of one size, but not next to each other; none divides all others.
SOURCE_SHAPES = {"a": (7, 5, 4), "b": (3, 3, 6), "c": (7, 5, 8)}
TARGET_SHAPES = {"x": (8, 6, 3), "y": (2, 3, 5)}
CHANNELS = (4, 6, 8), (3, 5)


def random_maps(shapes, batch=5, seed=1):
    rng = np.random.default_rng(seed)
    return {
        tap: rng.normal(size=(batch, *shape)).astype("float32")
        for tap, shape in shapes.items()
    }


SOURCE, TARGET = random_maps(SOURCE_SHAPES), random_maps(TARGET_SHAPES, seed=2)
STATE = random_state(*CHANNELS, D)


def twin(training, source=SOURCE, target=TARGET, state=STATE):
    """The distance of dicts of maps, before alpha."""
    return afd([*source.values()], [*target.values()], state, training)


def built(**kwargs):
    """An `AFD` with layers for these maps."""
    regularizer = AFD(dimension=D, **kwargs)
    regularizer.build_for(SOURCE_SHAPES, TARGET_SHAPES)
    return regularizer


def loaded(**kwargs):
    """The same with the weights of `STATE`."""
    regularizer = built(**kwargs)
    regularizer.load_official(STATE)
    return regularizer
