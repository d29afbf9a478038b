"""Choose alpha and beta by cross-validation, then train on everything and test.

    python examples/search_alpha_beta.py
    python examples/search_alpha_beta.py --data-dir my_photos --search bayesian
    python -m keras_delta.tuning --workers 2 examples/search_alpha_beta.py

Interrupt it at any time: the same command resumes it. Without --data-dir, it classifies
small patches of twelve photographs that ship with scikit-image.
"""

import argparse
import sys
from pathlib import Path

from quiet import tf  # first: it silences TensorFlow's start-up

import keras_delta as kd


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder of class folders, or of train/ and test/")
    add("--backbone", default="efficientnet_lite0", choices=sorted(kd.backbones.ALL))
    add("--search", default="grid", choices=("grid", "bayesian", "hyperband"))
    add("--alphas", type=float, nargs="+", default=[0.5, 5.0, 50.0])
    add("--betas", type=float, nargs="+", default=[0.001, 0.1])
    add("--folds", type=int, default=3)
    add("--epochs", type=int, default=8)
    add("--batch-size", type=int, default=16)
    add("--image-size", type=int, default=96)
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/search"))
    return parser.parse_args()


def photographs(args):
    """Training and test images."""
    if args.data_dir is None:
        sets = kd.data.embedded_photographs(seed=args.seed)
        return sets["train"], sets["test"]
    sets = kd.data.from_directory(args.data_dir)
    if isinstance(sets, dict):
        return sets["train"], sets["test"]
    return sets.split(0.25, seed=args.seed)


def tuner(args, classes):
    """The requested search."""
    size = args.image_size

    def source():
        return kd.backbones.get(args.backbone)(input_shape=(size, size, 3))

    def target(source):
        return kd.attach_head(source, classes)

    def space(alpha, beta):
        return kd.tuning.DeltaHyperModel(
            source, target, "delta", alpha=alpha, beta=beta, jit_compile=False
        )

    alphas, betas = args.alphas, args.betas
    ranges = (min(alphas), max(alphas)), (min(betas), max(betas))
    common = {
        "folds": args.folds,
        "seed": args.seed,
        "directory": args.output,
        "project_name": args.search,
    }
    if args.search == "grid":
        return kd.tuning.CrossValidatedGridSearch(space(alphas, betas), **common)
    if args.search == "bayesian":
        return kd.tuning.CrossValidatedBayesianOptimization(
            space(*ranges), max_trials=6, num_initial_points=3, **common
        )
    return kd.tuning.CrossValidatedHyperband(
        space(*ranges), max_epochs=args.epochs, **common
    )


def main():
    args = arguments()
    tf.config.experimental.enable_op_determinism()
    train_set, test_set = photographs(args)
    print(f"{train_set}\n", flush=True)
    search = tuner(args, len(train_set.class_names))
    search.search(train_set, epochs=args.epochs, batch_size=args.batch_size)

    print(f"\n{search.summary()}\n")
    search.results_frame().to_csv(args.output / "search.csv", index=False)
    search.plot_surface(args.output / "surface.png")

    print("Training with the best settings on all training images")
    model = search.fit_best(verbose=0)
    test = test_set.batches(args.image_size, 64)
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    print(f"accuracy on {len(test_set)} test images: {accuracy:.1%}")
    model.save(args.output / "model.keras")
    for name in ("search.csv", "surface.png", "model.keras"):
        print(f"  {args.output / name}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"\n{type(error).__name__}: {error}")
