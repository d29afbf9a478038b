"""Channel attention: time, memory, exactness and convergence.

    python benchmarks/attention.py speed --network resnet50 --size 96
    python benchmarks/attention.py memory --memory 300MB
    python benchmarks/attention.py growth
    python benchmarks/attention.py convergence --data-dir FOLDER
    python benchmarks/attention.py official FOLDER

"speed" compares `ChannelAttention.compute` with the plain loop (one compiled pass of
the whole network per channel) and with the unbatched suffix (one pass per channel of
the layers after the tap), all in one process on the same samples. A plain loop over
thousands of channels takes hours, so only some channels are timed, before and after
`compute`, and the rest is extrapolated; their scores give the largest difference.
"memory" shows how much a process grows. "growth" shows how time grows with the number
of samples. "convergence" shows how many samples the weights need: FOLDER holds train/
with one folder per class.
"official" prints the perplexities of the authors' seven files of scores.
"""

import argparse
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # first: it silences TensorFlow's start-up

import keras
import numpy as np
import pandas as pd
import keras_delta as kd
from keras_delta._network.graph import Graph

LITE_TAPS = [
    "block2b_project_conv",
    "block3b_project_conv",
    "block5c_project_conv",
    "top_conv",
]
NETWORKS = {
    # name -> (build, size, taps); the taps of Lite0 are the ends of its stages
    "efficientnet_lite0": (kd.backbones.efficientnet_lite0, 112, LITE_TAPS),
    "resnet50": (kd.backbones.resnet50, 96, None),
    "mobilenet_v2": (
        lambda **kwargs: keras.applications.MobileNetV2(include_top=False, **kwargs),
        112,
        None,
    ),
}
CLASSES = 12
OFFICIAL_TAPS = ["conv2_x", "conv3_x", "conv4_x", "conv5_x"]


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    tables = parser.add_subparsers(dest="table", required=True)
    speed = tables.add_parser("speed", help="time against the plain loop")
    peak = tables.add_parser("memory", help="growth of the process")
    growth = tables.add_parser("growth", help="time by number of samples")
    convergence = tables.add_parser("convergence", help="samples needed")
    official = tables.add_parser("official", help="perplexities of the authors' scores")
    for sub in (speed, peak, growth, convergence):
        sub.add_argument("--network", default="efficientnet_lite0", choices=NETWORKS)
        sub.add_argument("--size", type=int, help="side of the images")
        sub.add_argument("--taps", nargs="+", help='layer names, or "auto"')
    speed.add_argument("--samples", type=int, default=100)
    speed.add_argument("--passes", type=int, default=6, help="plain passes per tap")
    peak.add_argument("--memory", nargs="+", help="budgets; default: compute's own")
    peak.add_argument("--of", help=argparse.SUPPRESS)
    peak.add_argument("--samples", type=int, default=16)
    growth.add_argument(
        "--samples", type=int, nargs="+", default=[64, 128, 256, 512, 1000]
    )
    convergence.add_argument("--data-dir", type=Path, required=True)
    convergence.add_argument(
        "--samples", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512]
    )
    convergence.add_argument("--repeats", type=int, default=3)
    official.add_argument("folder", type=Path)
    return parser.parse_args()


def network(args):
    """A classifier, its taps and the side of its images."""
    build, size, taps = NETWORKS[args.network]
    size = args.size or size
    weights = "imagenet" if args.network == "efficientnet_lite0" else None
    source = build(weights=weights, input_shape=(size, size, 3))
    if weights is None:
        settle(source, photographs(32, size)[0])
    target = kd.attach_head(source, CLASSES)
    if args.taps == ["auto"] or (args.taps is None and taps is None):
        taps = list(kd.DeltaModel(target, source=source).taps)
    return target, args.taps if args.taps and args.taps != ["auto"] else taps, size


def settle(model, x):
    """Give random weights the BatchNorm statistics of some images.

    With those of the initialiser a deep network's maps vanish, and no channel counts.
    """
    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(x, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def photographs(count, size):
    """Small patches of real photographs, and their classes."""
    per_class = -(-count // CLASSES)
    side = 24 if per_class <= 75 else 20  # smaller patches: more of them
    sets = kd.data.embedded_photographs(side, per_class, 1)
    x, y = zip(*sets["train"].batches(size, 64).as_numpy_iterator(), strict=True)
    rows = np.random.default_rng(0).permutation(per_class * CLASSES)[:count]
    return np.concatenate(x)[rows], np.concatenate(y)[rows]


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compute(model, x, y, taps, **kwargs):
    """Our scores; that the head is no better than chance does not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kd.ChannelAttention.compute(
            model, (x, y), taps, loss=LOSS, progress=False, **kwargs
        )


def each_loss(y, logits):
    """Cross-entropy of each sample in float64."""
    logits = logits.astype("float64")
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]


class PlainLoop:
    """One pass of the whole network for each channel, its filter set to zero."""

    def __init__(self, model, x, y, batch):
        self.model, self.x, self.y, self.batch = model, x, y, batch
        self._run = tf.function(lambda v: model(v, training=False))
        self.intact = self.losses()  # and compile

    def losses(self):
        step = self.batch
        parts = [self.x[i : i + step] for i in range(0, len(self.x), step)]
        parts[-1] = np.concatenate([parts[-1], self.x[: step - len(parts[-1])]])
        logits = [self._run(tf.constant(part)).numpy() for part in parts]
        return each_loss(self.y, np.concatenate(logits)[: len(self.y)])

    def score(self, tap, channel):
        layer = self.model.get_layer(tap)
        original = layer.get_weights()
        changed = [w.copy() for w in original]
        for w in changed:  # kernel and, where there is one, bias
            w[..., channel] = 0
        layer.set_weights(changed)
        found = (self.losses() - self.intact).mean()
        layer.set_weights(original)
        return found


class SuffixLoop:
    """What lies behind the tap once for each channel, on cached maps."""

    def __init__(self, model, x, y, tap, batch=32):
        graph = Graph(model)
        self.cut = graph.cut([graph.output_of(tap)])
        prefix = tf.function(
            lambda v: graph.run(self.cut, graph.inputs, [v], training=False)
        )
        whole = len(x) // batch * batch
        self.y = y[:whole]
        self.maps = [
            prefix(tf.constant(x[i : i + batch])) for i in range(0, whole, batch)
        ]

        @tf.function
        def run(maps, mask):
            maps = [maps[0] * mask, *maps[1:]]
            return graph.run(graph.outputs, self.cut, maps, training=False)

        self._run, self.channels = run, self.maps[0][0].shape[-1]
        self.intact = self.losses(-1)

    def losses(self, channel):
        mask = np.ones(self.channels, "float32")
        if channel >= 0:
            mask[channel] = 0
        logits = [self._run(maps, tf.constant(mask)).numpy() for maps in self.maps]
        return each_loss(self.y, np.concatenate(logits))


def timed(function, *args, **kwargs):
    began = time.perf_counter()
    found = function(*args, **kwargs)
    return time.perf_counter() - began, found


def multiply_adds(graph, names):
    """Of the convolutions and dense layers among the named calls, for a sample."""
    total = 0
    for name in names:
        layer, out = graph.nodes[name].operation, graph.nodes[name].outputs[0].shape
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            total += np.prod(out[1:]) * np.prod(layer.kernel_size)
        elif isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            total += np.prod(out[1:]) * np.prod(layer.kernel.shape[:-1])
    return total


def best_throughput():
    """Multiply-adds a second of the fastest of some usual convolutions."""
    best = 0
    for side, inputs, filters, kernel in (
        (24, 64, 64, 3),
        (12, 128, 128, 3),
        (6, 256, 256, 3),
        (3, 512, 512, 3),
        (14, 480, 80, 1),
        (7, 1152, 192, 1),
        (12, 512, 128, 1),
    ):
        x = tf.random.normal((256, side, side, inputs))
        k = tf.random.normal((kernel, kernel, inputs, filters))
        run = tf.function(lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"))
        run(x, k)
        seconds = min(timed(run, x, k)[0] for _ in range(5))
        best = max(best, 256 * side * side * filters * inputs * kernel**2 / seconds)
    return best


def speed(args):
    model, taps, size = network(args)
    x, y = photographs(args.samples, size)
    graph = Graph(model)
    channels = {tap: graph.output_of(tap).shape[-1] for tap in taps}
    rng = np.random.default_rng(0)
    chosen = {
        tap: rng.choice(c, min(args.passes, c), replace=False)
        for tap, c in channels.items()
    }
    loops = [PlainLoop(model, x, y, batch) for batch in (16, 32, 64)]
    passes, found = {loop.batch: [] for loop in loops}, {}

    def pass_some(half):
        for tap in taps:
            for channel in chosen[tap][half::2]:
                for loop in loops:
                    seconds, score = timed(loop.score, tap, channel)
                    passes[loop.batch].append(seconds)
                    found[tap, channel] = score

    throughput = best_throughput()
    pass_some(0)
    ours, attention = timed(compute, model, x, y, taps)
    pass_some(1)
    plain = {b: np.median(seconds) for b, seconds in passes.items()}
    batch = min(plain, key=plain.get)
    rows = []
    for tap in taps:
        loop = SuffixLoop(model, x, y, tap)
        loop.losses(0)
        unbatched = np.median([timed(loop.losses, c)[0] for c in chosen[tap]])
        behind = graph.descendants([graph.output_of(tap)])
        rows.append(
            {
                "tap": tap,
                "channels": channels[tap],
                # The whole network, so as long for every tap.
                "plain loop s": plain[batch] * channels[tap],
                "unbatched s": unbatched * len(x) / len(loop.y) * channels[tap],
                "ours s": timed(compute, model, x, y, [tap])[0],
                "bound s": multiply_adds(graph, behind)
                * channels[tap]
                * len(x)
                / throughput,
                "difference": max(
                    abs(attention.scores[t][c] - score)
                    for (t, c), score in found.items()
                    if t == tap
                ),
            }
        )
    rows = pd.DataFrame(rows).set_index("tap")
    rows.loc["all"] = rows.sum()
    rows.loc["all", "difference"] = rows["difference"].iloc[:-1].max()
    rows.loc["all", "ours s"] = ours
    total = rows.loc["all"]
    rows["of bound"] = rows["bound s"] / rows["ours s"]
    rows["channels"] = rows["channels"].astype(int)
    print(
        f"{args.network}, {size} px, {len(x)} samples, {os.cpu_count()} cores. Compile "
        f"time is in ours. Plain loop: {len(passes[batch])} passes over all samples "
        f"timed in batches of {batch} (the fastest of 16, 32 and 64), the rest "
        "extrapolated; so is the suffix without batching. Bound: the multiply-adds "
        f"behind the tap at {throughput / 1e9:.0f} G/s, the best rate of some "
        "convolutions here. Each tap was run by itself, and then all in one run."
    )
    print(
        rows.to_string(
            formatters={
                "difference": "{:.0e}".format,
                "of bound": "{:.2f}".format,
                **dict.fromkeys(
                    ["plain loop s", "unbatched s", "ours s", "bound s"],
                    "{:.1f}".format,
                ),
            }
        )
    )
    work = total["bound s"] * throughput
    allowed = total["channels"] * len(x) * multiply_adds(graph, graph.nodes) / work
    print(
        f"Ours is {total['plain loop s'] / ours:.1f} times as fast as the plain loop "
        f"(multiply-adds alone allow {allowed:.1f}) and "
        f"{total['unbatched s'] / ours:.1f} times as fast as the suffix unbatched."
    )


def peak_memory(args):
    """Peak memory of a process begun for it, above what it held before."""
    if args.of is None:
        for of in ("plain loop", *(args.memory or ["default"])):
            subprocess.run([sys.executable, *sys.argv, "--of", of], check=True)
        return
    model, taps, size = network(args)
    x, y = photographs(args.samples, size)
    loop = PlainLoop(model, x[:1], y[:1], 1)  # what TensorFlow takes at first
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = memory_now("VmRSS")
    if args.of == "plain loop":
        PlainLoop(model, x, y, len(x)).score(taps[0], 0)
    else:
        compute(model, x, y, taps, memory=None if args.of == "default" else args.of)
    grown = memory_now("VmHWM") - before
    print(
        f"{args.network}, {size} px, {len(x)} samples, {args.of}: peak "
        f"{grown / 1024:.0f} MiB above the model and one image"
    )
    del loop


def memory_now(field):
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1])


def growth(args):
    model, taps, size = network(args)
    x, y = photographs(max(args.samples), size)
    compute(model, x[:32], y[:32], taps)  # what TensorFlow does only once
    rows = []
    for count in args.samples:
        seconds, _ = timed(compute, model, x[:count], y[:count], taps)
        rows.append(
            {"samples": count, "s": seconds, "ms a sample": 1000 * seconds / count}
        )
    print(f"{args.network}, {size} px, taps {', '.join(taps)}")
    print(pd.DataFrame(rows).round(1).to_string(index=False))


def convergence(args):
    model, taps, size = network(args)
    sets = kd.data.from_directory(args.data_dir)
    data = sets["train"].batches(size, 64)
    x, y = (np.concatenate(v) for v in zip(*data.as_numpy_iterator(), strict=True))
    classifier = kd.DeltaModel(model, regularizer="l2_fe")
    classifier.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), LOSS, metrics=["accuracy"]
    )
    classifier.fit(x, y, epochs=10, verbose=0)
    accuracy = classifier.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
    whole = compute(model, x, y, taps)
    rows = []
    for count in args.samples:
        for repeat in range(args.repeats):
            some = np.random.default_rng(repeat).choice(len(x), count, replace=False)
            part = compute(model, x[some], y[some], taps)
            for tap in taps:
                a, b = pd.Series(part.scores[tap]), pd.Series(whole.scores[tap])
                rows.append(
                    {"samples": count, "tap": tap, "rank": a.rank().corr(b.rank())}
                )
    print(
        f"{args.network}, {size} px, head trained on {len(x)} photographs (training "
        f"accuracy {accuracy:.2f}): rank correlation of the scores from some samples "
        f"with those from all, mean of {args.repeats} draws"
    )
    table = pd.DataFrame(rows).pivot_table(
        index="samples", columns="tap", values="rank", sort=False
    )
    print(table.round(2).to_string())
    error = {t: np.median(e) for t, e in whole.standard_errors.items()}
    spread = {t: s.std() for t, s in whole.scores.items()}
    print(
        "Standard error from all samples, median over channels, in standard deviations "
        "of the scores: " + ", ".join(f"{t} {error[t] / spread[t]:.2f}" for t in taps)
    )


def official(args):
    rows = []
    for path in sorted(args.folder.glob("channel_wei.*.json")):
        attention = kd.ChannelAttention.from_official_json(path, OFFICIAL_TAPS)
        rows.append(
            {"data set": path.name.split(".")[1]}
            | {
                f"{t}, {len(w)} channels": f"{attention.perplexity[t]:.0f} "
                f"({attention.effective_channels[t]:.0%}), {w.max() * len(w):.1f}"
                for t, w in attention.weights.items()
            }
        )
    print("Perplexity of the weights (share of the channels), largest weight times C")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    args = arguments()
    {
        "speed": speed,
        "memory": peak_memory,
        "growth": growth,
        "convergence": convergence,
        "official": official,
    }[args.table](args)
