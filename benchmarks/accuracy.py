"""Test accuracy of the regularizers on few images per class, over several seeds.

    python benchmarks/accuracy.py --data-dir FOLDER [--per-class 10 --seeds 3]

FOLDER holds train/ and test/ with one folder per class, or class folders, of which a
quarter is held out. Each seed draws different training images and a different head,
the same for all methods. Nothing is chosen on the test images: every method runs with
its default strength, and its last epoch counts. For the time of a step, see
step_time.py, which measures all methods side by side.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # first: it silences TensorFlow's start-up

import keras
import pandas as pd
import keras_delta as kd

R = kd.regularizers
METHODS = {
    "plain Keras fit": None,
    "l2_fe": lambda: "l2_fe",
    "l2": lambda: "l2",
    "l2_sp": lambda: "l2_sp",
    # In the variant "relative" the same as feature_map.
    "delta, uniform": lambda: R.Delta(attention="uniform"),
    "delta, computed": lambda: R.Delta(),
    # The same with the maps of the source read from a cache.
    "delta, cached": lambda: R.Delta(attention="uniform"),
    "delta, cached, float32": lambda: R.Delta(attention="uniform"),
}
CACHES = {
    "delta, cached": lambda views: kd.SourceMapCache(views=views),
    "delta, cached, float32": lambda views: kd.SourceMapCache(
        dtype="float32", views=views
    ),
}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=Path, required=True)
    add("--backbone", default="efficientnet_lite0", choices=kd.backbones.ALL)
    add("--per-class", type=int, default=10)
    add("--seeds", type=int, default=3)
    add("--image-size", type=int, default=112)
    add("--epochs", type=int, default=15)
    add("--batch-size", type=int, default=16)
    add("--learning-rate", type=float, default=0.01)
    add(
        "--batch-norm-momentum",
        type=float,
        default=0.9,
        help="momentum of the target's BatchNorm; Keras's default is 0.99",
    )
    add("--views", type=int, help="fixed crops per image; needed for a cache")
    usual = [name for name in METHODS if name not in CACHES]
    add("--methods", nargs="+", default=usual, choices=METHODS)
    add("--csv", type=Path, help="file for the figures of every run")
    return parser.parse_args()


def run(method, seed, source, train_set, test_set, args):
    keras.utils.set_random_seed(seed)
    train = train_set.batches(
        args.image_size,
        args.batch_size,
        training=True,
        seed=seed,
        cache=True,
        views=args.views,
    )
    test = test_set.batches(args.image_size, 64, cache=True)
    target = kd.attach_head(
        source,
        len(train_set.class_names),
        batch_norm_momentum=args.batch_norm_momentum,
    )
    steps = len(train) * args.epochs
    settings = {
        "optimizer": keras.optimizers.SGD(
            keras.optimizers.schedules.PiecewiseConstantDecay(
                [2 * steps // 3], [args.learning_rate, args.learning_rate / 10]
            ),
            momentum=0.9,
        ),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
        "jit_compile": False,
    }
    began = time.perf_counter()
    if METHODS[method] is None:
        model = target
        model.compile(**settings)
    else:
        cache = CACHES[method](args.views) if method in CACHES else None
        model = kd.DeltaModel(target, source=source, source_maps=cache)
        model.compile(**settings, regularizer=METHODS[method]())
        model.default_recipe = "none"
        model.prepare(train, verbose=0)
    prepare, began = time.perf_counter() - began, time.perf_counter()
    history = model.fit(
        train,
        epochs=args.epochs,
        shuffle=False,
        callbacks=[kd.callbacks.TerminateOnNaN()],
        verbose=0,
    ).history
    training = time.perf_counter() - began
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    return {
        "method": method,
        "seed": seed,
        "test": accuracy,
        "training": history["accuracy"][-1],
        "prepare": prepare,
        "train": training,
    }


def main():
    args = arguments()
    # Else threads add in another order each time, which after a hundred steps
    # shows as a point or two of accuracy.
    tf.config.experimental.enable_op_determinism()
    sets = kd.data.from_directory(args.data_dir)
    size = args.image_size
    source = kd.backbones.get(args.backbone)(input_shape=(size, size, 3))
    rows = []
    for seed in range(args.seeds):
        if isinstance(sets, dict):
            pool, test_set = sets["train"], sets["test"]
        else:
            pool, test_set = sets.split(0.25, seed=seed)
        train_set = pool.few_shot(args.per_class, seed=seed)
        for method in args.methods:
            rows.append(run(method, seed, source, train_set, test_set, args))
            print("{method}, seed {seed}: {test:.1%}".format(**rows[-1]), flush=True)
            keras.utils.clear_session(free_memory=True)
    frame = pd.DataFrame(rows)
    if args.csv:
        frame.to_csv(args.csv, index=False)
    means = frame.groupby("method", sort=False)
    table = pd.DataFrame(
        {
            "test %": 100 * means["test"].mean(),
            "std": 100 * means["test"].std(),
            "training %": 100 * means["training"].mean(),
            "prepare s": means["prepare"].mean(),
            "train s": means["train"].mean(),
        }
    )
    print(
        f"\n{args.backbone}, {size} px, {args.per_class} images a class, "
        f"{len(test_set)} test images, {args.epochs} epochs of batches of "
        f"{args.batch_size}, SGD {args.learning_rate}, BatchNorm momentum "
        f"{args.batch_norm_momentum}"
        f"{f', {args.views} fixed crops an image' if args.views else ''}"
        f"; mean over {args.seeds} seeds "
        f"(TensorFlow {tf.__version__}, Keras {keras.__version__})"
    )
    print(table.round(1).to_string())


if __name__ == "__main__":
    main()
