"""The model card: a model's description, performance and limits."""

import json
import re
from datetime import UTC, datetime
from importlib import metadata

import keras
import tensorflow as tf

from keras_delta._answers import calibration
from keras_delta._errors import invalid, unknown_name

MARKDOWN, JSON = "MODEL_CARD.md", "model_card.json"
GIVEN = ("description", "data", "license", "author", "limits", "intended_use")
LIMITS = [
    "It answers with one of its classes whatever the image shows; it never answers "
    '"none of them".',
    "Images from other cameras, places or times than the training images may be "
    "recognised less well than the figures suggest.",
]


CLASSES = ("multiclass", "binary")  # one of which is always answered
SAYS = {
    "multiclass": "Distinguishes {n} classes.",
    "binary": "Distinguishes {names[1]} from {names[0]}.",
    "multilabel": "Finds which of {n} labels an image has.",
    "regression": "Predicts {n} number(s) from an image.",
}
SHAPES = {  # of the network's input, by protocol
    "default": "squashed to that shape",
    "improved": "cropped from the centre",
}


def check(given):
    """Reject fields of a card that are unknown or not text."""
    if not isinstance(given, (dict, type(None))):
        raise TypeError(invalid("model_card", "a dict of strings or None", given))
    for name, value in (given or {}).items():
        if name not in GIVEN:
            raise ValueError(unknown_name("model_card", name, GIVEN))
        texts = value if name == "limits" and isinstance(value, list) else [value]
        if not all(isinstance(text, (str, type(None))) for text in texts):
            expected = "a list of strings" if name == "limits" else "a string"
            raise TypeError(invalid(f"model_card['{name}']", expected, value))


def facts(model, given, folder, endpoints, measured):
    """The facts for a card, as a dict for JSON; `given` comes from the user."""
    given = dict(given or {})
    limits = given.pop("limits", None) or []
    converted = measured.converted
    return {
        "name": folder.parent.name,
        "version": int(folder.name),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **{field: given.get(field) for field in GIVEN if field != "limits"},
        "limits": [
            *([limits] if isinstance(limits, str) else limits),
            *(LIMITS if endpoints.task.name in CLASSES else LIMITS[1:]),
        ],
        "network": {
            "name": endpoints.target.name,
            "parameters": endpoints.target.count_params(),
            "taps": list(getattr(model, "taps", [])),
        },
        "regularizer": _method(getattr(model, "regularizer", None)),
        "task": endpoints.task.name,
        "classes": endpoints.class_names,
        "serving": {**endpoints.options.facts(), **_thresholds(endpoints)},
        "evaluation": measured.evaluation,
        "conversion": converted and converted.facts,
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
    """The card for human readers."""
    network, method, served = facts["network"], facts["regularizer"], facts["serving"]
    size = " x ".join(map(str, served["image_size"]))
    inside = served["format"] == "saved_model"
    where = "resized inside" if inside else "decoded and resized outside"
    rows = {
        "Version": f"{facts['version']}, {facts['date']}",
        "Author": facts["author"] or "not stated",
        "License": facts["license"] or "not stated",
        "Network": f"{network['name']}, {network['parameters']:,} parameters",
        "Regularizer": method and f"`{_call(method)}`",
        "Compared layers": ", ".join(network["taps"]),
        "Images": f"{size} pixels, {SHAPES[served['protocol']]}; {where}",
        "Made with": ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
    }
    lines = [f"# {facts['name']}", ""]
    names = facts["classes"]
    says = SAYS[facts["task"]].format(n=len(names), names=list(map(_name, names)))
    lines += [facts["description"] or says]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {k} | {_cell(v)} |" for k, v in rows.items() if v]
    for title, field in ("Intended use", "intended_use"), ("Training data", "data"):
        lines += ["", f"## {title}", "", facts[field] or "Not stated."]
    lines += ["", "## How well it does", ""]
    lines += _measured(facts["evaluation"], facts["classes"], facts["task"], served)
    if facts["conversion"] is not None:
        what = "values" if facts["task"] == "regression" else "scores"
        converted = _converted(facts["conversion"], served, what)
        lines += ["", "## Conversion", "", *converted]
    lines += ["", "## Limits", ""]
    lines += [f"- {limit}" for limit in facts["limits"]]
    return "\n".join(lines) + "\n"


def _thresholds(endpoints):
    """The thresholds of several labels, and where they come from."""
    if endpoints.thresholds is None:
        return {}
    levels = zip(endpoints.class_names, endpoints.thresholds, strict=True)
    return {"thresholds": dict(levels), "thresholds_from": endpoints.chosen_by}


def _measured(figures, names, task, served):
    if figures is None:
        what = {"multilabel": "Labels", "regression": "Numbers"}.get(task, "Classes")
        shown = list(map(_name, names))
        if task == "multilabel":
            levels = served["thresholds"].values()
            pairs = zip(shown, levels, strict=True)
            shown = [f"{name} (on from {level:.3g})" for name, level in pairs]
        return [f"Not measured at export. {what}: {', '.join(shown)}."]
    if task == "multilabel":
        return _labels(figures, served["thresholds_from"] == "given")
    return (_numbers if task == "regression" else _classes)(figures)


def _classes(figures):
    low, high = figures["interval"]
    lines = [
        f"Of {figures['samples']} held-out images, "
        f"**{figures['accuracy']:.1%}** are classified correctly (95 % interval "
        f"{low:.1%} to {high:.1%}, Wilson).",
        "",
        f"Scores differ from accuracy by {figures['calibration_error']:.1%} (expected "
        f"calibration error, {calibration.BINS} bins).{_calibrated(figures)}"
        f"{_ranked(figures)}",
        "",
        "| class | recall | images |",
        "|---|---|---|",
    ]
    for name, row in figures["recall"].items():
        share = "-" if row["recall"] is None else f"{row['recall']:.1%}"
        lines.append(f"| {_name(name)} | {share} | {row['samples']} |")
    return lines


def _ranked(figures):
    """The area under the ROC curve, for yes or no."""
    if figures.get("roc_auc") is None:
        return ""
    return (
        f" For one image of each class, the scores are in the right order in "
        f"{figures['roc_auc']:.1%} of all pairs (area under the ROC curve)."
    )


def _labels(figures, is_given):
    low, high = figures["interval"]
    lines = [
        f"Of {figures['samples']} held-out images, **{figures['exact_match']:.1%}** "
        f"have all labels right (95 % interval {low:.1%} to {high:.1%}, Wilson). F1: "
        f"{_number(figures['macro_f1'])} averaged over labels, "
        f"{_number(figures['micro_f1'])} over all.",
        "",
        "A label is on if its score reaches its threshold"
        + (". " if is_given else ", which was chosen on these same images. ")
        + (
            "Scores were calibrated on these same images: logits are divided by "
            f"{figures['temperature']:.3g}."
            if figures["temperature"] != 1
            else ""
        ),
        "",
        "| label | threshold | F1 | average precision | images that have it |",
        "|---|---|---|---|---|",
    ]
    for name, row in figures["labels"].items():
        cells = row["threshold"], row["f1"], row["average_precision"]
        shown = " | ".join(map(_number, cells))
        lines.append(f"| {_name(name)} | {shown} | {row['positives']} |")
    return lines


def _numbers(figures):
    lines = [
        f"On {figures['samples']} held-out images (mean absolute error with its 95 % "
        "interval, root mean square error, share of the variance explained):",
        "",
        "| number | MAE | RMSE | R2 |",
        "|---|---|---|---|",
    ]
    for name, row in figures["numbers"].items():
        half = row["half_interval"]
        mae = f"{row['mae']:.3g}" + ("" if half is None else f" +- {half:.2g}")
        cells = f"{row['rmse']:.3g}", _number(row["r2"])
        lines.append(f"| {_name(name)} | {mae} | {' | '.join(cells)} |")
    return lines


def _number(value):
    return "-" if value is None else f"{value:.3f}"


def _calibrated(figures):
    if figures["temperature"] == 1:
        return ""
    return (
        f" They were calibrated on these same images: logits are divided by "
        f"{figures['temperature']:.3g}; without that, the error is "
        f"{figures['uncalibrated_error']:.1%}."
    )


def _converted(figures, served, what):
    lines = [
        f"`{served['file']}`, {figures['bytes'] / 1e6:.1f} MB, "
        f"{figures['quantize'] or 'float32'}. On {figures['samples']} images "
        f"({figures['images']}), {_agreement(figures)}{what} differ by "
        f"{figures['largest_difference']:.2g} at most"
        + (" (relative to the largest, if above 1)." if what == "values" else ".")
    ]
    if figures["accuracy"] is not None:
        lines += [
            "",
            f"Accuracy: {figures['accuracy_before']:.1%} before, "
            f"{figures['accuracy']:.1%} after ({-100 * figures['drop']:+.1f} points).",
        ]
    return lines


def _agreement(figures):
    if figures["agreement"] is None:
        return ""
    return f"{figures['agreement']:.1%} of the answers are the same as before, and "


def _method(regularizer):
    """Name and settings of a regularizer; for a sum, those of its `members`."""
    if regularizer is None:
        return None
    return _described(keras.saving.serialize_keras_object(regularizer))


def _described(serialized):
    """Name and settings of a Keras object, without those that only Keras needs."""
    settings = {}
    for key, value in serialized["config"].items():
        if isinstance(value, dict) and "class_name" in value:
            settings[key] = _described(value)  # a schedule, for example
        elif key == "members":
            settings[key] = [_described(member) for member in value]
        elif isinstance(value, (str, int, float, bool, type(None))) and key != "name":
            settings[key] = value
    return {"name": serialized["class_name"], "settings": settings}


def _call(described):
    settings = described["settings"]
    if "members" in settings:
        return " + ".join(map(_call, settings["members"]))
    shown = {
        k: _call(v) if isinstance(v, dict) else repr(v) for k, v in settings.items()
    }
    return f"{described['name']}({', '.join(f'{k}={v}' for k, v in shown.items())})"


def _cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def _name(text):
    """A class name, shown literally: `<b>` and `*x*` are not markup here."""
    return re.sub(r"([\\`*<>\[\]|&])", r"\\\1", text)
