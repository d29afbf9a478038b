"""Sections on changes by fine-tuning: filters, maps, attention; and on training."""

import numpy as np

from keras_delta import regularizers
from keras_delta.analysis import distances
from keras_delta.analysis.compared_maps import compare_activation_maps
from keras_delta.analysis.patches import exciting_patches
from keras_delta.analysis.reporting import pictures
from keras_delta.analysis.reporting.section import LeftOut, Section
from keras_delta.attention import ChannelAttention
from keras_delta.attention import plot as attention_plot

MAPPED = 4  # images whose maps are shown
CHANNELS = 3  # with the most and the least attention


def draw_distances(models, train, test, seed):
    """How far filters moved."""
    what, curves, found = "How far filters moved", {}, {}
    for model in models:
        if model.delta is not None and not model.delta.networks.mismatch:
            try:
                found[model.title] = distances.filter_distances(model.delta)
            except ValueError as error:  # no convolutions in common
                raise LeftOut(f"{what}: {error}") from None
    if not found:
        raise LeftOut(f"{what}: no model with a source of its kind.")
    first = next(iter(found))
    found = {k: v for k, v in found.items() if _shape(v) == _shape(found[first])}
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
        share = distances.compare_filter_distances(found[first], found[label])
        compared.append({"first": first, "other": label, **share[distances.ALL]})
    data = {"chart": pictures.chart(draw, height=3.4), "rows": rows}
    data["compared"] = compared
    return Section("distances", "What did fine-tuning change?", data)


def show_maps(models, train, test, seed):
    """Where source and target look."""
    shown = test or train
    deltas = [m for m in models if m.delta is not None and m.delta.taps]
    if shown is None or not deltas:
        raise LeftOut("Maps: no images, or no `DeltaModel`, which has taps.")
    tap = deltas[0].delta.taps[-1]
    if len(deltas[0].network.graph.output_of(tap).shape) != 4:
        raise LeftOut(f"Maps: the tap '{tap}' has no map of images.")
    chosen = np.random.default_rng(seed).permutation(len(shown))[:MAPPED]
    images = shown.take(np.sort(chosen))
    named = {m.title: m.delta for m in deltas if tap in m.delta.taps}
    compared = compare_activation_maps(named, images, tap, "mean")
    rows = []
    for i, image in enumerate(images):
        cells = [pictures.overlay(image, v[i, ..., 0]) for v in compared.maps.values()]
        rows.append({"picture": pictures.photograph(image), "cells": cells})
        rows[-1]["name"] = shown.names[np.sort(chosen)[i]]
    data = {"rows": rows, "columns": list(compared.maps), "tap": tap}
    return Section("maps", "Where does it look?", data)


def show_attention(models, train, test, seed):
    """Channels that count most and least."""
    delta = models[0].delta
    members = regularizers.with_attention(getattr(delta, "regularizer", None))
    found = [weights for m in members if (weights := m.attention_weights())]
    found = [weights for weights in found if any(map(np.ptp, weights.values()))]
    if not found:
        raise LeftOut("Channel attention: the regularizer has none.")
    attention, shown = ChannelAttention(found[0]), train or test
    figure = attention_plot.plot(attention)
    data = {"chart": pictures.svg(figure), "tap": None, "rows": []}
    tap, weights = list(attention.weights.items())[-1]
    graph = delta.networks.target
    readable = tap in delta.taps and len(graph.output_of(tap).shape) == 4
    readable = readable and graph.inputs[0].shape[-1] == 3
    if shown is not None and shown.size is not None and readable:
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


def _settings(member):
    strengths = {k: getattr(member, k, None) for k in ("alpha", "beta")}
    told = ", ".join(
        f"{k} = {'a schedule' if callable(v) else format(float(v), 'g')}"
        for k, v in strengths.items()
        if v is not None
    )
    return f"{type(member).__name__}: {told}" if told else type(member).__name__


def _shape(stages):
    return {s: {n: len(v) for n, v in layers.items()} for s, layers in stages.items()}


def _short(stage):
    return stage if len(stage) <= 22 else f"{stage[:9]}…{stage[-12:]}"
