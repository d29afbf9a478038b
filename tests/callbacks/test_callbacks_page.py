"""The examples of docs/callbacks.md run as printed, on a tiny network."""

import re
from pathlib import Path

import keras
import model_reference as reference
import tensorflow as tf

import keras_delta as kd

PAGE = Path(__file__).parents[2] / "docs/callbacks.md"


def test_examples_run(new_backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    x, y = reference.learnable_data(8)
    names = {"kd": kd, "keras": keras, "x": x}
    names["train"] = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    names["model"] = reference.compiled(*reference.pair(new_backbone))
    names["uniform"] = kd.regularizers.Delta(attention="uniform")
    for code in blocks:
        # As printed, but silent and without computing attention.
        code = code.replace(".fit(train,", ".fit(train, verbose=0, shuffle=False,")
        for begin in ("regularizer=", "regularizer=["):
            code = code.replace(f'{begin}"delta"', f"{begin}uniform")
        exec(code, names)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    assert found >= {
        "epochs.csv",
        "logs/penalties.csv",
        "logs/distances/distances-0015.npz",
        "logs/maps/activation_maps-0010.png",
        "moved.png",
        "both.png",
    }
