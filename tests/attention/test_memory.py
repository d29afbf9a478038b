"""`memory=`: how it is written, and that a computation keeps to it."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from graphs_oracle import convolves_channels_first

import keras_delta as kd
from keras_delta._network import memory
from keras_delta.attention import ChannelAttention

MIB = 2**20
# Traced graphs, and what malloc keeps of what was freed: it grows with the number of
# taps and not with the images.
ALLOWANCE = 48 * MIB


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2GB", 2 * 2**30),
        ("2 GiB", 2 * 2**30),
        ("512MiB", 512 * MIB),
        ("512mb", 512 * MIB),
        ("1.5g", 1.5 * 2**30),
        (" .5 G ", 2**29),
        ("100KB", 100 * 1024),
        ("1T", 2**40),
        ("4096", 4096),
        ("4096B", 4096),
        (1e9, 10**9),
        (10**9, 10**9),
        (np.int64(12345), 12345),
    ],
)
def test_ways_to_write_a_budget(given, expected):
    found = memory.budget(given)
    assert found == expected and type(found) is int


@pytest.mark.parametrize(
    "given",
    [
        *("", "GB", "2GBs", "2XB", "-1GB", "1,5GB", "2 G B", "0", "0GB", "1e9"),
        *(0, -1, 0.5, True, float("nan"), float("inf"), [1], {"GB": 2}, b"2GB"),
    ],
    ids=repr,
)
def test_bad_budgets(given):
    with pytest.raises(ValueError) as e:
        memory.budget(given)
    assert str(e.value) == (
        'Invalid value for argument `memory`. Expected bytes, text such as "2GB", or '
        f"None. Received: memory={given!r}"
    )


def test_the_usual_budget_leaves_most_of_what_is_free(monkeypatch):
    for free, expected in (
        (100 * 2**30, 512 * MIB),
        (2**30, 256 * MIB),
        (2**20, 16 * MIB),
        (None, 512 * MIB),
    ):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        assert memory.usual() == expected


def test_caches_of_files_count_as_free(monkeypatch):
    """After a data set was read they take most of a machine's memory."""
    if not Path("/proc/meminfo").exists():
        pytest.skip("no Linux")
    lines = dict(
        line.split(":") for line in Path("/proc/meminfo").read_text().splitlines()
    )
    available = int(lines["MemAvailable"].split()[0]) * 1024
    assert memory.available() == pytest.approx(available, rel=0.2)
    monkeypatch.setattr(memory.pathlib.Path, "read_text", lambda *args: "nothing")
    assert 0 < memory.available() <= available * 1.2


@pytest.mark.filterwarnings("ignore:The head is no better than chance")
def test_a_budget_too_small_for_one_channel(new_backbone):
    model = kd.attach_head(new_backbone(), 3)
    x = np.zeros((4, 16, 16, 3), "float32")
    with pytest.raises(ValueError) as e:
        ChannelAttention.compute(
            model, (x, np.arange(4) % 3), ["conv1", "conv0"], memory="20KB"
        )
    text = str(e.value)
    assert "The memory budget of 20.0 KiB is too small for one channel of 'conv0'" in (
        text
    )
    needed = text.partition("which takes ")[2].split(", including")[0]
    assert needed.endswith(" KiB")
    # The figure is what it takes, but for the rounding to a tenth.
    size = f"{float(needed.split()[0]) + 0.1:.1f}KB"
    found = ChannelAttention.compute(
        model, (x, np.arange(4) % 3), ["conv1", "conv0"], memory=size, progress=False
    )
    assert np.isfinite(found.scores["conv0"]).all()


def grow(budget):
    """In a process of its own: by how many bytes the largest resident size grows.

    Prints the budget, the growth, and what the maps of the batch would take at once.
    """
    size, width, count = 128, 64, 6

    def network(size):
        inputs = x = keras.Input((size, size, 3))
        for i in range(3):
            strides = 1 if i < 2 else 2
            conv = keras.layers.Conv2D(
                width, 3, strides, padding="same", use_bias=False, name=f"conv{i}"
            )
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(conv(x)))
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(5)(x))

    def compute(size, count, budget):
        x = np.random.default_rng(0).normal(size=(count, size, size, 3))
        ChannelAttention.compute(
            network(size),
            (x.astype("float32"), np.arange(count) % 5),
            ["conv1", "conv2"],
            memory=budget,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            progress=False,
        )

    def resident(name):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition(f"{name}:")[2].split()[0])

    compute(16, 4, "2MB")  # loads what is loaded once
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    compute(size, count, budget)
    print(json.dumps(resident("VmHWM") - before))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("budget", [96, 256])
def test_resident_memory_keeps_to_the_budget(budget):
    """Maps of 128 x 128 x 64, 4 MiB each; a batch's pairs would take 1.6 GiB."""
    if not convolves_channels_first():
        pytest.skip(
            "without oneDNN TensorFlow's convolutions take more than their maps"
        )
    code = f"import test_memory; test_memory.grow({budget * MIB})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**memory.os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout.splitlines()[-1])
    print(f"budget {budget} MiB, growth {growth / MIB:.0f} MiB")
    assert 0.2 * budget * MIB < growth <= budget * MIB + ALLOWANCE
