"""The layers of 4Ds again, in NumPy: slow, float64."""

import numpy as np


def dft(x):
    """`X[k, l] = sum_hw x[h, w] e^(-2 pi i (k h / H + l w / W))` of (B, H, W, C)."""
    _, height, width, _ = x.shape
    found = np.zeros(x.shape, "complex128")
    for k in range(height):
        for l in range(width):  # noqa: E741
            for h in range(height):
                for w in range(width):
                    turn = k * h / height + l * w / width
                    found[:, k, l] += x[:, h, w] * np.exp(-2j * np.pi * turn)
    found.imag[np.abs(found.imag) < 1e-9] = 0.0  # rounding
    return found


def inverse_dft(spectrum):
    conjugate = np.conj(dft_of_complex(np.conj(spectrum)))
    return conjugate.real / (spectrum.shape[1] * spectrum.shape[2])


def dft_of_complex(x):
    return dft(x.real) + 1j * dft(x.imag)


def decompose(x):
    spectrum = dft(np.asarray(x, "float64"))
    real, imag = spectrum.real.copy(), spectrum.imag
    power = real**2 + imag**2
    power[power < 1e-5] = 1e-5
    real[np.abs(real) < 1e-5] = 1e-5
    return np.sqrt(power), np.arctan2(imag, real)


def blend_in_numpy(x, adapted, mixture):
    amplitude, phase = decompose(x)
    exps = np.exp(np.asarray(mixture) / 0.1)
    share = exps / exps.sum()
    amplitude = share[0] * decompose(adapted)[0] + share[1] * amplitude
    return inverse_dft(amplitude * np.exp(1j * phase)), phase


def batch_norm(x, state, name, training):
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = (x - mean) / np.sqrt(variance + 1e-5)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def adapt_in_numpy(x, state, training):
    """The convolutions: (C_out, C_in, 1, 1) as PyTorch has them."""
    x = np.einsum("bhwc,dc->bhwd", x, state["fc.0.weight"][:, :, 0, 0])
    x = np.maximum(batch_norm(x, state, "fc.1", training), 0)
    x = np.einsum("bhwc,dc->bhwd", x, state["fc.3.weight"][:, :, 0, 0])
    return batch_norm(x, state, "fc.4", training)


def pool_in_numpy(x, size):
    """As PyTorch's AdaptiveAvgPool2d: from floor(i n / m) up to ceil((i + 1) n / m)."""
    x = np.asarray(x, "float64")
    height, width = x.shape[1:3]
    found = np.zeros((len(x), *size, x.shape[-1]))
    for i in range(size[0]):
        top, bottom = i * height // size[0], -(-(i + 1) * height // size[0])
        for j in range(size[1]):
            left, right = j * width // size[1], -(-(j + 1) * width // size[1])
            found[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    return found


def gate_in_numpy(source, state):
    pooled = np.asarray(source, "float64").mean((1, 2))
    inner = np.maximum(pooled @ state["fc.0.weight"].T, 0)
    return 1 / (1 + np.exp(-inner @ state["fc.2.weight"].T))


def loss_in_numpy(source, target, gate):
    total = 0.0
    difference = np.asarray(target, "float64") - np.asarray(source, "float64")
    for b in range(len(difference)):
        for j in range(difference.shape[-1]):
            total += np.sum((gate[b, j] * difference[b, ..., j]) ** 2)
    return total / difference.size
