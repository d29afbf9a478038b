"""The penalties again, in NumPy: slow, obvious, float64, one sum at a time.

`source` and `target` are maps `(B, H, W, C)`; kernels are `(kh, kw, Cin, Cout)`.
Formulas: Li et al., "DELTA", TKDD 2021, and github.com/lixingjian/DELTA.
"""

import numpy as np


def p(n):
    i = np.arange(n)
    return (i**2 % 11) / 10 - 0.5


def g(n):
    i = np.arange(n)
    return (7 * i % 13) / 10 - 0.5


TARGET_MAP = p(60).reshape(3, 2, 2, 5)
SOURCE_MAP = g(60).reshape(3, 2, 2, 5)
KERNEL = p(20).reshape(1, 2, 2, 5)
STARTING_KERNEL = g(20).reshape(1, 2, 2, 5)
SCORES = np.array([-0.2, 0.3, 0.1, -0.3, 0.0])
HEAD = np.arange(6) / 10
UNIFORM = np.full(5, 1 / 5)


def half_sum_of_squares(tensors):
    total = 0.0
    for t in tensors:
        for value in np.asarray(t, "float64").ravel():
            total += value * value / 2
    return total


def head_penalty(tensors, variant):
    """`1/2 ||w||^2` in the program, `||w||^2` in the article (Eq. 7)."""
    return half_sum_of_squares(tensors) * (2 if variant == "article" else 1)


def l2_sp(pairs):
    """`1/2 ||w - w*||^2` over pairs (w, w*)."""
    return half_sum_of_squares(
        np.asarray(w, "float64") - np.asarray(start, "float64") for w, start in pairs
    )


def l2_sp_att(kernels, others):
    """Kernels as (K, K*, weights); `others` as pairs."""
    total = l2_sp(others)
    for kernel, start, weights in kernels:
        channels = kernel.shape[-1]
        for j in range(channels):
            filter_pair = (kernel[..., j], start[..., j])
            total += channels * weights[j] * l2_sp([filter_pair])
    return total


def channel_distances(source, target):
    b, height, width, c = target.shape
    d = np.zeros((b, c))
    for i in range(b):
        for j in range(c):
            for y in range(height):
                for x in range(width):
                    difference = float(target[i, y, x, j]) - float(source[i, y, x, j])
                    d[i, j] += difference**2
    return d


def mean_square(source):
    """`E_l`: mean of the squared map over samples, positions and channels."""
    return (np.asarray(source, "float64") ** 2).mean()


def feature_map(source, target, variant, scale=None):
    """One tap of DELTA without attention."""
    d = channel_distances(source, target)
    b, height, width, c = target.shape
    if variant == "code":
        return d.sum() / 2
    if variant == "article":
        return d.sum() / b
    return d.sum() / (b * c * height * width) / scale


def delta(source, target, weights, variant, scale=None):
    """One tap of DELTA with attention."""
    d = channel_distances(source, target)
    b, height, width, c = target.shape
    total = 0.0
    for i in range(b):
        for j in range(c):
            total += weights[j] * d[i, j]
    if variant == "code":
        return total * c / (2 * height * width)
    if variant == "article":
        return total / b
    return total / (b * height * width) / scale


def softmax(scores, temperature=1.0):
    e = np.exp(np.asarray(scores, "float64") / temperature)
    return e / e.sum()


def standardized(scores, temperature=5.0):
    scores = np.asarray(scores, "float64")
    z = (scores - scores.mean()) / scores.std()
    return softmax(z, temperature)
