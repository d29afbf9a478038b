"""The model card: what a model is, how well it does and what it is not for."""

import json
import math
from datetime import datetime, timezone
from importlib import metadata

import keras
import numpy as np
import tensorflow as tf

from keras_delta.errors import unknown_name
from keras_delta.serving import calibration

MARKDOWN, JSON = "MODEL_CARD.md", "model_card.json"
GIVEN = ("description", "data", "license", "author", "limits", "intended_use")
NORMAL = 1.959964  # 97.5 % quantile of the standard normal distribution
LIMITS = [
    "It answers with one of its classes whatever the image shows; it does not say "
    '"none of them".',
    "Images from other cameras, places or times than the training images may be "
    "recognised less well than the figures say.",
]


def evaluation(logits, labels, class_names, temperature=1.0):
    """How well a classifier does on images that it was not trained on.

    Args:
        logits: array (samples, classes).
        labels: integers (samples,).
        class_names: list of strings.
        temperature: what serving divides the logits by.

    Returns:
        Dict: `samples`, `accuracy`, `interval` (Wilson's, 95 %), `recall` by class
        with `samples`, `loss` in nats, `calibration_error` and `temperature`.
    """
    right = np.asarray(logits).argmax(axis=-1) == labels
    scaled = np.asarray(logits) / temperature
    recall = {}
    for number, name in enumerate(class_names):
        of_class = right[labels == number]
        share = float(of_class.mean()) if len(of_class) else None
        recall[name] = {"recall": share, "samples": len(of_class)}
    return {
        "samples": len(labels),
        "accuracy": float(right.mean()),
        "interval": wilson(int(right.sum()), len(right)),
        "recall": recall,
        "loss": calibration.loss(scaled, labels),
        "calibration_error": calibration.expected_calibration_error(scaled, labels),
        "temperature": temperature,
    }


def wilson(successes, trials):
    """Wilson's 95 % interval of a share, `[low, high]`.

    With p = successes / trials and z = 1.96,

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical
        Inference", JASA 22, 1927.
    """
    p, n, z = successes / trials, trials, NORMAL
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return [max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)]


def check(given):
    """Refuse fields of a card that are not known."""
    for name in given or {}:
        if name not in GIVEN:
            raise ValueError(unknown_name("card", name, GIVEN))


def facts(model, *, given, name, version, class_names, served, measured):
    """Everything that a card says, as a dict that JSON takes.

    Args:
        model: what was given to export.
        given: dict of the user's own fields, of `GIVEN`.
        name, version: of the model.
        class_names: list of strings.
        served: dict of settings: `format`, `input`, `image_size`, `protocol`, `top_k`.
        measured: result of `evaluation`, or None.
    """
    regularizer = getattr(model, "regularizer", None)
    target = getattr(model, "target", model)
    method = None
    if regularizer is not None:
        plain = (str, int, float, bool, type(None))
        config = regularizer.get_config()
        method = {
            "name": type(regularizer).__name__,
            "settings": {k: v for k, v in config.items() if isinstance(v, plain)},
        }
    given = dict(given or {})
    limits = given.pop("limits", [])
    return {
        "name": name,
        "version": version,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **{field: given.get(field) for field in GIVEN if field != "limits"},
        "limits": [limits] if isinstance(limits, str) else [*limits],
        "network": {
            "name": target.name,
            "parameters": target.count_params(),
            "source": getattr(getattr(model, "source", None), "name", None),
            "taps": list(getattr(model, "taps", [])),
        },
        "regularizer": method,
        "classes": list(class_names),
        "serving": served,
        "evaluation": measured,
        "versions": {
            "keras_delta": metadata.version("keras_delta"),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }


def write(folder, facts):
    """Write `MODEL_CARD.md` and `model_card.json`."""
    text = json.dumps(facts, indent=2, ensure_ascii=False, default=float)
    (folder / JSON).write_text(f"{text}\n", "utf-8")
    (folder / MARKDOWN).write_text(markdown(facts), "utf-8")


def markdown(facts):
    """The card for people."""
    network, method, served = facts["network"], facts["regularizer"], facts["serving"]
    size = " x ".join(map(str, served["image_size"]))
    rows = {
        "Version": f"{facts['version']}, {facts['date']}",
        "Author": facts["author"],
        "License": facts["license"],
        "Network": f"{network['name']}, {network['parameters']:,} parameters",
        "Fine-tuned from": network["source"],
        "Regularizer": method and _call(method),
        "Compared layers": ", ".join(network["taps"]),
        "Images": f"{size} pixels, protocol {served['protocol']}; resized inside",
        "Made with": ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
    }
    lines = [f"# {facts['name']}", ""]
    lines += [facts["description"] or f"Tells {len(facts['classes'])} classes apart."]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {k} | {_cell(v)} |" for k, v in rows.items() if v]
    for title, field in ("Intended use", "intended_use"), ("Training data", "data"):
        lines += ["", f"## {title}", "", facts[field] or "Not stated."]
    lines += ["", "## How well it does", ""]
    lines += _measured(facts["evaluation"], facts["classes"])
    lines += ["", "## Limits", ""]
    lines += [f"- {limit}" for limit in (*facts["limits"], *LIMITS)]
    return "\n".join(lines) + "\n"


def _measured(found, classes):
    if found is None:
        return [
            "Not measured at export. Classes: " + ", ".join(map(_cell, classes)) + "."
        ]
    low, high = found["interval"]
    lines = [
        f"On {found['samples']} images that were held out, **{found['accuracy']:.1%}** "
        f"are right (95 % interval {low:.1%} to {high:.1%}, Wilson).",
        "",
        f"Scores are off by {found['calibration_error']:.1%} on average (expected "
        f"calibration error, {calibration.BINS} bins), at the temperature "
        f"{found['temperature']:.3g}.",
        "",
        "| class | recall | images |",
        "|---|---|---|",
    ]
    for name, row in found["recall"].items():
        share = "-" if row["recall"] is None else f"{row['recall']:.1%}"
        lines.append(f"| {_cell(name)} | {share} | {row['samples']} |")
    return lines


def _call(method):
    settings = ", ".join(f"{k}={v!r}" for k, v in method["settings"].items())
    return f"`{method['name']}({settings})`"


def _cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")
