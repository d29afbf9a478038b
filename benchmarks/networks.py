"""End-to-end check of many networks, from the taps to the export.

    python benchmarks/networks.py                       # one of each family
    python benchmarks/networks.py VGG19 hub.ViT         # these
    python benchmarks/networks.py --markdown TABLE.md

The smallest network of each architecture of `keras.applications` (the others by name),
and one of each image family of KerasHub (`pip install "keras_delta[hub]"`) with a small
configuration, all with random weights and with BatchNormalization statistics of some
images. With each: `attach_head`, `DeltaModel` with `taps="auto"`, one step of "delta"
at learning rate 0 with attention computed from two samples, saving and loading a
`.keras` file, and `export_for_serving`.

"start" is the feature penalty of that step relative to the size of the maps, without
alpha: 0 except for batch statistics (BatchNormalization) and dropout.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # first: it silences TensorFlow's start-up

import keras
import numpy as np
import pandas as pd

import keras_delta as kd
from keras_delta._network import auto_taps
from keras_delta._network.graph import Graph

SIDE = 32
SIDES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}

SMALLEST = (
    *("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0"),
    *("InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2"),
    *(
        "MobileNetV3Small",
        "NASNetMobile",
        "ResNet50",
        "ResNet50V2",
        "VGG16",
        "Xception",
    ),
)


def hub():
    """Dict name -> function that builds a small network of a family of KerasHub."""
    import keras_hub

    m, image = keras_hub.models, {"image_shape": (64, 64, 3)}
    vit = {"num_layers": 3, "num_heads": 2, "hidden_dim": 32}
    return {
        "ResNet": lambda: m.ResNetBackbone(
            [64], [7], [64, 128], [1, 1], [1, 2], "basic_block", **image
        ),
        "VGG": lambda: m.VGGBackbone([1, 1, 2], [8, 16, 32], **image),
        "DenseNet": lambda: m.DenseNetBackbone([2, 2], growth_rate=8, **image),
        "CSPNet": lambda: m.CSPNetBackbone(
            stem_filters=16,
            stem_kernel_size=3,
            stem_strides=2,
            stackwise_depth=[1, 2],
            stackwise_strides=[2, 2],
            stackwise_num_filters=[16, 32],
            block_type="dark_block",
            stage_type="dark",
            **image,
        ),
        "EfficientNet": lambda: m.EfficientNetBackbone(
            stackwise_kernel_sizes=[3, 3, 5],
            stackwise_num_repeats=[1, 2, 1],
            stackwise_input_filters=[16, 8, 16],
            stackwise_output_filters=[8, 16, 24],
            stackwise_expansion_ratios=[1, 4, 4],
            stackwise_strides=[1, 2, 2],
            stackwise_squeeze_and_excite_ratios=[0.25] * 3,
            stackwise_block_types=["v1"] * 3,
            stackwise_force_input_filters=[0] * 3,
            stackwise_nores_option=[False] * 3,
            stackwise_width_coefficients=[1.0] * 3,
            stackwise_depth_coefficients=[1.0] * 3,
            input_shape=(64, 64, 3),
        ),
        "MiT": lambda: m.MiTBackbone(
            layerwise_num_heads=[1, 2],
            layerwise_sr_ratios=[8, 4],
            max_drop_path_rate=0.1,
            layerwise_patch_sizes=[7, 3],
            layerwise_strides=[4, 2],
            layerwise_depths=[1, 1],
            num_layers=2,
            hidden_dims=[16, 32],
            **image,
        ),
        "ViT": lambda: m.ViTBackbone(patch_size=16, mlp_dim=64, **vit, **image),
        "DeiT": lambda: m.DeiTBackbone(
            patch_size=16, intermediate_dim=64, **vit, **image
        ),
        "DINOv2": lambda: m.DINOV2Backbone(
            patch_size=16, intermediate_dim=64, **vit, **image
        ),
        "SwinTransformer": lambda: m.SwinTransformerBackbone(
            patch_size=4,
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
            **image,
        ),
        "HGNetV2": lambda: m.HGNetV2Backbone(
            depths=[1, 1],
            embedding_size=8,
            hidden_sizes=[16, 32],
            stem_channels=[3, 8, 8],
            hidden_act="relu",
            use_learnable_affine_block=False,
            stackwise_stage_filters=[[8, 8, 16, 1, 3, 3], [16, 16, 32, 1, 3, 3]],
            apply_downsample=[False, True],
            use_lightweight_conv_block=[False, False],
            image_shape=(64, 64, 3),
        ),
        "Xception": lambda: m.XceptionBackbone(
            stackwise_conv_filters=[[8, 16], [16, 32]],
            stackwise_pooling=[True, False],
            **image,
        ),
    }


def applications():
    """Dict name -> function that builds a network of keras.applications."""
    found = {}
    for name, build in vars(keras.applications).items():
        if callable(build) and name[0].isupper():
            side = SIDES.get(name, SIDE)
            found[name] = lambda build=build, side=side: build(
                weights=None, include_top=False, input_shape=(side, side, 3)
            )
    return found


def builders():
    """All of them; KerasHub's begin with `hub.`."""
    try:
        of_hub = {f"hub.{name}": build for name, build in hub().items()}
    except ImportError:
        of_hub = {}
    return {**applications(), **of_hub}


def settle(model, x):
    """Random weights as of a trained network: statistics of images, and no zeros."""
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        if len(v.shape) == 1:
            v.assign(v + 0.05 * np.abs(rng.normal(size=v.shape)))
    kinds = keras.layers.BatchNormalization
    norms = [n for n in model._flatten_layers() if isinstance(n, kinds)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(x, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def end_in_maps(source):
    """KerasHub's vision transformers put out tokens, some networks several maps."""
    outputs = keras.tree.flatten(source.output)
    if len(outputs) == 1 and not isinstance(source.output, dict):
        return source
    return keras.Model(source.inputs, outputs[-1], name=source.name)


def try_whole(build):
    """What became of one network: a dict for a row of the table."""
    row, began = {}, time.monotonic()

    def done(what):
        nonlocal began
        row[what] = round(time.monotonic() - began, 1)
        began = time.monotonic()

    source = end_in_maps(build())
    side = source.input_shape[1]
    x = np.random.default_rng(1).uniform(0, 255, (4, side, side, 3)).astype("float32")
    y = np.arange(4) % 3
    settle(source, x)
    row["parameters"] = source.count_params()
    done("build s")
    model = kd.DeltaModel(kd.attach_head(source, 3), source=source)
    done("pair s")
    graph = Graph(source)
    row["taps"] = ", ".join(model.taps)
    row["pairs"] = f"{len(model.pairing.names)}/{len(graph.nodes)}"
    last = list(model.networks.taps.values())[-1]
    everything = set(model.networks.source.nodes)
    behind = auto_taps.share_behind(model.networks.source, last, everything)
    row["behind"] = f"{behind:.0%}"
    maps, theirs = model.outputs_and_maps(x)[1], model.source_maps(x)
    row["equal"] = all(np.allclose(maps[t], theirs[t], atol=1e-4) for t in model.taps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
    regularizer = kd.regularizers.Delta(alpha=1.0, attention_samples=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(x, y, batch_size=4, regularizer=regularizer, verbose=0)
    said = [str(w.message) for w in caught if w.category is UserWarning]
    row["warnings"] = " | ".join(t[:90] for t in said if "no better than" not in t)
    row["start"] = round(history.history["feature_penalty"][0] / len(model.taps), 4)
    done("attention and step s")
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/m.keras")
        loaded = keras.saving.load_model(f"{folder}/m.keras")
        expected = model.predict(x, verbose=0)
        np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)
        assert loaded.networks.places == model.networks.places
        done("save, load s")
        path = kd.export_for_serving(model, f"{folder}/served", ["a", "b", "c"])
        served = tf.saved_model.load(str(path)).signatures["classify_prepared"]
        scores = np.sort(served(images=tf.constant(x))["scores"].numpy())
        softmax = np.sort(keras.ops.convert_to_numpy(keras.ops.softmax(expected)))
        np.testing.assert_allclose(scores, softmax, atol=1e-4)
        done("export s")
    return row


def run_apart(name):
    """The row of a network, tried in a process of its own."""
    command = [sys.executable, __file__, "--one", name]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    reason = done.stderr.strip().splitlines() or ["killed"]
    return {"error": reason[-1][:300]}


def main():
    """Try networks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--markdown", type=Path, help="file to write the table into")
    args = parser.parse_args()
    known = builders()
    if args.one:
        print(json.dumps(try_whole(known[args.one])))
        return
    rows = {}
    names = [n for n in known if n in SMALLEST or n.startswith("hub.")]
    for name in args.names or names:
        rows[name] = run_apart(name)
        shown = rows[name].get("error") or rows[name]["taps"]
        print(f"{name}: {shown}", flush=True)
        if args.markdown:
            table = pd.DataFrame(rows).T.fillna("")
            args.markdown.write_text(table.to_markdown() + "\n", "utf-8")
    print(pd.DataFrame(rows).T.fillna("").to_string())


if __name__ == "__main__":
    main()
