"""The sections of a report: what each shows, and why one is left out."""

from typing import Any, NamedTuple

import numpy as np

from keras_delta import _tasks, regularizers
from keras_delta.analysis import answers as judged
from keras_delta.analysis import distances
from keras_delta.analysis.key_points import aggregate
from keras_delta.analysis.near_duplicates import near_duplicates
from keras_delta.analysis.patches import exciting_patches
from keras_delta.analysis.reporting import pictures
from keras_delta.analysis.suspect_labels import suspect_labels
from keras_delta.attention import plot as attention_plot
from keras_delta.statistics import paired_interval

MATRIX = 24  # classes that a confusion matrix has room for
MISTAKES = 24
SUSPECTS = 48
PAIRS = 12
MAPPED = 4  # images whose maps are shown
CHANNELS = 3  # with the most and the least attention
CLASSES = (_tasks.MULTICLASS, _tasks.BINARY)


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        kind: name of the template's macro that shows it, and its anchor.
        title: heading.
        data: what the macro takes.
    """

    kind: str
    title: str
    data: dict[str, Any]


class LeftOut(Exception):
    """A section does not apply; the message says why."""


def summarize(models, train, test, seed):
    """Figures of the test images."""
    first, rows = models[0], []
    _need_labels(test, "Figures")
    for model in models:
        _need_numbers(model, test, "Figures")
        rows.append({"name": model.title, **model.figures(test)})
    data = {"rows": rows, "task": first.task, "images": len(test), "train": train}
    data |= {"classes": first.network.classes, "left_out": test.left_out}
    data |= {"parameters": first.model.count_params(), "names": first.class_names}
    if first.task in CLASSES:
        right = [model.answers(test).right for model in models]
        for row, other in zip(rows, right, strict=True):
            row["ahead"] = paired_interval([right[0]], [other], seed=seed)
    return Section("summary", "How good is it?", data)


def draw_history(models, train, test, seed):
    """Curves of the training."""
    model = models[0].model
    history = getattr(getattr(model, "history", None), "history", None)
    if not history or not history.get("loss"):
        raise LeftOut("Curves of the training: a model from a file has none.")
    names = ("loss", "accuracy") if "accuracy" in history else ("loss",)

    def draw(axes):
        for axis, name in zip(np.ravel(axes), names, strict=True):
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                values = history.get(key)
                if values:
                    step = len(history["loss"]) / len(values)
                    at = step * np.arange(1, len(values) + 1)
                    axis.plot(at, values, label=label, marker=".")
            axis.set(xlabel="epoch", ylabel=name)
            axis.legend(frameon=False)

    chart = pictures.chart(draw, width=6.4, height=2.6, columns=len(names))
    last = {name: history[name][-1] for name in names}
    data = {"chart": chart, "last": last, "epochs": len(history["loss"])}
    return Section("history", "How did the training go?", data)


def tabulate_recall(models, train, test, seed):
    """Recall of each class."""
    answers = _classes(models[0], test, "Recall of each class")
    rows = judged.recalls(answers)
    rows.sort(key=lambda r: (r.share is None, r.share))
    precision = judged.confusion(answers).sum(0)
    said = dict(zip(answers.class_names, precision.tolist(), strict=True))
    data = {"rows": rows, "said": said}
    return Section("recall", "Which classes are recognised?", data)


def tabulate_confusions(models, train, test, seed):
    """Classes that are taken for others."""
    answers = _classes(models[0], test, "Confusions")
    pairs = [
        (answers.class_names[a], answers.class_names[b], n)
        for a, b, n in judged.confused_pairs(answers)
    ]
    matrix = None
    if len(answers.class_names) <= MATRIX:
        matrix = judged.confusion(answers)
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        matrix = [
            list(zip(counts, of, strict=True))
            for counts, of in zip(matrix.tolist(), shares.tolist(), strict=True)
        ]
    data = {"pairs": pairs, "matrix": matrix, "names": answers.class_names}
    return Section("confusions", "What is taken for what?", data)


def show_mistakes(models, train, test, seed):
    """The most confident mistakes."""
    model, answers = models[0], _classes(models[0], test, "Mistakes")
    wrong = judged.confident_mistakes(answers, MISTAKES)
    if not len(wrong):
        raise LeftOut(f"Mistakes: none, all {len(test)} images are recognised.")
    images, said = test.take(wrong), answers.said[wrong]
    heat = [None] * len(wrong)
    if model.network.has_maps:
        heat = model.grad_cam(images, said)
    rows = []
    for i, image, seen in zip(wrong, images, heat, strict=True):
        label, other = answers.labels[i], answers.said[i]
        rows.append(
            {
                "picture": pictures.photograph(image),
                "overlay": None if seen is None else pictures.overlay(image, seen),
                "name": test.names[i],
                "label": answers.class_names[label],
                "said": answers.class_names[other],
                "confidence": float(answers.probabilities[i, other]),
            }
        )
    data = {"rows": rows, "all": int((~answers.right).sum()), "images": len(test)}
    return Section("mistakes", "Where is it wrong?", data)


def draw_reliability(models, train, test, seed):
    """Accuracy by confidence."""
    _classes(models[0], test, "Reliability")
    bins = {m.title: judged.reliability(m.answers(test)) for m in models}

    def draw(axis):
        axis.plot([0, 1], [0, 1], color="#8a8f98", linestyle=":", lw=1)
        for label, found in bins.items():
            at, share, low, high, _ = zip(*found, strict=True)
            errors = np.subtract(share, low), np.subtract(high, share)
            axis.errorbar(at, share, np.maximum(errors, 0), fmt="o", label=label)
        axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02))
        axis.set_ylim(0, 1.02)
        axis.legend(frameon=False)

    answers = models[0].answers(test)
    data = {"chart": pictures.chart(draw, width=4.4, height=3.6)}
    data |= {"bins": bins[models[0].title], "error": answers.calibration_error}
    confidence = float(answers.probabilities.max(1).mean())
    data |= {"confidence": confidence, "accuracy": answers.accuracy[0]}
    return Section("reliability", "Can its confidence be trusted?", data)


def list_suspects(models, train, test, seed):
    """Labels of the training data that are probably wrong."""
    what, model = "Labels that are probably wrong", models[0]
    if train is None or train.labels is None:
        raise LeftOut(f"{what}: no training images with labels were given.")
    if model.task != _tasks.MULTICLASS:
        raise LeftOut(f"{what}: only for one of several classes.")
    if model.delta is None:
        raise LeftOut(f"{what}: a model without its source, which has not seen them.")
    try:
        found = suspect_labels(model.delta, train, seed=seed)
    except (ImportError, ValueError) as error:
        raise LeftOut(f"{what}: {error}") from None
    images = train.take([s.index for s in found[:SUSPECTS]]) if found else []
    rows = [
        {"picture": pictures.photograph(image), "suspect": s}
        for image, s in zip(images, found, strict=False)
    ]
    data = {"rows": rows, "all": len(found), "images": len(train)}
    return Section("suspects", "Which labels are probably wrong?", data)


def list_duplicates(models, train, test, seed):
    """Images that are in training and test."""
    what = "Images that are in training and test"
    if train is None or test is None:
        raise LeftOut(f"{what}: training and test images are both needed.")
    found = near_duplicates(train, test)
    shown, rows = found[:PAIRS], []
    if shown:
        firsts = train.take([p.first for p in shown])
        seconds = test.take([p.second for p in shown])
        for pair, a, b in zip(shown, firsts, seconds, strict=True):
            rows.append(
                {
                    "pictures": (pictures.photograph(a), pictures.photograph(b)),
                    "names": (train.names[pair.first], test.names[pair.second]),
                    "likeness": pair.likeness,
                }
            )
    data = {"rows": rows, "all": len(found), "images": len(test)}
    return Section("duplicates", "Are test images new?", data)


def draw_distances(models, train, test, seed):
    """How far filters moved."""
    curves, found = {}, {}
    for model in models:
        if model.delta is not None and not model.delta.networks.mismatch:
            try:
                found[model.title] = distances.filter_distances(model.delta)
            except ValueError:  # no convolutions in common
                continue
    if not found:
        raise LeftOut("How far filters moved: no model with a source of its kind.")
    for label, stages in found.items():
        curves[label] = [(s, distances.joined(layers)) for s, layers in stages.items()]

    def draw(axis):
        for label, stages in curves.items():
            medians = [np.median(moved) for _, moved in stages]
            axis.plot(range(len(stages)), medians, marker="o", label=label)
        axis.set_xticks(range(len(stages)), [_short(s) for s, _ in stages], rotation=60)
        axis.tick_params(axis="x", labelsize=7)
        axis.set(ylabel="median distance of a filter", ylim=(0, None))
        axis.legend(frameon=False)

    rows = [
        {"name": label, "stage": s, "filters": len(v), "median": float(np.median(v))}
        | {"largest": float(v.max())}
        for label, stages in curves.items()
        for s, v in stages
    ]
    compared = []
    for label in list(found)[1:]:
        first = next(iter(found))
        share = distances.compare_filter_distances(found[first], found[label])
        compared.append({"first": first, "other": label, **share[distances.ALL]})
    data = {"chart": pictures.chart(draw, height=3.4), "rows": rows}
    data["compared"] = compared
    return Section("distances", "What did it change?", data)


def show_maps(models, train, test, seed):
    """Where source and target look."""
    shown = test or train
    deltas = [m for m in models if m.delta is not None]
    if shown is None or not deltas:
        raise LeftOut("Maps: no images, or no model with a source.")
    tap = deltas[0].delta.taps[-1] if deltas[0].delta.taps else None
    if tap is None or len(deltas[0].network.graph.output_of(tap).shape) != 4:
        raise LeftOut("Maps: the model has no tap with a map of images.")
    chosen = np.random.default_rng(seed).permutation(len(shown))[:MAPPED]
    images = shown.take(np.sort(chosen))
    columns = {}
    if not deltas[0].delta.networks.mismatch:
        source = deltas[0].delta.source_maps(images)[tap]
        columns["source"] = aggregate(np.asarray(source, "float32"))
    for model in deltas:
        if tap in model.delta.taps:
            maps = model.delta.outputs_and_maps(images)[1][tap]
            columns[model.title] = aggregate(np.asarray(maps, "float32"))
    rows = []
    for i, image in enumerate(images):
        cells = [pictures.overlay(image, maps[i]) for maps in columns.values()]
        rows.append({"picture": pictures.photograph(image), "cells": cells})
        rows[-1]["name"] = shown.names[np.sort(chosen)[i]]
    data = {"rows": rows, "columns": list(columns), "tap": tap}
    return Section("maps", "Where does it look?", data)


def show_attention(models, train, test, seed):
    """Channels that count most and least."""
    delta = models[0].delta
    members = regularizers.members(getattr(delta, "regularizer", None))
    found = [getattr(member, "computed_attention", None) for member in members]
    found = [attention for attention in found if attention is not None]
    if not found:
        raise LeftOut(
            "Channel attention: the regularizer has none, or did not keep it."
        )
    (attention, *_), shown = found, train or test
    figure = attention_plot.plot(attention)
    data = {"chart": pictures.svg(figure), "tap": None, "rows": []}
    tap, weights = list(attention.weights.items())[-1]
    if shown is not None and tap in delta.taps:
        order = np.argsort(-weights, kind="stable").tolist()
        channels = order[:CHANNELS] + order[-CHANNELS:]
        patches = exciting_patches(delta, shown, channels, tap)
        data["tap"] = tap
        for channel in channels:
            images = shown.take([p.image for p in patches[channel]])
            cut = [
                pictures.photograph(image, p.box)
                for image, p in zip(images, patches[channel], strict=True)
            ]
            weight = float(weights[channel] * len(weights))
            data["rows"].append({"channel": channel, "weight": weight, "patches": cut})
    return Section("attention", "Which channels count?", data)


def describe_training(models, train, test, seed):
    """How it was trained."""
    rows = []
    for model in models:
        delta = model.delta
        if delta is None:
            continue
        lines = []
        for member in regularizers.members(getattr(delta, "regularizer", None)):
            lines.append(_settings(member))
        recipe = getattr(delta, "recipe", None)
        probe = getattr(delta, "probe", None)
        lines += [str(v) for v in (probe, recipe) if v is not None]
        rows.append({"name": model.title, "lines": lines, "taps": list(delta.taps)})
    if not rows:
        raise LeftOut("How it was trained: a plain Keras model does not say.")
    return Section("training", "How was it trained?", {"rows": rows})


ALL = (
    summarize,
    draw_history,
    tabulate_recall,
    tabulate_confusions,
    show_mistakes,
    draw_reliability,
    list_suspects,
    list_duplicates,
    draw_distances,
    show_maps,
    show_attention,
    describe_training,
)


def _settings(member):
    strengths = {k: getattr(member, k, None) for k in ("alpha", "beta")}
    known = {k: float(v) for k, v in strengths.items() if v is not None}
    told = ", ".join(f"{k} = {v:g}" for k, v in known.items())
    return f"{type(member).__name__}: {told}" if told else type(member).__name__


def _short(stage):
    return stage if len(stage) <= 22 else f"{stage[:9]}…{stage[-12:]}"


def _need_labels(test, what):
    if test is None:
        raise LeftOut(f"{what}: no test images were given.")
    if test.labels is None:
        raise LeftOut(f"{what}: the test images have no labels.")


def _need_numbers(model, test, what):
    bad = int((~np.isfinite(model.logits(test)).all(1)).sum())
    if bad:
        raise LeftOut(
            f"{what}: '{model.title}' gives numbers that are not finite (NaN or "
            f"infinite) for {bad} of {len(test)} test images. If these are sound, the "
            "training broke: `keras_delta.callbacks.TerminateOnNaN` stops there."
        )


def _classes(model, test, what):
    """`Answers`, where the model tells classes apart and there are labels."""
    _need_labels(test, what)
    if model.task not in CLASSES:
        raise LeftOut(f"{what}: only of models that tell classes apart.")
    _need_numbers(model, test, what)
    return model.answers(test)
