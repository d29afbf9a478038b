"""The command line of the experiments: options, plan, training, tables."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from keras_delta import _disk, backbones, data
from keras_delta._errors import unknown_name
from experiments import cell, methods, preview, protocols, report, run, studies
from experiments.plan import Plan
from experiments.store import ResultStore
from keras_delta._runs import devices, launch, status

OF_BENCH = (  # in its protocol
    *("bench", "recipe", "distances", "search", "averages", "distillation", "domains"),
    *("family", "family-plain"),
)
STUDIES = ("few-shot", "why", "robustness", "start", *OF_BENCH)
OWN_METHODS = ("why", "start", *OF_BENCH[1:])
# Which options go with one kind of experiment alone.
GOES_WITH = {
    **dict.fromkeys(("--per-class", "--smoke", "--image-size"), "--study"),
    **dict.fromkeys(("--choose", "--weights"), "--table or --figure"),
}
OF_CELL = ("--cell", "--store", "--data-dir", "--any-version")
# To see in minutes, and without data, that all works; the numbers say nothing.
SMOKE = {
    "few-shot": {"methods": ("l2_fe", "delta")},
    "why": {"conditions": (studies.REFERENCE, *studies.CONDITIONS[2:4])},
    "start": {"conditions": (studies.FROM_RANDOM, *studies.STARTS[:4])},
    "bench": {"methods": ("probe", "l2", *methods.TRAINERS)},
    "recipe": {"parts": studies.PARTS[:1]},
    "distances": {"parts": studies.DISTANCES[3:4]},
    "search": {"parts": studies.CANDIDATES[-1:]},
    "averages": {"conditions": studies.AVERAGES[:2]},
    "distillation": {"conditions": studies.DISTILLED[::2]},
    "domains": {"conditions": studies.DISTILLED[::2]},
    "family": {"members": studies.MEMBERS[::5]},
    "family-plain": {"members": studies.PLAIN[::4]},
    "robustness": {
        "methods": ("delta",),
        "noises": (0.0, 0.2),
        "corruptions": ("blur 2",),
    },
}
IMAGE_SIZE, PER_CLASS = 112, 10
SMOKE_SETTINGS = (("photographs", 3),)
SMOKE_IMAGE_SIZE, SMOKE_ITERATIONS, SMOKE_REPEATS = 48, 4, 2


def add_arguments(parser):
    """Declare the options on an `argparse.ArgumentParser`."""
    what = parser.add_mutually_exclusive_group(required=True)
    where = parser.add_mutually_exclusive_group()

    def add(*names, to=parser, **options):
        to.add_argument(*names, **options)

    def flag(name, text):
        parser.add_argument(name, action="store_true", help=text)

    def study(name):
        return name.replace("_", "-")

    def names(known, default):
        text = f"{', '.join(known)}; default: {default}"
        return {"nargs": "+", "metavar": "NAME", "help": text}

    one = _at_least(1)
    add("--table", to=what, type=int, choices=(1, 2), help="of the article")
    add("--figure", to=what, type=int, choices=(3,), help="of the article")
    text = "our own, on few photographs"
    add("--study", to=what, nargs="+", type=study, choices=STUDIES, help=text)
    text = "train a cell of the store again, and compare to the last digit"
    add("--cell", to=what, metavar="KEY", help=text)
    add("--data-dir", type=Path, help="folder of the data sets; default: here")
    flag("--download", "let TensorFlow Datasets download data sets that are not there")
    known = [*data.DATA_SETS, "or folder:NAME for DATA_DIR/NAME"]
    add("--datasets", **names(known, "the article's, or the study's"))
    default = "the article's, for studies efficientnet_lite0"
    add("--networks", **names(backbones.ALL, default))
    add("--methods", **names(methods.KNOWN, "those of the table, or all"))
    add("--repeats", type=one, help="seeds of each cell; default: the protocol's")
    text = "default: article, for studies few_shot, for bench its own"
    add("--protocol", choices=protocols.PROTOCOLS, help=text)
    text = "default: the protocol's"
    add("--schedule", choices=protocols.SCHEDULES, help=text)
    add("--iterations", type=one, help="of a training; default: the protocol's")
    text = (
        "of the source, for the article's; default: imagenet; or files, such as "
        "indoor67=places365.h5"
    )
    add("--weights", nargs="+", metavar="[DATASET=]PATH", help=text)
    flag("--choose", "choose alpha and beta by 5-fold cross-validation over the grid")
    text = "images a class, with --study and --datasets; default: 10"
    add("--per-class", type=int, nargs="+", help=text)
    add("--image-size", type=_at_least(32), help="with --study; default: 112")
    flag("--smoke", "with --study: tiny, on photographs that are here, to try it")
    store = Path("runs/experiments")
    add("--store", type=Path, default=store, help=f"of results; default: {store}")
    add("--output", type=Path, help="of tables and pictures; default: STORE/tables")
    add("--gpus", to=where, type=one, metavar="N", help="one process on each")
    text = "processes on the CPU; default: cores"
    add("--workers", to=where, type=one, metavar="N", help=text)
    text = "take results of the same images from an earlier --output, train the others"
    add("--known", type=Path, metavar="FOLDER", help=text)
    flag("--plan", "show what would be trained, and stop")
    flag("--retry", "train cells again that have failed")
    flag("--any-version", "go on with results of other versions")
    flag("--epochs", "show each epoch, with --workers 1")


def _at_least(least):
    def number(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, not {text}")
        return int(text)

    return number


def main(args, script):
    """Run the command; `script` is the file that a worker is to run."""
    if args.cell and not args.store.is_dir():
        raise ValueError(f"--store: there are no results in {args.store}.")
    store = ResultStore(args.store, args.any_version)
    check_options(args)
    if args.cell:
        return _again(args, store, script)
    output = args.output or args.store / "tables"
    _disk.check_writable("--output", output)
    parts = {name: _entries(name, args) for name in _names(args)}
    plan = Plan([entry for entries in parts.values() for entry in entries])
    if not status.launched():
        count = processes(args)
        sizes = preview.check_data(
            plan, store, args.data_dir, args.download, only_sizes=args.plan
        )
        for path in _known(args, parts):
            _take(path, plan, store)
        if args.retry:
            for failed, _ in store.failed(plan.staged(store)):
                store.forget(failed)
        pending = preview.show(plan, store, sizes, count)
        if args.plan:
            return 0
        preview.check_sources(plan, store)
        if pending and count > 1:
            with store.alone():
                return _launch(count, args, script)
    run.run(plan, store, args.data_dir, verbose=2 if args.epochs else 1)
    for name, entries in parts.items():
        report.write(name, Plan(entries), store, output)
    return 0


def check_options(args):
    """Refuse options that would have no effect."""
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(args).items()
        if value is not None and value is not False
    ]
    kind = "--study" if args.study else "--table or --figure"
    for option in given:
        if args.cell and option not in OF_CELL:
            text = f"{option} does not go with --cell: it is trained again as it was."
            raise ValueError(text)
        if GOES_WITH.get(option, kind) != kind:
            raise ValueError(f"{option} goes with {GOES_WITH[option]} alone.")
        if args.smoke and option in ("--datasets", "--methods"):
            raise ValueError(f"--smoke has its own data and methods: omit {option}.")
    if args.methods and (own := [n for n in args.study or () if n in OWN_METHODS]):
        raise ValueError(f"--study {own[0]} has its own methods: omit --methods.")
    if args.figure and len(args.networks or ()) > 1:
        raise ValueError("--figure draws one network. Run it once for each.")
    if args.per_class and not args.datasets:
        raise ValueError(
            "--per-class needs --datasets: the study's own data sets have their own "
            "numbers of images."
        )
    if args.epochs and processes(args) > 1:
        raise ValueError("--epochs shows those of one process: use --workers 1.")


def _known(args, parts):
    """The files of `--known`, first those of the experiments themselves.

    In the order of their names, choices come before what they lead to.
    """

    def place(path):
        return path.stem.removesuffix("-choices") not in parts, path.name

    return sorted(args.known.glob("*.csv") if args.known else (), key=place)


def _take(path, plan, store):
    """Take over what a file of rows has of a plan."""
    try:
        taken, others = store.take(path, plan.staged(store))
    except ValueError:  # one of the tables
        return
    if taken:
        print(f"Took {taken} results from {path}.")
    if others:
        print(f"Left out {others} of {path}, not known to be of the images here.")


def _names(args):
    if args.study:
        return list(dict.fromkeys(args.study))
    return [f"table-{args.table}" if args.table else "figure-3"]


def _entries(name, args):
    """Entries of one experiment."""
    default = "few_shot" if name in STUDIES else "article"
    protocol = args.protocol or ("bench" if name in OF_BENCH else default)
    changes = {"schedule": args.schedule, "iterations": args.iterations}
    changes = {k: v for k, v in changes.items() if v is not None}
    options = {
        "protocol": protocols.get(protocol).replace(**changes),
        "repeats": args.repeats,
    }
    if args.methods:
        options["methods"] = tuple(methods.get(m) and m for m in args.methods)
    if name in STUDIES:
        return _of_study(name, args, options)
    options |= {"weights": _weights(args), "choose": args.choose}
    options["datasets"] = args.datasets
    if args.networks or args.figure:
        options["networks"] = args.networks or studies.ARTICLE_NETWORKS[:1]
    return studies.article(args.table or "figure 3", **options)


def _of_study(name, args, options):
    if args.networks:
        if len(args.networks) > 1:
            raise ValueError("--study takes one network. Run it once for each.")
        options["network"] = args.networks[0]
    options["stage"] = STUDIES.index(name)
    options["image_size"] = args.image_size or IMAGE_SIZE
    if args.datasets:
        counts = dict.fromkeys(args.per_class or [PER_CLASS])
        options["settings"] = tuple((d, k) for d in args.datasets for k in counts)
    if args.smoke:
        options |= {"image_size": SMOKE_IMAGE_SIZE, "settings": SMOKE_SETTINGS}
        options |= {"repeats": args.repeats or SMOKE_REPEATS, **SMOKE[name]}
        options["protocol"] = options["protocol"].replace(
            iterations=SMOKE_ITERATIONS, folds=2
        )
    if name in OWN_METHODS:
        options.pop("methods", None)
    return getattr(studies, name.replace("-", "_"))(**options)


def _weights(args):
    """What `studies.article` takes as `weights`."""
    paths = {}
    for given in args.weights or ():
        dataset, _, path = given.rpartition("=")
        paths[dataset] = path
    for path in paths.values():
        if path != "imagenet" and not Path(path).exists():
            raise ValueError(f"--weights: there is no file {path}.")
    default = paths.pop("", "imagenet")
    names = args.datasets or studies.ARTICLE_DATA
    for dataset in paths:
        if dataset not in names:
            raise ValueError(unknown_name("--weights", dataset, names))
    return {name: paths.get(name, default) for name in names}


def processes(args):
    """How many processes train."""
    gpus = devices.visible_gpus()
    if args.gpus is not None and args.gpus > len(gpus):
        some = f"there are {len(gpus)} ({', '.join(gpus)})" if gpus else "there is none"
        raise ValueError(
            f"--gpus {args.gpus}: {some}, as far as CUDA_VISIBLE_DEVICES and "
            "nvidia-smi tell. Use fewer, or --workers N for processes on the CPU."
        )
    return args.gpus or args.workers or len(gpus) or devices.cores()


def _launch(count, args, script):
    """Become several workers; ends in this script as an ordinary process."""
    gpus = [] if args.workers else devices.visible_gpus()[:count]
    # Without `--retry`, even shortened: in the end, the command would forget what has
    # failed once more, and begin again, for ever.
    rest = [a for a in sys.argv[1:] if not a.startswith("--ret")]
    command = [sys.executable, str(script), *rest]
    return launch.launch(command, count, gpus, args.store / "logs")


def _again(args, store, script):
    """Train a cell again, with as many threads as before; exit code 1 if it differs."""
    record = store.get(args.cell)
    if record is None:
        known = list(store.records())
        if not known:
            raise ValueError(f"--store: there are no results in {args.store}.")
        raise ValueError(unknown_name("--cell", args.cell, known))
    threads = str(record.get("threads", devices.cores()))
    name = "TF_NUM_INTRAOP_THREADS"
    if os.environ.get(name) != threads:  # TensorFlow reads it when it starts
        command = [sys.executable, str(script), *sys.argv[1:]]
        return subprocess.run(command, env={**os.environ, name: threads}).returncode
    again, plural = cell.from_settings(record["settings"]), "s" * (threads != "1")
    print(f"Training {again} again, on {threads} thread{plural} an operation")
    old, new = run.rerun(again, store, args.data_dir)
    for key in ("accuracy", "loss", "training_accuracy", "feature_penalty"):
        print(f"  {key:18} {old.get(key)!r:24} {new.get(key)!r}")
    keys = ("accuracy", "loss", "training_accuracy", "feature_penalty", "correct")
    same = all(old.get(key) == new.get(key) for key in keys)
    print("The same to the last digit." if same else "They differ.")
    return 0 if same else 1
