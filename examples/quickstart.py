"""Fine-tune on few images: plain Keras, the head alone, the recipe; export, classify.

    python examples/quickstart.py
    python examples/quickstart.py --data-dir my_photos --output runs/mine

Without --data-dir it learns handwritten digits from 200 scans that ship with
scikit-learn, one in five of them with a wrong label.
"""

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path

from quiet import tf  # first: it silences TensorFlow's start-up

import keras
import numpy as np
import keras_delta as kd
from matplotlib.figure import Figure
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

PLAIN = "plain"
METHODS = (PLAIN, "l2_fe", "feature_map")
WHAT = {
    PLAIN: "all, from a random head",
    "l2_fe": "the head alone",
    "feature_map": "all, by kd.fine_tune",
}
MANY = 500  # training images, from which on two methods have to do
PASSES = 4  # forward passes that a step takes as long as
console = Console(highlight=False)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder of class folders, or of train/ and test/")
    add("--backbone", default="efficientnet_lite0", choices=sorted(kd.backbones.ALL))
    add(
        "--weights",
        default="imagenet",
        help='"imagenet", "none" for random ones, or the path of a weights file',
    )
    add(
        "--regularizer",
        action="append",
        choices=[*sorted(kd.regularizers.ALL), PLAIN],
        help="may be given several times; the last one is exported "
        f"(default: {', '.join(METHODS)}; of more than {MANY} images two of them)",
    )
    for name in ("epochs", "batch-size", "image-size"):
        add(f"--{name}", type=int, help="default: chosen for the images")
    add("--wrong-labels", type=float, default=0.2, help="share of them in the digits")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("runs/quickstart"))
    add("--quick", action="store_true", help="two epochs on few images, to see it run")
    args = parser.parse_args()
    for name in ("epochs", "batch_size", "image_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if args.weights not in ("imagenet", "none") and not Path(args.weights).is_file():
        parser.error(f"--weights: there is no file {args.weights}")
    return args


def read_images(args):
    """Training and test images."""
    if args.data_dir is None:
        clean, test = read_digits(args)
        return clean.with_wrong_labels(args.wrong_labels, seed=args.seed), test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was left out is listed below
        sets = kd.data.from_directory(args.data_dir, on_error="skip")
    if isinstance(sets, dict):
        held_out = next((sets[s] for s in ("test", "val") if s in sets), None)
        if held_out is not None:
            return sets["train"], held_out
        sets = sets["train"]
    return sets.split(0.25, seed=args.seed)


def read_digits(args):
    """Training and test images that everybody has, with right labels."""
    per_class = (5, 3) if args.quick else (20, 150)
    return kd.data.embedded_digits(*per_class, seed=args.seed).values()


def choose(args, images):
    """What the arguments leave open, for so many training images."""
    own = args.data_dir is not None
    fast = bool(tf.config.list_physical_devices("GPU"))
    size = (
        kd.backbones.ALL[args.backbone].size if fast else 160 if images < 5000 else 112
    )
    chosen = {
        "image_size": size if own else 64,
        "batch_size": 32 if images >= 320 else 16 if images >= 64 else 8,
    }
    if args.quick:
        chosen["image_size"] = 40
    for name, value in chosen.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.epochs is None:
        steps = -(-images // args.batch_size)
        few = kd.Recipe().epochs_for(steps) if images < 5000 else 4
        args.epochs = 2 if args.quick else few
    if args.regularizer is None:
        args.regularizer = list(METHODS if images <= MANY else METHODS[1:])
    console.print(
        f"{args.image_size} pixels, batches of {args.batch_size}, {args.epochs} epochs "
        f"of {', '.join(args.regularizer)}"
    )


def estimate(source, train, test, args):
    """Say how long all of it may take, by a look at how fast the network is."""
    x = np.zeros((args.batch_size, args.image_size, args.image_size, 3), "float32")
    run = tf.function(source)
    run(x)
    began = time.perf_counter()
    run(x)
    one = (time.perf_counter() - began) / len(x)
    passes = len(train) * (PASSES * args.epochs + 3) + 6 * len(test)
    minutes = max(1, round(len(args.regularizer) * passes * one / 60 + 1))
    console.print(f"about {minutes} minute{'s' * (minutes > 1)} for all that follows")


class OneBar(keras.callbacks.Callback):
    """One progress bar for a whole training, with the time left; a line in a file."""

    def on_train_begin(self, logs=None):
        self.began = time.perf_counter()
        steps = self.params["steps"] * self.params["epochs"]
        self.bar = keras.utils.Progbar(steps, stateful_metrics=["accuracy", "loss"])
        self.done = 0

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        self.shown = [(k, logs[k]) for k in ("accuracy", "loss")]
        if sys.stdout.isatty():
            self.bar.update(self.done, self.shown, finalize=False)

    def on_train_end(self, logs=None):
        if sys.stdout.isatty():
            self.bar.update(self.done, self.shown, finalize=True)
            return
        shown = ", ".join(f"{name} {value:.4f}" for name, value in self.shown)
        seconds = time.perf_counter() - self.began
        console.print(f"{self.done} steps in {seconds:.0f} s: {shown}")


def fine_tune(name, source, train, test, labels, classes, args):
    """Train one target with one regularizer: the model, and a row of the result."""
    keras.utils.set_random_seed(args.seed)
    model = kd.DeltaModel(kd.attach_head(source, classes), source=source)
    settings = {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
        "jit_compile": False,  # compiling takes longer than it saves on few images
    }
    if name == PLAIN:
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), **settings)
    else:  # the optimizer is the recipe's, as is the start
        model.compile(regularizer=name, **settings)
    clock, every = Clock(), max(1, args.epochs // 3)
    model.fit(
        train,
        validation_data=test,
        validation_freq=every,
        epochs=args.epochs,
        shuffle=False,  # the data set shuffles by itself
        callbacks=[OneBar(), kd.callbacks.TerminateOnNaN(), clock],
        verbose=0,
    )
    if model.probe:
        console.print(str(model.probe))
    right = model.predict(test, verbose=0).argmax(-1) == labels
    row = {"method": name, "right": right, "clock": clock, "every": every}
    return model, {**row, "history": model.history.history}


class Clock(keras.callbacks.Callback):
    """Seconds before the first epoch, and from then on."""

    def __init__(self):
        super().__init__()
        self._made = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self._began = time.perf_counter()
            self.prepared = self._began - self._made

    def on_train_end(self, logs=None):
        self.trained = time.perf_counter() - self._began


def table_of(rows):
    """Header and lines of the result, as strings; the last method is compared."""
    last = rows[-1]
    lines = []
    for row in rows:
        clock, ahead = row["clock"], ""
        if row is not last:
            ahead = percent(last["right"].astype(int) - row["right"], "+")
        lines.append(
            [
                row["method"],
                WHAT.get(row["method"], "all, by the recipe"),
                percent(row["right"]),
                ahead,
                f"{clock.prepared + clock.trained:.0f} s",
            ]
        )
    header = ["method", "what is trained", "accuracy %"]
    return [*header, f"{last['method']} ahead", "time"], lines


def percent(values, sign=""):
    """Mean and its standard error, in percent."""
    error = np.std(values) / np.sqrt(len(values))
    return f"{100 * np.mean(values):{sign}.1f} ± {100 * error:.1f}"


def show_table(header, lines, images):
    table = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(header):
        table.add_column(column, justify="left" if i < 2 else "right")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    console.print(f"± is one standard error over the {images} test images.\n")


def write_table(header, lines, path):
    """The same in Markdown."""
    rule = ["---", "---", *["---:"] * (len(header) - 2)]
    text = "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *lines))
    path.write_text(text, encoding="utf-8")


def look_for_wrong_labels(args, source, train):
    """How many of the digits' wrong labels a linear model finds."""
    clean, _ = read_digits(args)
    wrong = np.flatnonzero(train.labels != clean.labels)
    suspects = kd.analysis.suspect_labels(source, train, image_size=args.image_size)
    hits = np.isin(wrong, [s.index for s in suspects]).sum()
    console.print(
        f"{len(wrong)} of {len(train)} training labels are wrong. "
        f"kd.analysis.suspect_labels lists {len(suspects)}, {hits} of the wrong ones "
        "among them.\n",
        soft_wrap=True,
    )


def plot_curves(rows, path):
    """Training loss and accuracy on training and test images, by epoch."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, row in enumerate(rows):
        history, color = row["history"], f"C{i}"
        epochs = np.arange(1, len(history["loss"]) + 1)
        tested = epochs[row["every"] - 1 :: row["every"]]
        left.plot(epochs, history["task_loss"], color=color)
        right.plot(epochs, history["accuracy"], color=color, ls=":", lw=1)
        right.plot(
            tested, history["val_accuracy"], color=color, marker="o", ms=4,
            label=f"{row['method']}: {row['right'].mean():.1%}",
        )  # fmt: skip
    left.set(xlabel="epoch", ylabel="task loss on training images", yscale="log")
    right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    right.set_title("solid: test images, dotted: training", fontsize=9, loc="left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    right.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, dpi=150)


def save_images(test, folder, size, count=6):
    """A few test images as files, as a user of the SavedModel would have them."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng(1).permutation(len(test))[:count]
    subset = test.subset(np.sort(chosen))
    x, y = subset.arrays(size, dtype="uint8")
    paths = []
    for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
        paths.append(folder / f"{i}_{subset.class_names[label]}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def main():
    args = arguments()
    tf.config.experimental.enable_op_determinism()
    args.output.mkdir(parents=True, exist_ok=True)
    for old in ("attention.json", "attention.png"):  # not every run makes them
        (args.output / old).unlink(missing_ok=True)

    console.rule("1  Images", align="left")
    train_set, test_set = read_images(args)
    classes = len(train_set.class_names)
    if args.data_dir is None:
        console.print(f"Handwritten digits, {args.wrong_labels:.0%} wrong labels")
    console.print(f"train: {train_set}\ntest:  {test_set}", soft_wrap=True)
    for path, reason in dict.fromkeys([*train_set.skipped, *test_set.skipped]):
        console.print(f"left out: {path} ({reason})", soft_wrap=True)
    choose(args, len(train_set))
    train = train_set.batches(
        args.image_size, args.batch_size, training=True, seed=args.seed, cache=True
    )
    test = test_set.batches(args.image_size, 64, cache=True)

    console.rule("2  Source network", align="left")
    source = kd.backbones.get(args.backbone)(
        weights=None if args.weights == "none" else args.weights,
        input_shape=(args.image_size, args.image_size, 3),
    )
    console.print(f"{args.backbone}, {source.count_params():,} parameters")
    estimate(source, train_set, test_set, args)

    console.rule("3  Fine-tuning", align="left")
    rows, model = [], None
    for name in args.regularizer:
        console.print(f"[bold]{name}[/bold]")
        model, row = fine_tune(
            name, source, train, test, test_set.labels, classes, args
        )
        rows.append(row)
        attention = getattr(model.regularizer, "computed_attention", None)
        if attention is not None:
            attention.save(args.output / "attention.json")
            attention.plot(args.output / "attention.png")

    if model.recipe:
        console.print(f"\nThe recipe of the last one:\n{model.recipe}")

    console.rule("4  Result", align="left")
    header, lines = table_of(rows)
    show_table(header, lines, len(test_set))
    write_table(header, lines, args.output / "result.md")
    if args.data_dir is None:
        look_for_wrong_labels(args, source, train_set)
    plot_curves(rows, args.output / "learning_curves.png")

    console.rule("5  Export", align="left")
    model.save(args.output / "model.keras")
    served = args.output / "served" / "images"
    kd.export_for_serving(
        model,
        served,
        train_set.class_names,
        validation_data=test,
        model_card={"data": f"{train_set}"},
        overwrite=True,
    )
    report = args.output / "report.html"
    kd.analysis.report(model, train_set, test_set, report, verbose=0)
    images = save_images(test_set, args.output / "images", args.image_size)
    for path in sorted(args.output.iterdir()):
        console.print(f"  {path}", soft_wrap=True)
    console.print(f"  {served / '1' / 'MODEL_CARD.md'}", soft_wrap=True)
    console.print("\nA fresh process with TensorFlow alone classifies test images")
    console.print("(their true class is in the file name):")
    classify = Path(__file__).with_name("classify.py")
    subprocess.run([sys.executable, classify, served, *images], check=True)
    console.rule("6  What next", align="left")
    data = args.data_dir or "my_photos"
    for step in (
        f"Look:     open {report}: mistakes, labels that may be wrong, what changed",
        f"Serve:    make serve ARGS={served}",
        f'Go on:    make quickstart ARGS="--data-dir {data} --image-size 224"',
        f'In code:  kd.fine_tune("{args.backbone}", "{data}", image_size=160)',
    ):
        console.print(step, soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"\n{type(error).__name__}: {error}")
