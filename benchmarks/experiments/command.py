"""The command line of the experiments: options, plan, training, tables."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_delta import backbones, data
from keras_delta._errors import unknown_name
from experiments import cell, methods, preview, protocols, report, run, studies
from experiments.plan import Plan
from experiments.store import ResultStore
from keras_delta.tuning import __main__ as launcher
from keras_delta.tuning import status

STUDIES = ("few-shot", "why", "robustness")
STUDY_ONLY = ("--per-class", "--smoke", "--image-size")
ARTICLE_ONLY = ("--choose", "--weights")
# To see in minutes, and without data, that all works; the numbers say nothing.
SMOKE = {
    "few-shot": {"methods": ("l2_fe", "delta")},
    "why": {"conditions": (studies.REFERENCE, *studies.CONDITIONS[2:4])},
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
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", type=int, choices=(1, 2), help="of the article")
    what.add_argument("--figure", type=int, choices=(3,), help="of the article")
    what.add_argument(
        "--study",
        nargs="+",
        type=lambda name: name.replace("_", "-"),
        choices=STUDIES,
        help="our own, on few photographs",
    )
    what.add_argument(
        "--cell",
        metavar="KEY",
        help="train a cell of the store again, and compare to the last digit",
    )
    add("--data-dir", type=Path, help="folder of the data sets; default: here")
    add(
        "--download",
        action="store_true",
        help="let TensorFlow Datasets download data sets that are not there",
    )
    add(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(data.DATA_SETS)}, or folder:NAME for DATA_DIR/NAME; default: "
        "the article's, or the study's",
    )
    add(
        "--networks",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(backbones.ALL)}; default: the article's, for studies "
        "efficientnet_lite0",
    )
    add(
        "--methods",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(methods.ALL)}; default: those of the table, or all",
    )
    add("--repeats", type=int, help="seeds of each cell; default: the protocol's")
    add(
        "--protocol",
        choices=protocols.PROTOCOLS,
        help="default: article, for studies few_shot",
    )
    add("--schedule", choices=protocols.SCHEDULES, help="default: the protocol's")
    add("--iterations", type=int, help="of a training; default: the protocol's")
    add(
        "--weights",
        nargs="+",
        metavar="[DATASET=]PATH",
        help="of the source, for the article's; default: imagenet; or files, such as "
        "indoor67=places365.h5",
    )
    add(
        "--choose",
        action="store_true",
        help="choose alpha and beta by 5-fold cross-validation over the article's grid",
    )
    add(
        "--per-class",
        type=int,
        nargs="+",
        help="images a class, with --study and --datasets; default: 10",
    )
    add("--image-size", type=int, help="with --study; default: 112")
    add(
        "--smoke",
        action="store_true",
        help="with --study: tiny, on photographs that are here, to see that it works",
    )
    add(
        "--store",
        type=Path,
        default=Path("runs/experiments"),
        help="folder of results; default: runs/experiments",
    )
    add(
        "--output",
        type=Path,
        help="folder of tables and pictures, several each; default: STORE/tables",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", type=int, metavar="N", help="one process on each")
    where.add_argument(
        "--workers", type=int, metavar="N", help="processes on the CPU; default: cores"
    )
    add(
        "--known",
        type=Path,
        metavar="FOLDER",
        help="take results from the rows (CSV) of an earlier --output, and train only "
        "what they lack",
    )
    add("--plan", action="store_true", help="show what would be trained, and stop")
    add("--retry", action="store_true", help="train cells again that have failed")
    add(
        "--any-version",
        action="store_true",
        help="go on with results of other versions",
    )
    add("--epochs", action="store_true", help="show each epoch, with --workers 1")


def main(args, script):
    """Run the command; `script` is the file that a worker is to run."""
    if args.cell and not args.store.is_dir():
        raise ValueError(f"--store: there are no results in {args.store}.")
    store = ResultStore(args.store, args.any_version)
    check_options(args)
    if args.cell:
        return _again(args, store, script)
    parts = {name: _entries(name, args) for name in _names(args)}
    plan = Plan([entry for entries in parts.values() for entry in entries])
    if not status.launched():
        count = processes(args)
        sizes = preview.check_data(
            plan, store, args.data_dir, args.download, only_sizes=args.plan
        )
        # In this order choices come before what they lead to.
        for path in sorted(args.known.glob("*.csv")) if args.known else ():
            _take(path, plan, store)
        if args.retry:
            for one, _ in store.failed(plan.staged(store)):
                store.forget(one)
        pending = preview.show(plan, store, sizes, count)
        if args.plan:
            return 0
        preview.check_sources(plan, store)
        if pending and count > 1:
            with store.alone():
                return _launch(count, args, script)
    run.run(plan, store, args.data_dir, verbose=2 if args.epochs else 1)
    output = args.output or args.store / "tables"
    for name, entries in parts.items():
        report.write(name, Plan(entries), store, output)
    return 0


def check_options(args):
    """Refuse options that would have no effect, and numbers that make no sense.

    Raises:
        ValueError: names the option.
    """
    given = {f"--{k.replace('_', '-')}": v for k, v in vars(args).items()}
    given = {k: v for k, v in given.items() if v is not None and v is not False}
    if args.cell:
        known = ("--cell", "--store", "--data-dir", "--any-version")
        if wrong := [option for option in given if option not in known]:
            raise ValueError(
                f"{wrong[0]} does not go with --cell: it is trained again as it was."
            )
        return
    wrong, where = ARTICLE_ONLY, "--table or --figure"
    if not args.study:
        wrong, where = STUDY_ONLY, "--study"
    if wrong := [option for option in wrong if option in given]:
        raise ValueError(f"{wrong[0]} goes with {where} alone.")
    if args.per_class and not args.datasets:
        raise ValueError(
            "--per-class needs --datasets: the study's own data sets have their own "
            "numbers of images."
        )
    if args.smoke and (own := [o for o in ("--datasets", "--methods") if o in given]):
        raise ValueError(f"--smoke has its own data and methods: leave {own[0]} out.")
    for option in ("--repeats", "--iterations", "--workers", "--gpus", "--image-size"):
        least = 32 if option == "--image-size" else 1
        if given.get(option, least) < least:
            raise ValueError(
                f"{option}: expected {least} or more, received {given[option]}."
            )
    if args.epochs and processes(args) > 1:
        raise ValueError("--epochs shows those of one process: use --workers 1.")
    folder = args.output or args.store / "tables"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise ValueError(f"--output: cannot write to {folder}: {e.strerror}.") from e


def _take(path, plan, store):
    """Take over what a file of rows has of a plan."""
    try:
        taken = store.take(path, plan.staged(store))
    except ValueError:  # one of the tables
        return
    if taken:
        print(f"Took {taken} results from {path}.")


def _names(args):
    if args.study:
        return list(dict.fromkeys(args.study))
    return [f"table-{args.table}" if args.table else "figure-3"]


def _entries(name, args):
    """Entries of one experiment."""
    own = name in STUDIES
    protocol = protocols.get(args.protocol or ("few_shot" if own else "article"))
    changes = {"schedule": args.schedule, "iterations": args.iterations}
    changes = {k: v for k, v in changes.items() if v is not None}
    common = {"protocol": protocol.replace(**changes), "repeats": args.repeats}
    if args.methods:
        common["methods"] = tuple(methods.get(m) and m for m in args.methods)
    if not own:
        table = args.table or "figure 3"
        given = {"datasets": args.datasets, "networks": args.networks}
        given = {k: v for k, v in given.items() if v is not None}
        return studies.article(
            table, weights=_weights(args), choose=args.choose, **given, **common
        )
    if args.networks:
        if len(args.networks) > 1:
            raise ValueError("--study takes one network. Run it once for each.")
        common["network"] = args.networks[0]
    stage = STUDIES.index(name)
    common |= {"image_size": args.image_size or IMAGE_SIZE, "stage": stage}
    if args.datasets:
        counts = dict.fromkeys(args.per_class or [PER_CLASS])
        common["settings"] = tuple((d, k) for d in args.datasets for k in counts)
    if args.smoke:
        common |= {"image_size": SMOKE_IMAGE_SIZE, "settings": SMOKE_SETTINGS}
        common |= {"repeats": args.repeats or SMOKE_REPEATS, **SMOKE[name]}
        common["protocol"] = common["protocol"].replace(
            iterations=SMOKE_ITERATIONS, folds=2
        )
    if name == "why":
        common.pop("methods", None)
        return studies.why(**common)
    return (studies.few_shot if name == "few-shot" else studies.robustness)(**common)


def _weights(args):
    """What `studies.article` takes as `weights`."""
    found = {}
    for given in args.weights or ():
        dataset, equals, path = given.rpartition("=")
        found[dataset if equals else None] = path
    for path in found.values():
        if path != "imagenet" and not Path(path).exists():
            raise ValueError(f"--weights: there is no file {path}.")
    if set(found) <= {None}:
        return found.get(None, "imagenet")
    names = args.datasets or studies.ARTICLE_DATA
    for dataset in found:
        if dataset is not None and dataset not in names:
            raise ValueError(unknown_name("--weights", dataset, names))
    return {name: found.get(name, found.get(None, "imagenet")) for name in names}


def processes(args):
    """How many processes train."""
    gpus = launcher.visible_gpus()
    if args.gpus is not None and args.gpus > len(gpus):
        there = (
            f"there are {len(gpus)} ({', '.join(gpus)})" if gpus else "there is none"
        )
        raise ValueError(
            f"--gpus {args.gpus}: {there}, as far as CUDA_VISIBLE_DEVICES and "
            "nvidia-smi tell. Use fewer, or --workers N for processes on the CPU."
        )
    return args.gpus or args.workers or len(gpus) or launcher.cores()


def _launch(count, args, script):
    """Become chief and workers; ends in this script as an ordinary process."""
    options = ["--workers", str(count), "--logs", str(args.store / "logs")]
    gpus = launcher.visible_gpus()[:count]
    if gpus and args.workers is None:
        options += ["--gpus", ",".join(gpus)]
    else:
        options += ["--cpu"]
    return launcher.main([*options, str(script), *sys.argv[1:]])


def _again(args, store, script):
    """Train a cell again, with as many threads as before; exit code 1 if it differs."""
    record = store.get(args.cell)
    if record is None:
        known = list(store.records())
        if not known:
            raise ValueError(f"--store: there are no results in {args.store}.")
        raise ValueError(unknown_name("--cell", args.cell, known))
    wanted = str(record.get("threads", launcher.cores()))
    name = "TF_NUM_INTRAOP_THREADS"
    if os.environ.get(name) != wanted:  # TensorFlow reads it when it starts
        environment = {**os.environ, name: wanted}
        command = [sys.executable, str(script), *sys.argv[1:]]
        return subprocess.run(command, env=environment).returncode
    one = cell.from_settings(record["settings"])
    print(
        f"Training {one} again, on {wanted} thread{'s' * (wanted != '1')} an operation"
    )
    old, new = run.rerun(one, store, args.data_dir)
    same = True
    for key in ("accuracy", "loss", "training_accuracy", "feature_penalty"):
        same &= old.get(key) == new.get(key)
        print(f"  {key:18} {old.get(key)!r:24} {new.get(key)!r}")
    same &= old.get("correct") == new.get("correct")
    print("The same to the last digit." if same else "They differ.")
    return 0 if same else 1
