"""A computation that is interrupted, at any moment, goes on to the same bits."""

import contextlib
import errno
import functools
import itertools
import json
import os
import pickle
import resource
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import interrupted
import keras
import numpy as np
import pytest
import tensorflow as tf
import toy_ablation as toy

import keras_delta as kd
from keras_delta import _checkpoint
from keras_delta.attention import ChannelAttention, head_fit, tally
from keras_delta.attention import calls as calls_module

pytestmark = pytest.mark.filterwarnings("ignore:The head is no better than chance")
HERE = Path(__file__).parent
KILLS = int(os.environ.get("KERAS_DELTA_KILLS", "3"))
TAPS = ["conv0", "conv1"]
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# --- killed --------------------------------------------------------------------


@contextlib.contextmanager
def children():
    """A function that computes in a process of its own, by `interrupted.py`.

    It returns the process's exit status and what it printed.
    """
    script = [sys.executable, HERE / "interrupted.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(script, text=True, **pipes) as server:

        def child(**options):
            server.stdin.write(json.dumps(options) + "\n")
            server.stdin.flush()
            answer = json.loads(server.stdout.readline())
            assert answer["status"] in (0, -9, -2), answer
            return answer["status"], answer["shown"]

        yield child
        server.stdin.close()


def progress_of(path):
    """Number of batches done; fails where the file cannot be read."""
    if not path.exists():
        return 0
    with np.load(path) as file:
        return len(file["done"])


def killed_until_done(kind, folder, kills):
    """A chain of processes, each killed at a random moment, and one that ends.

    Returns:
        What it computed, what one that was let alone did, and how far the
        checkpoint was after each kill.
    """
    with children() as child:
        return _killed_until_done(child, kind, folder, kills)


def _killed_until_done(child, kind, folder, kills):
    rng = np.random.default_rng([len(kind), kills])
    alone, out, path = (folder / name for name in ("alone.npz", "out.npz", "file"))
    child(kind=kind, checkpoint=str(folder / "other"), out=str(alone))
    stages, count = [0], 0
    while count < kills:
        # One is interrupted as with Ctrl-C instead.
        ending = "SIGINT" if count == kills // 2 else "SIGKILL"
        status, shown = child(
            kind=kind,
            checkpoint=str(path),
            seconds=rng.uniform(0.02, 0.9),
            signal=ending,
        )
        if "finished" in shown.splitlines():  # a fast machine: begin again
            path.unlink()
            stages.append(0)
            continue
        assert status in (-9, -2), shown
        assert ("Interrupted. '" in shown) == (status == -2), shown
        count += 1
        stages.append(progress_of(path))
    child(kind=kind, checkpoint=str(path), out=str(out))
    assert {p.name for p in folder.iterdir()} == {
        *("alone.npz", "out.npz", "file", "other")
    }
    return dict(np.load(out)), dict(np.load(alone)), stages


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """SIGKILL, in the middle of writing too; scores, errors, counts bit for bit.

    Two chains of kills and a Ctrl-C each; `KERAS_DELTA_KILLS=11` makes them long.
    """
    kinds = list(interrupted.KINDS)
    for kind in kinds:
        (tmp_path / kind).mkdir()
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(
            lambda kind: killed_until_done(kind, tmp_path / kind, KILLS), kinds
        )
        for found, expected, stages in results:
            assert len(stages) > KILLS
            starts = [i for i, stage in enumerate(stages) if stage == 0]
            for one, two in itertools.pairwise(stages):
                assert two >= one or two == 0, stages
            assert len(starts) < 6, stages  # not always anew
            assert found.pop("calls") < expected.pop("calls"), stages
            found.pop("seconds"), expected.pop("seconds")
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array, err_msg=name)


# --- interrupted wherever it matters ---------------------------------------------


@contextlib.contextmanager
def interrupted_at(where, name, number, after=False):
    """`KeyboardInterrupt` at the n-th call of a function, before or after its work."""
    original, count = getattr(where, name), 0

    @functools.wraps(original)
    def call(*args, **kwargs):
        nonlocal count
        count += 1
        if count == number and not after:
            raise KeyboardInterrupt
        result = original(*args, **kwargs)
        if count == number and after:
            raise KeyboardInterrupt
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, call)
        yield


SITES = [
    (calls_module.Call, "__call__", False),
    (tally.Tally, "add", True),
    (_checkpoint.Checkpoint, "save", False),  # a batch is done
    (np, "savez", False),
    (np, "savez", True),  # half of the way: written, and not in its place
    (os, "replace", False),
    (os, "replace", True),
]


@pytest.mark.parametrize("tolerance", [None, 0.3])
@pytest.mark.parametrize(
    ("where", "name", "after"),
    SITES,
    ids=[f"{name}-{'after' if after else 'before'}" for _, name, after in SITES],
)
def test_ctrl_c(where, name, after, tolerance, tmp_path, monkeypatch, capsys):
    """Each time the file is sound, and what follows gives the same bits."""
    monkeypatch.setattr(_checkpoint, "SHARE", 1e9)  # write after each batch
    values, path = toy.table(100), tmp_path / "file"
    expected = toy.run(monkeypatch, values, tolerance=tolerance)
    for number in (1, 2, 3):
        path.unlink(missing_ok=True)
        with (
            interrupted_at(where, name, number, after),
            pytest.raises(KeyboardInterrupt),
        ):
            toy.run(monkeypatch, values, path, tolerance)
        assert "Interrupted" in capsys.readouterr().out
        assert progress_of(path) <= number
        if where is not calls_module.Call and where is not tally.Tally:
            assert progress_of(path) == number
        found = toy.run(monkeypatch, values, path, tolerance)
        assert toy.same(found, expected), number
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_again_and_again(tmp_path, monkeypatch):
    """In each batch, until it is done."""
    values, path, count = toy.table(100), tmp_path / "file", 0
    expected = toy.run(monkeypatch, values)
    while progress_of(path) < 4:
        with (
            interrupted_at(_checkpoint.Checkpoint, "save", 1),
            pytest.raises(KeyboardInterrupt),
        ):
            toy.run(monkeypatch, values, path)
        count += 1
    assert count == 4
    assert toy.same(toy.run(monkeypatch, values, path), expected)


def test_a_checkpoint_of_before_batches_were_saved_whole(tmp_path, monkeypatch):
    """An older file; where it was written between batches, it goes on from there."""
    monkeypatch.setattr(_checkpoint, "SHARE", 1e9)
    values, path = toy.table(100), tmp_path / "file"
    expected = toy.run(monkeypatch, values)
    with (
        interrupted_at(_checkpoint.Checkpoint, "save", 2),
        pytest.raises(KeyboardInterrupt),
    ):
        toy.run(monkeypatch, values, path)
    with np.load(path) as file:
        arrays = dict(file)

    def rewrite(**more):
        with open(path, "wb") as file:
            np.savez(file, **arrays, **more)

    rewrite(tap=1)
    with pytest.raises(ValueError, match=r"older version.*middle of a batch.*Delete"):
        toy.run(monkeypatch, values, path)
    rewrite(tap=0, **{"part/position": 3, "part/intact": np.zeros(32)})
    assert toy.same(toy.run(monkeypatch, values, path), expected)


# --- on a real network -----------------------------------------------------------


def data(count=40):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    return x, rng.integers(0, 3, count)


@pytest.fixture
def model(new_backbone):
    return kd.attach_head(new_backbone(size=8, widths=(4, 5)), 3)


def compute(model, given, taps=TAPS, **kwargs):
    return ChannelAttention.compute(model, given, taps, progress=False, **kwargs)


def assert_same(one, two):
    assert one.get_config() == two.get_config()


@pytest.fixture
def calls(monkeypatch):
    """Counts calls; `calls.limit = n` interrupts the n-th."""

    class Calls:
        count, limit = 0, None

    counted, call = Calls(), calls_module.Call.__call__

    def record(*args):
        counted.count += 1
        if counted.count == counted.limit:
            raise KeyboardInterrupt
        return call(*args)

    monkeypatch.setattr(calls_module.Call, "__call__", record)
    return counted


def test_ctrl_c_says_what_to_do(model, calls, tmp_path, capsys):
    path = tmp_path / "work.ckpt"
    given, options = data(70), {"memory": "100KB"}
    expected = compute(model, given, **options)
    straight, calls.count, calls.limit = calls.count, 0, calls.count - 1
    with pytest.raises(KeyboardInterrupt):
        compute(model, given, checkpoint=path, **options)
    assert capsys.readouterr().out == (
        f"\nInterrupted. '{path}' contains the finished batches; run the same call "
        "again to resume.\n"
    )
    calls.count, calls.limit = 0, None
    assert_same(compute(model, given, checkpoint=str(path), **options), expected)
    assert 0 < calls.count < straight / 2


def test_without_a_checkpoint_ctrl_c_promises_nothing(model, calls, capsys):
    calls.limit = 2
    with pytest.raises(KeyboardInterrupt):
        compute(model, data())
    assert capsys.readouterr().out == ""


def test_the_head_is_trained_once(model, calls, tmp_path, monkeypatch):
    options = {"train_head": True, "memory": "100KB"}
    expected = compute(model, data(), **options)
    calls.count, calls.limit = 0, 3
    with pytest.raises(KeyboardInterrupt):
        compute(model, data(), checkpoint=tmp_path / "c", **options)
    calls.limit = None

    def train(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(head_fit.HeadFit, "train", train)
    found = compute(model, data(), checkpoint=tmp_path / "c", **options)
    assert_same(found, expected)


@pytest.mark.parametrize("train_head", [False, True])
def test_images_that_are_drawn_anew_in_each_epoch(model, calls, tmp_path, train_head):
    """All readings see the same ones, in the process that resumes as well."""
    x, y = data(70)
    images = kd.data.ImageSet.from_arrays(np.clip(128 + 40 * x, 0, 255).astype("u1"), y)

    def batches():
        return images.batches(8, 10, training=True)

    options = {"train_head": train_head, "memory": "100KB"}
    straight = batches()
    expected = compute(model, straight, **options)
    assert straight.epoch_counter.upcoming == 0
    calls.count, calls.limit = 0, calls.count - 1
    given = batches()
    with pytest.raises(KeyboardInterrupt):
        compute(model, given, checkpoint=tmp_path / "c", **options)
    calls.limit = None
    for again in (given, batches()):
        assert_same(
            compute(model, again, checkpoint=tmp_path / "c", **options), expected
        )


def test_what_is_finished_is_not_computed_again(model, calls, tmp_path):
    options = {"checkpoint": tmp_path / "c", "tolerance": 5.0, "max_samples": 100}
    given = tf.data.Dataset.from_tensor_slices(data(150)).batch(20)
    first = compute(model, given, **options)
    assert {t: c.max() for t, c in first.counts.items()} == {"conv0": 64, "conv1": 64}
    assert calls.count
    calls.count = 0
    assert_same(compute(model, given, **options), first)
    assert not calls.count


def test_more_samples_go_on(model, calls, tmp_path):
    x, y = data(96)
    compute(model, (x[:64], y[:64]), checkpoint=tmp_path / "c")
    before, calls.count = calls.count, 0
    found = compute(model, (x, y), checkpoint=tmp_path / "c")
    assert calls.count == before / 2
    assert_same(found, compute(model, (x, y)))


def test_the_memory_of_the_first_run_counts(model, calls, tmp_path):
    """Calls of another size would give other bits."""
    calls.limit = 3
    with pytest.raises(KeyboardInterrupt):
        compute(model, data(), memory="100KB", checkpoint=tmp_path / "c")
    calls.limit = None
    found = compute(model, data(), memory="1GB", checkpoint=tmp_path / "c")
    assert_same(found, compute(model, data(), memory="100KB"))


# --- refused ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, new_backbone):
    """Bytes of a finished checkpoint."""
    keras.utils.set_random_seed(0)
    model = kd.attach_head(new_backbone(size=8, widths=(4, 5)), 3)
    path = tmp_path_factory.mktemp("made") / "c"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compute(model, data(), checkpoint=path)
    return path.read_bytes()


@pytest.fixture
def made(finished, tmp_path):
    path = tmp_path / "c"
    path.write_bytes(finished)
    return path


def other_pixel(x, y):
    x = x.copy()
    x[7, 3, 3, 1] += 1e-6
    return x, y


def other_label(x, y):
    y = y.copy()
    y[39] = (y[39] + 1) % 3
    return x, y


@pytest.mark.parametrize(
    ("change", "batch"),
    [
        (lambda x, y: (x[::-1], y[::-1]), 0),
        (lambda x, y: (x[:32], y[:32]), 1),
        (lambda x, y: (x[:5], y[:5]), 0),
        (other_pixel, 0),
        (other_label, 1),
        (lambda x, y: (np.concatenate([x, x]), np.concatenate([y, y])), 1),
    ],
    ids=["order", "fewer", "few", "a pixel", "a label", "a part of a batch filled"],
)
def test_other_data_are_refused(change, batch, model, made):
    message = rf"c' was made from other data: batch {batch} of up to 32 samples differs"
    before = made.read_bytes()
    with pytest.raises(ValueError, match=message):
        compute(model, change(*data()), checkpoint=made)
    assert made.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"taps": ["conv1"]}, "taps"),
        ({"taps": ["conv1", "conv0"]}, "taps"),
        ({"loss": keras.losses.MeanSquaredError()}, "loss"),
        (
            {
                "loss": keras.losses.SparseCategoricalCrossentropy(
                    from_logits=True, ignore_class=0
                )
            },
            "loss",
        ),
        ({"tolerance": 0.5}, "tolerance"),
        ({"train_head": True}, "train_head"),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_another_computation_is_refused(options, named, model, made):
    with pytest.raises(ValueError) as e:
        compute(model, data(), checkpoint=made, **options)
    text = str(e.value)
    assert f"c' was made for something else ({named}: " in text and ";" not in text
    assert text.endswith(
        "Pass another path, or delete the file if it is no longer needed."
    )


def test_another_network_is_refused(model, made):
    kernel = model.get_layer("conv0").kernel
    kernel.assign_add(1e-6 * np.ones(kernel.shape))
    with pytest.raises(ValueError, match=r"something else \(weights: "):
        compute(model, data(), checkpoint=made)


def test_the_same_weights_in_another_network_are_refused(new_backbone, model, made):
    x = model.get_layer("conv0").output
    x = keras.layers.LeakyReLU()(x)
    x = keras.layers.ReLU()(model.get_layer("conv1")(x))
    x = model.get_layer("head")(keras.layers.GlobalAveragePooling2D()(x))
    leaky = keras.Model(model.input, x)
    with pytest.raises(ValueError, match=r"something else \(architecture: "):
        compute(leaky, data(), checkpoint=made)
    keras.config.set_dtype_policy("mixed_float16")
    half = kd.attach_head(new_backbone(size=8, widths=(4, 5)), 3)
    half.set_weights(model.get_weights())
    with pytest.raises(ValueError, match=r"something else \(architecture: "):
        compute(half, data(), checkpoint=made, loss=LOSS)


def test_names_of_layers_do_not_matter(new_backbone, made):
    """Keras numbers what the user does not name, and so it differs between runs."""
    keras.utils.set_random_seed(0)
    keras.layers.GlobalAveragePooling2D()
    body = new_backbone(size=8, widths=(4, 5), name="another")
    compute(kd.attach_head(body, 3), data(), checkpoint=made)


# --- files -----------------------------------------------------------------------


def load(path):
    return _checkpoint.Checkpoint(path, {"taps": 1}).load()


def save(path, **arrays):
    _checkpoint.Checkpoint(path, {"taps": 1}).save(lambda: arrays, now=True)


def foreign(path, form):
    if form == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif form == "npz":
        with open(path, "wb") as file:
            np.savez(file, a=np.zeros(3))
    elif form == "objects":
        with open(path, "wb") as file:
            np.savez(file, made_for=np.array([{}], object))
    elif form in ("list", "number"):
        text = {"list": "[1, 2]", "number": "3"}[form]
        with open(path, "wb") as file:
            np.savez(file, made_for=np.array(text))
    else:
        content = {"empty": b"", "text": b"hello", "pickle": pickle.dumps([1])}[form]
        path.write_bytes(content)


@pytest.mark.parametrize(
    "form",
    ["npy", "npz", "objects", "list", "number", "empty", "text", "pickle"],
)
def test_a_foreign_file(form, tmp_path):
    foreign(tmp_path / "c", form)
    with pytest.raises(
        ValueError, match=r"c' cannot be read as a checkpoint.*Pass another"
    ):
        load(tmp_path / "c")


def test_a_damaged_file(finished, model, tmp_path):
    """Cut anywhere, or with a byte changed: refused, or unharmed; never wrong."""
    with np.load(_file(tmp_path, finished)) as file:
        arrays = {name: file[name] for name in file.files}
        made_for = json.loads(str(arrays.pop("made_for")))
    del made_for["format"]
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(300):
        where = rng.integers(len(finished))
        changed = bytearray(finished)
        if i % 3:
            changed[where] ^= rng.integers(1, 256)
        else:
            del changed[where:]
        try:
            found = _checkpoint.Checkpoint(_file(tmp_path, changed), made_for).load()
        except ValueError as e:
            assert "cannot be read" in str(e)
            refused += 1
        else:
            assert found.keys() == arrays.keys()
            for name, array in arrays.items():
                np.testing.assert_array_equal(found[name], array)
    assert refused > 200
    with pytest.raises(ValueError, match=r"c' cannot be read"):
        compute(model, data(), checkpoint=_file(tmp_path, finished[:1000]))


def _file(folder, content):
    (folder / "c").write_bytes(content)
    return folder / "c"


def test_what_killed_processes_left_is_removed(tmp_path):
    save(tmp_path / "c", a=1)
    others = [".c.tmp", ".cc.1.tmp", ".c.x.tmp", "c.1.tmp", ".d.c.2.tmp"]
    for name in [".c.99999998.tmp", ".c.99999999.tmp", *others]:
        (tmp_path / name).write_bytes(b"half of a file")
    assert load(tmp_path / "c")["a"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["c", *others])


def test_a_folder_is_made_and_nothing_is_read_without_a_file(tmp_path):
    assert load(tmp_path / "new" / "c") is None
    save(tmp_path / "new" / "c", a=2)
    assert load(tmp_path / "new" / "c")["a"] == 2


# --- disk full -------------------------------------------------------------------


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(file, **arrays):
    file.write(b"PK half")
    full()


@pytest.mark.parametrize(
    ("where", "name", "fail"),
    [
        (os, "replace", full),
        (os, "fsync", full),
        (np, "savez", half_written),
        (Path, "mkdir", full),
    ],
)
def test_a_full_disk_costs_a_warning(where, name, fail, tmp_path, monkeypatch):
    """From the third write on; what was written before stays."""
    monkeypatch.setattr(_checkpoint, "SHARE", 1e9)
    values, path = toy.table(100), tmp_path / "c"
    expected = toy.run(monkeypatch, values)
    sound, count = getattr(where, name), 0

    def sometimes(*args, **kwargs):
        nonlocal count
        count += 1
        if count < 3:
            return sound(*args, **kwargs)
        return fail(*args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(where, name, sometimes)
        with pytest.warns(UserWarning) as warned:
            found = toy.run(monkeypatch, values, path)
    assert count >= 5
    (warning,) = [w for w in warned if "could not be written" in str(w.message)]
    assert "No space left on device" in str(warning.message)
    assert warning.filename == toy.__file__
    assert toy.same(found, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert progress_of(path) == 2
    assert toy.same(toy.run(monkeypatch, values, path), expected)


def test_a_disk_that_really_takes_no_more(tmp_path):
    """A limit for the size of files; zip writers fail in ways of their own."""
    save(tmp_path / "c", a=np.arange(10))
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.warns(UserWarning, match="could not be written"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, usual[1]))
            save(tmp_path / "c", a=np.zeros(2**20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    np.testing.assert_array_equal(load(tmp_path / "c")["a"], np.arange(10))


def test_a_folder_that_cannot_be_written_to(model, tmp_path, calls):
    """Ctrl-C then does not say that a file holds the work."""
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"file/c' could not be written"):
        compute(model, data(), checkpoint=tmp_path / "file" / "c")


def test_ctrl_c_on_a_full_disk_promises_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "replace", full)
    with (
        pytest.warns(UserWarning, match="could not be written"),
        pytest.raises(KeyboardInterrupt),
        interrupted_at(calls_module.Call, "__call__", 9),
    ):
        toy.run(monkeypatch, toy.table(100), tmp_path / "c")
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


# --- time ------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [0.001, 0.1, 3.0])
def test_writing_takes_a_twentieth_of_the_time(cost, tmp_path, monkeypatch):
    now, writing, gaps = 1000.0, 0.0, []
    monkeypatch.setattr(_checkpoint.time, "monotonic", lambda: now)
    file = _checkpoint.Checkpoint(tmp_path / "c", {})

    def arrays():
        nonlocal now, writing
        now += cost
        writing += cost
        return {"a": np.zeros(1)}

    last = began = now
    while now < began + 100 * cost:
        now += cost / 7  # a call's work
        if file.save(arrays):
            gaps.append(now - last)
            last = now
    assert 0.03 < writing / (now - began) <= 0.06
    assert len(gaps) > 3 and max(gaps) < 25 * cost
    assert file.save(arrays, now=True)
