"""Does a regularizer help on top of LoRA? Test accuracy over several seeds.

    python benchmarks/lora.py --data-dir FOLDER [--per-class 10 --seeds 2]

FOLDER holds train/ and test/ with one folder per class. EfficientNet-Lite0 with LoRA in
all convolutions except the depthwise ones, against training all layers; each with L2,
L2-SP and the distance between feature maps, at their default strengths. LoRA, whose
matrices start from zero, is trained with Adam at 1e-3, all layers with SGD at 0.01 as
in the other benchmarks.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # noqa: F401  first: it silences TensorFlow's start-up

import keras
import pandas as pd

import keras_delta as kd

METHODS = ("l2", "l2_sp", "feature_map")


def enable_lora(target, rank):
    """LoRA in all convolutions but the depthwise ones, and nothing else trains."""
    for layer in target.layers:
        if layer.name == "head":
            continue
        layer.trainable = type(layer) is keras.layers.Conv2D
        if layer.trainable:
            layer.enable_lora(rank)


def train(sets, rank, method, seed, args):
    """(test accuracy, trained parameters, seconds) of one training."""
    keras.utils.set_random_seed(seed)
    shape = (args.size, args.size, 3)
    source = kd.backbones.efficientnet_lite0(input_shape=shape)
    target = kd.attach_head(source, len(sets["train"].class_names))
    if rank:
        enable_lora(target, rank)
    model = kd.DeltaModel(target, source=source)
    rate = keras.optimizers.schedules.CosineDecay(
        1e-3 if rank else 0.01, args.epochs * -(-len(sets["train"]) // 16)
    )
    optimizer = (
        keras.optimizers.Adam(rate)
        if rank
        else keras.optimizers.SGD(rate, momentum=0.9)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    data = sets["train"].batches(args.size, 16, training=True, seed=seed)
    began = time.process_time()
    model.fit(
        data,
        epochs=args.epochs,
        regularizer=method,
        recipe="none",
        shuffle=False,
        verbose=0,
    )
    seconds = time.process_time() - began
    test = sets["test"].batches(args.size, 64)
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    count = sum(v.shape.num_elements() for v in model.trainable_variables)
    return accuracy, count, seconds


def main():
    """Train all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 4, 16])
    args = parser.parse_args()
    sets = kd.data.from_directory(args.data_dir)
    rows = []
    for seed in range(args.seeds):
        drawn = {**sets, "train": sets["train"].few_shot(args.per_class, seed)}
        for rank in args.ranks:
            for method in METHODS:
                accuracy, count, seconds = train(drawn, rank, method, seed, args)
                trained = f"LoRA, rank {rank}" if rank else "all layers"
                rows.append((trained, method, seed, accuracy, count, seconds))
                print(*rows[-1], flush=True)
    names = ["trained", "method", "seed", "accuracy", "parameters", "CPU s"]
    table = pd.DataFrame(rows, columns=names).drop(columns="seed")
    print(table.groupby(["trained", "method"]).mean().round(3).to_string())


if __name__ == "__main__":
    main()
