"""Files in PyTorch's old format, written by hand: pickle opcodes and raw numbers."""

import os
import pickle
import struct

import numpy as np
import pytest

from keras_delta.backbones.torch_pickle import _RebuildTensor, read_state_dict

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
HEADER = MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key, count, kind=b"torch\nFloatStorage", view=b"N"):
    entry = text("storage") + b"c" + kind + b"\n" + text(key) + text("cpu")
    return b"(" + entry + number(count) + view + b"tQ"


def tensor(stored, shape, strides, offset=0):
    arguments = stored + number(offset) + numbers(shape) + numbers(strides)
    return REBUILD + b"(" + arguments + b"\x89" + ORDERED_DICT + b"tR"


def state(entries):
    """Pickle of an OrderedDict of already pickled values."""
    items = b"".join(text(name) + value for name, value in entries.items())
    return b"\x80\x02" + ORDERED_DICT + b"(" + items + b"u."


def raw(array, count=None):
    array = np.asarray(array)
    return struct.pack("<q", array.size if count is None else count) + array.tobytes()


def file(pickled, keys=(), storages=(), header=HEADER):
    return header + pickled + pickle.dumps(list(keys), 2) + b"".join(storages)


SIX = np.arange(6, dtype="<f4")


def six(shape=(2, 3), strides=(3, 1), offset=0, count=6, **kwargs):
    value = tensor(storage("7", count, **kwargs), shape, strides, offset)
    return file(state({"w": value}), ["7"], [raw(SIX)])


def test_reads_tensors_and_their_layout():
    entries = {
        "plain": tensor(storage("a", 6), (2, 3), (3, 1)),
        "transposed": tensor(storage("a", 6), (3, 2), (1, 3)),
        "part": tensor(storage("a", 6), (2,), (2,), offset=1),
        "scalar": tensor(storage("b", 1, b"torch\nLongStorage"), (), ()),
        "half": tensor(storage("c", 2, b"torch\nHalfStorage"), (2,), (1,)),
        "empty": tensor(storage("d", 0), (0, 4), (4, 1)),
    }
    data = file(
        state(entries),
        "bacd",
        [
            raw(np.array([41], "<i8")),
            raw(SIX),
            raw(np.array([0.5, 2], "<f2")),
            raw(np.zeros(0, "<f4")),
        ],
    )
    found = read_state_dict(data)
    assert list(found) == list(entries)
    np.testing.assert_array_equal(found["plain"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(found["transposed"], SIX.reshape(2, 3).T)
    np.testing.assert_array_equal(found["part"], [1, 3])
    assert found["scalar"].shape == () and found["scalar"] == 41
    np.testing.assert_array_equal(found["half"], [0.5, 2])
    assert found["half"].dtype == np.float16 and found["empty"].shape == (0, 4)
    assert all(a.flags.c_contiguous and a.flags.writeable for a in found.values())


def test_a_state_dict_may_carry_attributes():
    pickled = state({"w": tensor(storage("7", 6), (6,), (1,))})
    metadata = b"}" + text("_metadata") + ORDERED_DICT + b"sb."
    data = file(pickled[:-1] + metadata, ["7"], [raw(SIX)])
    np.testing.assert_array_equal(read_state_dict(data)["w"], SIX)


class Runs:
    """What `pickle.dumps` turns into a call when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker):
    """name -> (pickle that writes `marker`, what must be refused)."""
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    stack_global = b"\x80\x04" + text("os") + text("system") + b"\x93"
    dotted = text("collections") + text("_sys.modules.get") + b"\x93"
    get_os = dotted + b"(" + text("os") + b"tR"
    yield "reduce", b"cos\nsystem\n(" + text(command) + b"tR.", "os.system"
    yield "eval", b"cbuiltins\neval\n(" + text(code) + b"tR.", "builtins.eval"
    yield "python 2", b"c__builtin__\neval\n(" + text(code) + b"tR.", "eval"
    yield "stack global", stack_global + b"(" + text(command) + b"tR.", "os.system"
    yield "protocol 5", pickle.dumps(Runs(os.system, command), 5), r"\w+\.system"
    yield "protocol 0", pickle.dumps(Runs(os.system, command), 0), r"\w+\.system"
    yield "inst", b"(" + text(command) + b"ios\nsystem\n.", "os.system"
    yield "obj", b"(cos\nsystem\n" + text(command) + b"o.", "os.system"
    yield (
        "dotted",
        b"\x80\x04cbuiltins\ngetattr\n(" + get_os + text("system") + b"tR("
        + text(command) + b"tR.",
        "builtins.getattr",
    )  # fmt: skip
    inside = b"}" + text("w") + b"cos\nsystem\n(" + text(command) + b"tRs."
    yield "in a dict", inside, "os.system"


ATTACKS = [name for name, *_ in attacks("marker")]


@pytest.fixture(params=ATTACKS)
def attack(request, tmp_path):
    marker = tmp_path / "marker"
    found = {name: rest for name, *rest in attacks(marker)}
    return (*found[request.param], marker)


def test_the_attacks_work_on_plain_pickle(attack):
    pickled, _, marker = attack
    pickle.loads(pickled)
    assert marker.exists()


@pytest.mark.parametrize("place", ["state", "magic", "version", "facts", "keys"])
def test_attacks_are_refused_and_nothing_runs(attack, place):
    pickled, refused, marker = attack
    good = state({"w": tensor(storage("7", 6), (6,), (1,))})
    parts = [MAGIC, pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
    parts += [good, pickle.dumps(["7"], 2)]
    parts[["magic", "version", "facts", "state", "keys"].index(place)] = pickled
    with pytest.raises(ValueError, match=f"rejected.*{refused}.*Nothing"):
        read_state_dict(b"".join(parts) + raw(SIX), "evil.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("collections", "_sys.modules"),
        ("collections", "OrderedDict.__reduce__"),
        ("collections", "OrderedDict.fromkeys"),
        ("torch._utils", "_rebuild_tensor_v2.__init__"),
        ("torch._utils", "_rebuild_tensor_v2.__call__.__globals__"),
        ("torch", "FloatStorage.dtype"),
        ("torch", "load"),
        ("keras_delta.backbones.torch_pickle", "os"),
        ("", ""),
    ],
)
def test_only_exact_names_are_known(module, name):
    pickled = b"\x80\x04" + text(module) + text(name) + b"\x93."
    with pytest.raises(ValueError, match="was rejected"):
        read_state_dict(file(pickled))


@pytest.mark.parametrize(
    "target", [REBUILD, b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"]
)
@pytest.mark.parametrize("slots", [False, True])
def test_a_pickle_cannot_change_the_reader(target, slots):
    attributes = b"}" + text("__call__") + ORDERED_DICT + b"s"
    built = b"(N" + attributes + b"t" if slots else attributes
    before = _RebuildTensor.__call__
    pickled = b"\x80\x02" + target + built + b"b."
    with pytest.raises(ValueError, match="not a readable"):
        read_state_dict(file(pickled))
    assert _RebuildTensor.__call__ is before
    np.testing.assert_array_equal(read_state_dict(six())["w"], SIX.reshape(2, 3))


@pytest.mark.parametrize("left", [0, 1, 14, 30, 80, 150, -25, -24, -8, -1])
def test_truncated_files(left):
    data = six()
    assert abs(left) < len(data)
    with pytest.raises(ValueError, match=r"cut\.pth is not a readable.*truncated"):
        read_state_dict(data[:left], "cut.pth")


def _with_storage(**kwargs):
    return file(
        state({"w": tensor(storage("7", 6, **kwargs), (6,), (1,))}), ["7"], [raw(SIX)]
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.random.default_rng(0).bytes(5000), "not a readable"),
        (b"PK\x03\x04" + bytes(100), "zip format"),
        (b'{"json": true}', "not a readable"),
        (pickle.dumps([1, 2], 2), "magic"),
        (MAGIC + pickle.dumps(1002, 2), "protocol 1002"),
        (
            MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": False}, 2),
            "little-endian",
        ),
        (file(pickle.dumps([1], 2)), "no dict"),
        (file(state({"epoch": number(3)})), "'epoch' is not a tensor"),
        (file(state({"w": storage("7", 6)}), ["7"], [raw(SIX)]), "not a tensor"),
        (six(offset=1), "beyond its storage"),
        (six(offset=-1), "malformed"),
        (six(shape=(2, 4), strides=(4, 1)), "larger than its storage"),
        (six(shape=(2, 2), strides=(5, 1)), "beyond its storage"),
        (six(shape=(2, -3)), "malformed"),
        (six(strides=(-3, 1)), "malformed"),
        (six(strides=(1,)), "malformed"),
        (six(shape=(2**30, 2**30), strides=(0, 0)), "larger than its storage"),
        (six(count=7), "6 values instead of 7"),
        (six(count=-6), "-6 values"),
        (
            file(
                state({"w": tensor(storage("7", 6), (6,), (1,))}),
                ["7"],
                [raw(SIX, count=2**60)],
            ),
            "values instead of 6",
        ),
        (
            file(
                state({"w": tensor(storage("7", 2**31 - 1), (6,), (1,))}),
                ["7"],
                [raw(SIX, count=2**31 - 1)],
            ),
            "bytes expected",
        ),
        (file(state({"w": tensor(storage("7", 6), (6,), (1,))}), [], []), "list of"),
        (file(state({}), ["7"], [raw(SIX)]), "list of storages"),
        (_with_storage(view=numbers((0, 3))), "views"),
        (_with_storage(kind=b"collections\nOrderedDict"), "persistent id"),
        (
            file(
                state(
                    {
                        "v": tensor(storage("7", 6), (6,), (1,)),
                        "w": tensor(storage("7", 5), (5,), (1,)),
                    }
                ),
                ["7"],
                [raw(SIX)],
            ),
            "two storages",
        ),
        (
            file(state({"w": REBUILD + b"(NNNNNNtR"})),
            "without a storage",
        ),
        (text("7") + b"Q.", "outside of the state dict"),
    ],
)
def test_malformed_files(data, reason):
    with pytest.raises(ValueError, match=reason):
        read_state_dict(data)
