"""The command line of the experiments: plan, train, tables."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from keras_delta import data
from keras_delta.errors import unknown_name
from keras_delta.experiments import (
    cell,
    estimate,
    methods,
    protocols,
    report,
    run,
    studies,
)
from keras_delta.experiments.plan import Plan
from keras_delta.experiments.store import ResultStore
from keras_delta.tuning import __main__ as launcher
from keras_delta.tuning import status

STUDIES = ("few-shot", "why", "robustness")
# To see in minutes, and without data, that all works; the numbers say nothing.
SMOKE = {
    "few-shot": {"methods": ("l2_fe", "delta")},
    "why": {"conditions": (studies.REFERENCE, *studies.CONDITIONS[2:4])},
    "robustness": {
        "methods": ("l2",),
        "noises": (0.0, 0.2),
        "corruptions": ("blur 2",),
    },
}
SMOKE_SETTINGS = (("photographs", 3),)
SMOKE_IMAGE_SIZE, SMOKE_ITERATIONS, SMOKE_REPEATS = 48, 4, 2


def add_arguments(parser):
    """Declare the options on an `argparse.ArgumentParser`."""
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", type=int, choices=(1, 2), help="of the article")
    what.add_argument("--figure", type=int, choices=(3,), help="of the article")
    what.add_argument(
        "--study", nargs="+", choices=STUDIES, help="our own, on few photographs"
    )
    what.add_argument(
        "--cell",
        metavar="KEY",
        help="train a cell of the store again, and compare to the last digit",
    )
    add("--data-dir", type=Path, help="folder of the data sets")
    add("--datasets", nargs="+", help="default: the article's, or the study's")
    add("--networks", nargs="+", help="default: the article's, or efficientnet_lite0")
    add("--methods", nargs="+", help="names, or all; default: all that it has")
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
        default=["imagenet"],
        metavar="[DATASET=]PATH",
        help="of the source: imagenet, or files, such as indoor67=places365.h5",
    )
    add(
        "--choose",
        action="store_true",
        help="choose alpha and beta by 5-fold cross-validation over the article's grid",
    )
    add("--per-class", type=int, nargs="+", help="images a class, with --study")
    add("--image-size", type=int, default=112, help="with --study; default: 112")
    add(
        "--smoke",
        action="store_true",
        help="with --study: tiny, on photographs that are here, to see that it works",
    )
    add(
        "--store", type=Path, default=Path("runs/experiments"), help="folder of results"
    )
    add("--output", type=Path, help="folder of tables; default: STORE/tables")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpus", type=int, metavar="N", help="one process on each")
    where.add_argument(
        "--workers", type=int, metavar="N", help="processes on the CPU; default: cores"
    )
    add("--plan", action="store_true", help="show what would be trained, and stop")
    add("--retry", action="store_true", help="train cells again that have failed")
    add(
        "--any-version",
        action="store_true",
        help="go on with results of other versions",
    )
    add("--epochs", action="store_true", help="show each epoch (one process alone)")


def main(args, script):
    """Run the command; `script` is the file that a worker is to run."""
    store = ResultStore(args.store, args.any_version)
    if args.cell:
        return _again(args, store, script)
    parts = {name: _entries(name, args) for name in _names(args)}
    plan = Plan([entry for entries in parts.values() for entry in entries])
    if not status.launched():
        count = processes(args)
        sizes = check_data(plan, store, args.data_dir, only_sizes=args.plan)
        if args.retry:
            for one, _ in store.failed(plan.staged(store)):
                store.forget(one)
        pending = show(plan, store, sizes, count)
        if args.plan:
            return 0
        if pending and count > 1:
            with store.alone():
                return _launch(count, args, script)
    run.run(plan, store, args.data_dir, verbose=2 if args.epochs else 1)
    output = args.output or args.store / "tables"
    for name, entries in parts.items():
        report.write(name, Plan(entries), store, output)
    return 0


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
    if args.methods and args.methods != ["all"]:
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
    common |= {"image_size": args.image_size, "stage": stage}
    if args.datasets:
        counts = args.per_class or [10]
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
    for given in args.weights:
        dataset, equals, path = given.rpartition("=")
        found[dataset if equals else None] = path
    for path in found.values():
        if path != "imagenet" and not Path(path).exists():
            raise ValueError(f"--weights: there is no file {path}.")
    if None in found and len(found) == 1:
        return found[None]
    names = args.datasets or studies.ARTICLE_DATA
    for dataset in found:
        if dataset is not None and dataset not in names:
            raise ValueError(unknown_name("--weights", dataset, names))
    return {name: found.get(name, found.get(None, "imagenet")) for name in names}


def check_data(plan, store, data_dir, only_sizes=False):
    """Load all data sets of a plan once, so that what is missing shows first.

    Args:
        plan, store, data_dir: see `run`.
        only_sizes: whether published sizes will do, for data that are not here.

    Returns:
        Dict data set -> (training images, classes).

    Raises:
        ValueError, FileNotFoundError: for data that are missing, damaged, too few, or
            others than those of the store.
    """
    cells = [entry.cell for entry in plan.entries]
    cells += [entry.choice.one_fold for entry in plan.entries if entry.choice]
    sizes = {}
    for name in dict.fromkeys(one.dataset for one in cells):
        published = data.DATA_SETS.get(name)
        if only_sizes and published is not None:
            sizes[name] = published.train, published.classes
            continue
        sets = data.load(name, data_dir)
        if not store.same_data(name, _digest(sets)):
            data.load(name, data_dir, verify=True)
        sizes[name] = len(sets["train"]), len(sets["train"].class_names)
        for per_class, fold, seed in {
            (c.per_class, c.fold, c.seed) for c in cells if c.dataset == name
        }:
            pool = sets["train"]
            pool = pool.few_shot(per_class, seed) if per_class is not None else pool
            if fold is not None:
                pool.folds(fold[1])
    return sizes


def _digest(sets):
    """Of labels, and of the files' names."""
    found = {}
    for part, images in sets.items():
        names = [Path(p).parts[-2:] for p in images.paths or ()]
        found[part] = [images.labels.tolist(), names]
    return cell.digest(found)


def show(plan, store, sizes, count):
    """Print what there is to do; returns how many cells are not done.

    Args:
        plan, store: see `run`.
        sizes: of `check_data`.
        count: number of processes.
    """
    staged = plan.staged(store)
    waiting = [
        e.cell for e in plan.entries if e.resolved(store) is None and not e.lost(store)
    ]
    missing = [one for one in staged if one not in store] + waiting
    rates = estimate.image_seconds(missing, store)
    rows = defaultdict(lambda: [0, 0, 0.0])
    for one in [*staged, *waiting]:
        row = rows[one.dataset, one.network, "choose alpha" if one.fold else "result"]
        row[0] += 1
    for one in missing:
        row = rows[one.dataset, one.network, "choose alpha" if one.fold else "result"]
        row[1] += 1
        row[2] += estimate.seconds(one, sizes, rates)
    print(f"Results in {store.folder}")
    line = "{:22} {:18} {:12} {:>6} {:>6} {:>8}".format
    print(line("data", "network", "for", "cells", "to do", "hours"))
    for (dataset, *what), (cells, left, seconds) in rows.items():
        name = dataset.removeprefix("folder:")
        print(line(name, *what, cells, left, f"{seconds / 3600:.2f}"))
    if missing:
        hours = sum(row[2] for row in rows.values()) / 3600 / count
        where = f" in {count} processes" * (count > 1)
        print(f"{len(missing)} cells to train, about {hours:.1f} hours{where}\n")
    else:
        print("All cells are done.\n")
    sys.stdout.flush()
    return len(missing)


def processes(args):
    """How many processes train."""
    gpus = launcher.visible_gpus()
    for option, number in (("--gpus", args.gpus), ("--workers", args.workers)):
        if number is not None and number < 1:
            raise ValueError(
                f"{option}: expected a positive number, received {number}."
            )
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
        raise ValueError(unknown_name("--cell", args.cell, store.records()))
    wanted = str(record["threads"])
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
