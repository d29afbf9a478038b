"""The two sentences every refusal is made of."""

from keras_delta._errors import invalid, unknown_name


def test_invalid_names_argument_expected_and_received():
    assert invalid("mode", "one of 'a', 'b'", "c") == (
        "Invalid value for argument `mode`. Expected one of 'a', 'b'. "
        "Received: mode='c'"
    )


def test_invalid_ends_with_the_remedy():
    assert invalid("n", "2 or more", 1, "Pass 2.") == (
        "Invalid value for argument `n`. Expected 2 or more. Received: n=1. Pass 2."
    )


def test_unknown_name_lists_the_closest():
    assert unknown_name("taps", "conv2", ["conv1", "conv20", "dense"]) == (
        "Unknown name for `taps`. Received: 'conv2'. Closest names: 'conv20', 'conv1'."
    )


def test_unknown_name_lists_at_most_five():
    text = unknown_name("taps", "conv", [f"conv{i}" for i in range(9)])
    assert text.count("'conv") == 1 + 5


def test_unknown_name_without_a_close_one_lists_the_known():
    assert unknown_name("taps", "xyz", ["dense", "pool"]) == (
        "Unknown name for `taps`. Received: 'xyz'. Known names: 'dense', 'pool'."
    )


def test_unknown_name_cuts_a_long_list():
    text = unknown_name("taps", "%%", [f"dense_{i}" for i in range(25)])
    assert text.endswith("'dense_18', 'dense_19' and 5 more.")


def test_long_values_are_cut():
    text = invalid("x", "less", list(range(1000)))
    assert text.endswith("... (list)") and len(text) < 400


def test_upper_and_lower_case_are_close():
    text = unknown_name("regularizer", "DELTA", ["l2", "delta"])
    assert text == (
        "Unknown name for `regularizer`. Received: 'DELTA'. Closest names: 'delta'."
    )
