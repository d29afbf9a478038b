"""Checks before training for errors that would appear late, silently or unexplained."""

import re

import keras
import tensorflow as tf
from keras import tree

from keras_delta import _compat, _tasks
from keras_delta._errors import warn
from keras_delta._inputs import labels, outputs
from keras_delta._inputs import weights as sample_weights
from keras_delta._network.heads import output_activation
from keras_delta._training import hosts, pixels

USUAL_MOMENTUM = 0.9  # PyTorch's, and so the authors' program's
OLD_STATISTICS = 0.2  # share of BatchNorm's statistics that may predate the training


def built_in_scope(model, what, variables):
    """Refuse a part of a model that was not built in the strategy's scope.

    Args:
        model: the `DeltaModel`.
        what: name of the part.
        variables: its Keras variables.
    """
    if keras.distribution.distribution() is not None:
        raise ValueError(
            "keras.distribution is set, but Keras's TensorFlow backend does not "
            "support it: every variable stays on one device. Use "
            "`tf.distribute.MirroredStrategy` and unset it with "
            "`keras.distribution.set_distribution(None)`."
        )
    strategy = model.distribute_strategy
    if tf.distribute.has_strategy() and tf.distribute.get_strategy() is not strategy:
        strategy, what = tf.distribute.get_strategy(), "DeltaModel"
        inside = False
    else:
        created = strategy.extended.variable_created_in_scope
        inside = all(created(v.value) for v in variables)
    if not inside:
        raise ValueError(
            f"The {what} was built outside of the scope of "
            f"{hosts.of(strategy).name}. Build and compile source, target and "
            "DeltaModel inside `with strategy.scope():`."
        )


def loss_is_sum(loss):
    """Whether all losses are sums over the batch rather than means.

    Raises:
        ValueError: if some are neither, or both kinds are mixed.
    """
    found = {getattr(v, "reduction", "mean") for v in tree.flatten(loss)}
    if found == {"sum"}:
        return True
    if wrong := found - {"mean", "sum_over_batch_size"}:
        raise ValueError(
            f"On several replicas, losses with reduction={sorted(map(str, wrong))} "
            "cannot be combined into the loss of the whole batch. Use "
            "reduction='sum_over_batch_size', or 'sum' for all losses."
        )
    return False


def strategy_supports(model):
    """Refuse settings that Keras cannot run on several replicas."""
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas == 1:
        return
    loss_is_sum(model.loss)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    single_steps = hosts.of(model.distribute_strategy).is_single
    for name, wrong, remedy in (
        (
            f"steps_per_execution={model.steps_per_execution}",
            not single_steps and model.steps_per_execution != 1,
            "steps_per_execution=1",
        ),
        ("jit_compile=True", model.jit_compile is True, "jit_compile=False"),
        (
            "gradient_accumulation_steps="
            f"{getattr(optimizer, 'gradient_accumulation_steps', None)}",
            getattr(optimizer, "gradient_accumulation_steps", None),
            "a larger batch",
        ),
        (
            "ema_overwrite_frequency="
            f"{getattr(optimizer, 'ema_overwrite_frequency', None)}",
            getattr(optimizer, "use_ema", False)
            and getattr(optimizer, "ema_overwrite_frequency", None),
            "ema_overwrite_frequency=None",
        ),
    ):
        if wrong:
            raise ValueError(
                f"Keras cannot run `{name}` on {replicas} replicas under "
                f"{hosts.of(model.distribute_strategy).name}. Use {remedy}, or "
                "train on one device."
            )


def has_regularizer(model):
    """Refuse to prepare without a regularizer: the result would not be kept."""
    if model.regularizer is None:
        raise ValueError(
            "There is no regularizer to prepare. Pass it here as well: "
            "`model.prepare(x, y, regularizer='delta')`."
        )


def regularizer_ready(model):
    """Refuse to train before the regularizer has looked at the data."""
    if model.regularizer is not None and not model.regularizer.ready:
        raise ValueError(
            f"The regularizer {type(model.regularizer).__name__} needs to look at "
            "training data before the first step. Use `fit`, or call "
            "`model.prepare(x, y)` first."
        )


def trains_in_floats(model):
    """Refuse quantised layers: their integers would not move."""
    for name, layer in model.networks.target.layers().items():
        parts = _compat.flatten_layers(layer)
        quantised = any(getattr(part, "quantization_mode", None) for part in parts)
        with_lora = any(getattr(part, "lora_enabled", False) for part in parts)
        if quantised and not with_lora and layer.trainable:
            raise ValueError(
                f"The layer '{name}' of the target is quantised, and its integers "
                "cannot be trained. Train first and quantise afterwards with "
                "`model.target.quantize(mode)`, or enable LoRA on the layer."
            )


def has_loss(model):
    """Refuse a model without a loss, before reading the data."""
    if model.loss is None and not model.losses:
        raise ValueError(
            "No loss to compute. Provide a `loss` argument in `compile()`."
        )


def predictions_fit(model):
    """Refuse methods for classification if the loss is for another task."""
    regularizer, graph = model.regularizer, model.networks.target
    if regularizer is None or not regularizer.needs_classes:
        return
    for task in outputs.tasks(model.loss, graph):
        if task not in (None, _tasks.MULTICLASS):
            raise ValueError(
                f"The regularizer '{regularizer.name}' is for mutually exclusive "
                f"classes, but the model's loss is for another task ({task}). "
                "Use a cross-entropy over the classes, or a regularizer of feature "
                "maps."
            )


def cache_can_be_read(model):
    """Refuse a cache if XLA was requested, or if the source's maps change."""
    networks = model.networks
    if adapting := model.regularizer.find_adapting():
        raise ValueError(
            f"{type(adapting).__name__} trains layers inside the source, whose maps "
            'change with each step. Train with `source_maps="compute"`.'
        )
    changing = networks.entry.changing(networks.target) or networks.find_shared().random
    if changing:
        raise ValueError(
            f"The source's input is the output of the target's layer '{changing[0]}', "
            "which differs in each step, so its maps cannot be cached. Put "
            "augmentation into the data, as `ImageSet.batches` does, or train with "
            '`source_maps="compute"`.'
        )
    if model.jit_compile_asked:
        raise ValueError(
            "A cache of source maps reads memory and files in each step, which XLA "
            "cannot compile. Compile with `jit_compile=False`, or train with "
            '`source_maps="compute"`.'
        )


def data_fits(model, data):
    """Refuse training data that the model cannot be trained on.

    Args:
        model: the `DeltaModel`.
        data: `TrainingData`.

    Raises:
        ValueError: if the shape of images differs from the model's input, they contain
            NaN, there are fewer samples than replicas, or labels or weights do not fit.
    """
    if data.first_size is None:
        return
    pixels.check(model, model.pairing.target.feed(data.first_inputs))
    data.check_lengths()
    replicas = model.distribute_strategy.num_replicas_in_sync
    if data.first_size < replicas:
        raise ValueError(
            f"The batch has {data.first_size} sample(s) for {replicas} replicas. Use a "
            f"batch size of at least {replicas}: it is split among them."
        )
    labels_fit(model, data.labels, data.all_labels)
    weights_fit(model, data.weights)


def labels_fit(model, y, complete=False):
    """Refuse labels that do not suit an output's loss.

    Args:
        model: the `DeltaModel`.
        y: labels of some samples, as `fit` takes them.
        complete: whether they are all training labels: refused if all are equal.
    """
    if model.loss is None:
        return
    if y is None:
        raise ValueError(
            "The data have no labels, which the loss needs: pass `(x, y)`, or a data "
            "set of pairs."
        )
    graph = model.networks.target
    losses, names = outputs.losses(model.loss, graph), outputs.names(graph)
    targets = outputs.targets(y, losses, names)
    tensors = tree.flatten(graph.outputs)
    for i, (loss, one, tensor) in enumerate(zip(losses, targets, tensors, strict=True)):
        if loss is not None:
            name = names[i] if len(tensors) > 1 else None
            labels.check(one, tensor.shape, loss, complete, name)


def weights_fit(model, weights):
    """Refuse sample weights that would apply to the wrong samples."""
    if model.loss is None or weights is None:
        return
    graph = model.networks.target
    losses, names = outputs.losses(model.loss, graph), outputs.names(graph)
    tensors = tree.flatten(graph.outputs)
    for i, one in enumerate(sample_weights.each(weights, losses, names)):
        if losses[i] is not None and one is not None:
            name = names[i] if len(tensors) > 1 else None
            sample_weights.check_samples(one, tensors[i].shape, losses[i], name)


def class_weight(model, given, data):
    """`class_weight` of `fit` for all classes; refused if it cannot be applied."""
    if given is None or model.loss is None:
        return given
    graph = model.networks.target
    tensors = tree.flatten(graph.outputs)
    return sample_weights.of_classes(
        given,
        data.labels,
        outputs.losses(model.loss, graph),
        [t.shape for t in tensors],
        [output_activation(graph, t) for t in tensors],
        isinstance(data.x, tf.data.Dataset),
    )


def loss_is_possible(model, logs):
    """Warn about a loss that valid labels cannot give; returns whether it did.

    Only the first batch's labels of a data set are known, and TensorFlow computes with
    any. A label of 5 for a sigmoid pushes the loss below 0 indefinitely.
    """
    facts = [_tasks.of_loss(loss) for loss in tree.flatten(model.loss)]
    if logs.get("task_loss", 0) > -1e-3 or any(
        f is None or f.labels != _tasks.BITS for f in facts
    ):
        return False
    warn(
        f"The task loss is {logs['task_loss']:.4g}, but labels from 0 to 1 never make "
        "it negative. Some batch after the first, which `fit` checks before "
        "training, has other labels or negative weights. Check the whole data set."
    )
    return True


def explain_label(model, error):
    """Raise our error for a label out of range that TensorFlow has reported."""
    found = re.search(r"label value of (-?\d+) .*?range of \[0, (\d+)\)", str(error))
    if found:
        raise ValueError(
            f"A batch has the label {found[1]}, but the head has {found[2]} classes, "
            f"0 to {int(found[2]) - 1}. The first batch, which `fit` checks before "
            "training, had none. Check the label encoding of the whole data set."
        ) from error


def batch_norm_keeps_up(model, steps):
    """Warn if BatchNorm's statistics cannot follow the weights in so few steps.

    Args:
        model: the `DeltaModel`.
        steps: number of training steps to come, None if unknown.
    """
    if not steps or not model.trains_features:
        return
    layers = model.networks.trained_batch_norms()
    momentum = max((layer.momentum for layer in layers), default=0)
    if momentum > USUAL_MOMENTUM and momentum**steps > OLD_STATISTICS:
        warn(
            f"BatchNormalization has momentum {momentum:g}: after the {steps} steps "
            f"of this training, {momentum**steps:.0%} of its moving statistics are "
            "still the initial ones, and `evaluate` and `predict` use them with "
            "changed weights. On few images this costs much accuracy. Give "
            f"the layers the momentum {USUAL_MOMENTUM}, as `attach_head` does, or "
            "train for more steps."
        )
