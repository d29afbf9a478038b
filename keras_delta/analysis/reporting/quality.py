"""Sections on how good a model is: figures, recall, mistakes, reliability."""

import numpy as np

from keras_delta.analysis import answers as judged
from keras_delta.analysis.reporting import pictures
from keras_delta.analysis.reporting.section import (
    CLASSES,
    LeftOut,
    Section,
    classes,
    need_labels,
    need_numbers,
)
from keras_delta.statistics import paired_interval

MATRIX = 24  # classes that a confusion matrix has room for
MISTAKES = 24


def summarize(models, train, test, seed):
    """Figures of the test images."""
    first, rows = models[0], []
    need_labels(test, "Figures")
    for model in models:
        need_numbers(model, test, "Figures")
        rows.append({"name": model.title, **model.figures(test)})
    data = {"rows": rows, "images": len(test), "left_out": test.left_out}
    data["classes"] = first.network.classes
    data["parameters"] = first.target.count_params()
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
        raise LeftOut("Curves of the training: only after it, in the same process.")
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
    answers = classes(models[0], test, "Recall of each class")
    rows = judged.recalls(answers)
    rows.sort(key=lambda r: (r.share is None, r.share))
    precision = judged.confusion(answers).sum(0)
    said = dict(zip(answers.class_names, precision.tolist(), strict=True))
    data = {"rows": rows, "said": said}
    return Section("recall", "Which classes are recognised?", data)


def tabulate_confusions(models, train, test, seed):
    """Classes that are taken for others."""
    answers = classes(models[0], test, "Confusions")
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
    return Section("confusions", "What is confused with what?", data)


def show_mistakes(models, train, test, seed):
    """The most confident mistakes."""
    model, answers = models[0], classes(models[0], test, "Mistakes")
    wrong = judged.confident_mistakes(answers, MISTAKES)
    if not len(wrong):
        raise LeftOut(f"Mistakes: none, all {len(test)} images are recognised.")
    images, said = test.take(wrong), answers.said[wrong]
    confidence = answers.probabilities.max(1)
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
                "confidence": float(confidence[i]),
            }
        )
    data = {"rows": rows, "all": int((~answers.right).sum()), "images": len(test)}
    return Section("mistakes", "Where is it wrong?", data)


def draw_reliability(models, train, test, seed):
    """Accuracy by confidence."""
    classes(models[0], test, "Reliability")
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
    data |= {"confidence": confidence, "accuracy": float(answers.right.mean())}
    return Section("reliability", "Can its confidence be trusted?", data)
