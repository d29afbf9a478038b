"""Amplitudes and phases of feature maps, per sample and channel. Pure functions.

Everything is float32 for maps of any precision: half precision holds neither the sums
nor the phases. The maps are real, so half of the frequencies determine the other half,
and only these are computed (`rfft2d`).
"""

import numpy as np
import tensorflow as tf
from keras import ops

EPSILON = 1e-5
PI = np.float32(np.pi)  # what `arctan2` returns


def compute_phase(maps, epsilon=EPSILON):
    """Computes the phases of feature maps.

    `phase = atan2(Im, Re)` of the discrete Fourier transform over height and width,
    with `epsilon` in place of a real part between `-epsilon` and `epsilon`.

    Frequencies whose transform is real by symmetry (the mean, for one) have a phase of
    exactly 0 or pi. Without this rule, the sign of a rounding error would choose
    between pi and -pi, the largest difference that phases can have.

    A frequency whose power is below `epsilon` passes no gradient. The derivative of
    `atan2` reaches `1 / epsilon` there, which overflows in half precision.

    Args:
        maps: `(B, H, W, C)`.
        epsilon: the smallest magnitude of a real part.

    Returns:
        `(B, H, W, C)` float32, above -pi and up to pi. Position `[k, l]` belongs to the
        frequency of `k` waves over the height and `l` over the width.
    """
    width = ops.shape(maps)[2]
    phase = _phase(_transform(maps), width, epsilon)
    return _channels_last(_all_columns(phase, width), maps)


def blend_amplitudes(maps, adapted, weights, epsilon=EPSILON):
    """Keeps the phases of feature maps and changes their amplitudes.

    `amplitude = weights[0] * A(adapted) + weights[1] * A(maps)`, where
    `A = sqrt(max(Re^2 + Im^2, epsilon))`, and the output is the inverse transform of
    `amplitude * exp(i * phase(maps))`.

    Args:
        maps: `(B, H, W, C)`.
        adapted: maps of the same shape that contribute their amplitudes.
        weights: `(2,)`, of `adapted` and of `maps`.
        epsilon: the smallest power, and as in `compute_phase`.

    Returns:
        Tuple of the new maps and the phases of `maps`, both `(B, H, W, C)` float32.
    """
    height, width = ops.shape(maps)[1:3]
    spectrum = _transform(maps)
    phase = _phase(spectrum, width, epsilon)
    amplitude = weights[0] * _amplitude(_transform(adapted), epsilon)
    amplitude += weights[1] * _amplitude(spectrum, epsilon)
    spectrum = tf.complex(amplitude * ops.cos(phase), amplitude * ops.sin(phase))
    output = tf.signal.irfft2d(spectrum, fft_length=[height, width])
    phase = _all_columns(phase, width)
    return _channels_last(output, maps), _channels_last(phase, maps)


def _transform(maps):
    """`(B, C, H, W // 2 + 1)` complex64 of `(B, H, W, C)`, not normalised."""
    maps = ops.transpose(ops.cast(maps, "float32"), (0, 3, 1, 2))
    return tf.signal.rfft2d(maps)


def _channels_last(x, maps):
    """Transposes back, and restores known sizes, which `irfft2d` forgets."""
    return ops.reshape(ops.transpose(x, (0, 2, 3, 1)), ops.shape(maps))


def _power(spectrum):
    return ops.square(tf.math.real(spectrum)) + ops.square(tf.math.imag(spectrum))


def _amplitude(spectrum, epsilon):
    return ops.sqrt(ops.maximum(_power(spectrum), epsilon))


def _phase(spectrum, width, epsilon):
    real, imag = tf.math.real(spectrum), tf.math.imag(spectrum)
    imag = ops.where(_is_real(spectrum, width), 0.0, imag)
    imag = ops.where(_power(spectrum) < epsilon, ops.stop_gradient(imag), imag)
    return ops.arctan2(imag, ops.where(ops.abs(real) < epsilon, epsilon, real))


def _is_real(spectrum, width):
    """Whether a frequency is its own mirror image, a mask of `(H, W // 2 + 1)`."""
    height, columns = ops.shape(spectrum)[2:]
    rows = 2 * ops.arange(height) % height == 0
    return rows[:, None] & (2 * ops.arange(columns) % width == 0)


def _all_columns(phase, width):
    """Completes `W // 2 + 1` columns to `W`: `phase[-k, -l] = -phase[k, l]`.

    -pi becomes pi, so that a negative real number has one phase.
    """
    mirrored = ops.flip(phase[..., 1 : (width + 1) // 2], axis=(2, 3))
    phase = ops.concatenate([phase, -ops.roll(mirrored, 1, axis=2)], axis=3)
    return ops.where(phase <= -PI, phase + 2 * PI, phase)
