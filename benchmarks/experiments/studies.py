"""The experiments: the article's tables and figure, and our own on few photographs.

Each function gives a list of `Entry` for a `Plan`.
"""

from keras_delta import _arguments, regularizers
from keras_delta._errors import invalid
from experiments import methods, metrics, protocols
from experiments.cell import Cell
from experiments.plan import Choice, Entry
from keras_delta.regularizers import AFD, KD, Delta, FourDs
from keras_delta.tuning import ARTICLE_GRID

ARTICLE_DATA = (
    *("indoor67", "stanford_dogs", "caltech256_30", "caltech256_60", "cub", "food101"),
)
ARTICLE_NETWORKS = ("resnet101", "inception_v3")
TABLE_1 = methods.ARTICLE
TABLE_2 = ("l2", "l2_sp", "l2_sp_att", "delta")
ALL = tuple(methods.ALL)
FIGURE_3 = ("l2", "l2_sp", "delta")

# (data set, images a class): one that ImageNet is near to, and two far from it.
FEW_SHOT = (
    *(("folder:flowers12", k) for k in (5, 10, 20, 60)),
    ("folder:pacs/cartoon", 20),
    ("folder:pacs/sketch", 20),
)
WHY = (("folder:flowers12", 10), ("folder:pacs/sketch", 20))
ROBUSTNESS = (("folder:flowers12", 20),)
START = (
    *(("folder:flowers12", k) for k in (5, 10, 20)),
    *(("folder:trash6", k) for k in (10, 40)),
    *(("folder:dtd10", k) for k in (10, 40)),
    ("folder:pacs/cartoon", 20),
    ("folder:pacs/sketch", 20),
)
CHOICE_PER_CLASS = 10
CHOICE_ITERATIONS = 32
NOISES = (0.0, 0.1, 0.2, 0.4)
CORRUPTIONS = tuple(f"{k} {s}" for k in ("blur", "noise", "jpeg") for s in (2, 4))

# The activations that follow EfficientNet-Lite's taps.
AFTER_ACTIVATION = (
    *("block3a_expand_activation", "block4a_expand_activation"),
    *("block6a_expand_activation", "top_activation"),
)
LAST_TAP = ("block7a_project_conv",)

# (factor, label, what differs from the reference)
OF_PROTOCOL = ("batch_norm_momentum", "rates")
REFERENCE = ("reference", "DELTA: attention computed, T = 5, alpha = 5", {})
CONDITIONS = (
    ("penalty", "none: L2", {"method": "l2"}),
    ("penalty", "features frozen: L2-FE", {"method": "l2_fe"}),
    ("attention", "uniform", {"attention": "uniform"}),
    ("attention", "computed, permuted", {"attention": "permuted"}),
    ("attention", "computed, top half", {"attention": "top_half"}),
    ("temperature", "1", {"temperature": 1.0}),
    ("temperature", "1, alpha 0.5", {"temperature": 1.0, "alpha": 0.5}),
    ("temperature", "25", {"temperature": 25.0}),
    *(("alpha", f"{a:g}", {"alpha": a}) for a in (0.1, 1.0, 20.0, 100.0)),
    ("attention images", "16", {"attention_samples": 16}),
    ("attention images", "all", {"attention_samples": 10_000}),
    ("taps", "last only", {"taps": LAST_TAP}),
    ("variant", "code, alpha 1e-4", {"method": "delta_code", "alpha": 1e-4}),
    ("BatchNorm", "frozen", {"batch_norm": "frozen"}),
    ("BatchNorm", "frozen, alpha 0.1", {"batch_norm": "frozen", "alpha": 0.1}),
    ("BatchNorm", "frozen, no penalty: L2", {"method": "l2", "batch_norm": "frozen"}),
    ("BatchNorm", "momentum 0.99", {"batch_norm_momentum": 0.99}),
    ("alpha over time", "decaying to 0", {"strength": "decaying"}),
    ("alpha over time", "every second step", {"strength": "every_second"}),
    ("other attention", "gradient times activation", {"attention": "taylor"}),
    ("other attention", "computed again while training", {"attention": "moving"}),
    ("other attention", "per class, the largest", {"attention": "per_class"}),
    ("other attention", "maps after the activation", {"taps": AFTER_ACTIVATION}),
    (
        *("other attention", "maps after the activation, uniform"),
        {"taps": AFTER_ACTIVATION, "attention": "uniform"},
    ),
)


# Where training begins, at which rate, and what BatchNorm does meanwhile.
FROM_RANDOM = ("reference", "DELTA w/o ATT, random head", {"method": "feature_map"})
FITTED = {"method": "feature_map", "head": "fitted"}
SLOW = {"rates": {"default": 0.003}}
STARTS = (
    ("probe", "the fitted head alone", {"method": "l2_fe", "head": "only"}),
    ("head", "DELTA w/o ATT, fitted head", FITTED),
    ("rate", "DELTA w/o ATT, fitted head, 0.003", {**FITTED, **SLOW}),
    (
        *("BatchNorm", "DELTA w/o ATT, fitted head, 0.003, frozen"),
        {**FITTED, **SLOW, "batch_norm": "frozen"},
    ),
    ("method", "L2, random head", {"method": "l2"}),
    ("method", "L2, fitted head", {**FITTED, "method": "l2"}),
    ("method", "L2-SP, random head", {"method": "l2_sp"}),
    ("method", "L2-SP, fitted head", {**FITTED, "method": "l2_sp"}),
)

# The recipe with one of its parts changed at a time: an ablation.
RECIPE = (
    *((f"folder:{name}", 10) for name in ("flowers12", "trash6", "dtd10")),
    ("folder:pacs/sketch", 20),
)
AS_IT_IS = ("reference", "the recipe as it is", {"method": "recipe"})


def _with(regularizer):
    return {"regularizer": regularizers.serialize(regularizer)}


NO_PENALTY = {"regularizer": "l2", "average": 0.5}
PARTS = (
    ("head", "random", {"fit_head": False}),
    ("BatchNorm", "statistics of each batch", {"batch_norm": "training"}),
    ("BatchNorm", "the source's", {"batch_norm": 0.0}),
    ("BatchNorm", "half of the target's", {"batch_norm": 0.5}),
    ("regularizer", "none: L2", {"regularizer": "l2"}),
    ("regularizer", "L2-SP", {"regularizer": "l2_sp"}),
    ("regularizer", "with attention", {"regularizer": "delta"}),
    *(
        (
            *("alpha", f"{alpha:g}, not 5"),
            _with(regularizers.FeatureMap(alpha=alpha, name="feature_map")),
        )
        for alpha in (0.5, 1.6, 16, 50)
    ),
    ("average", "a quarter of the source", {"average": 0.25}),
    ("average", "half of the source", {"average": 0.5}),
    ("average", "half of the source, no penalty: L2", NO_PENALTY),
    ("rate", "1e-4", {"learning_rate": 1e-4}),
    ("rate", "1e-3", {"learning_rate": 1e-3}),
    (
        *("optimizer", "SGD, momentum 0.9, 0.003"),
        {
            "optimizer": {"class_name": "SGD", "config": {"momentum": 0.9}},
            "learning_rate": 0.003,
        },
    ),
    ("warm-up", "none", {"warm_up": 0.0}),
    ("clip", "1", {"clip": 1.0}),
    ("epochs", "20", {"epochs": 20}),
    ("freeze", "half of the taps", {"freeze": 0.5}),
)

# What could make channels, taps or directions count differently; all in the recipe.
EVEN = ("reference", "all channels alike", AS_IT_IS[2])
DISTANCES = (
    ("channels", "attention (DELTA)", {"regularizer": "delta"}),
    ("channels", "attention, temperature 1", _with(Delta(temperature=1.0, name="a"))),
    *(
        (factor, kind, _with(metrics.Metric(kind, name="metric")))
        for factor, kinds in (
            ("channels", ("released", "top quarter", "fisher of channels")),
            ("directions", ("fisher", "whitened")),
        )
        for kind in kinds
    ),
    *(
        ("taps", which, _with(metrics.SomeTaps(which, name="some_taps")))
        for which in metrics.TAPS
    ),
    ("instead of maps", "their means", _with(metrics.Pooled(name="pooled"))),
    (
        *("instead of maps", "similarities of images"),
        _with(metrics.Relational(name="relational")),
    ),
)

# What could be chosen for each data set: the method, its strength, how much is frozen.
OF_SEARCH = ("regularizer", "alpha", "freeze")
CANDIDATES = (
    *(part for part in PARTS if part[0] in OF_SEARCH),
    ("freeze", "all but the head", {"regularizer": "l2_fe"}),
)

# The average with the source (WiSE-FT), with the penalty and without.
AVERAGES = tuple(
    ("", name + ending, {**AS_IT_IS[2], "recipe": {**parts, "average": average}})
    for name, parts in (("recipe", {}), ("L2", {"regularizer": "l2"}))
    for ending, average in (("", 0.0), (", a quarter", 0.25), (", half", 0.5))
)

# A larger network of the same task teaches a smaller one, and one of another domain.
TASKS = tuple((f"folder:{name}", 10) for name in ("flowers12", "trash6"))
TASKS += (("folder:pacs/sketch", 20),)
LARGER = {"network": "efficientnet_lite2"}
DOMAINS = tuple((f"folder:pacs/{style}", 20) for style in ("cartoon", "sketch"))
# Not Lite2: 4Ds wants the student's channels.
OF_PHOTOS = {
    "network": "efficientnet_lite1",
    "dataset": "folder:pacs/photo",
    "per_class": None,
}


def _taught(teacher, *names, **regularizer):
    """Conditions in which a teacher is the source of regularizers."""
    method = {**AS_IT_IS[2], "teacher": teacher}
    each = [(name, {"recipe": {"regularizer": name}, **method}) for name in names]
    each += [(k, {"recipe": _with(v), **method}) for k, v in regularizer.items()]
    return tuple(("teacher", label, changes) for label, changes in each)


ALONE = (
    "reference",
    "no teacher: L2",
    {**AS_IT_IS[2], "recipe": {"regularizer": "l2"}},
)
OWN_SOURCE = ("no teacher", "the recipe as it is", AS_IT_IS[2])
DISTILLED = (
    *(ALONE, OWN_SOURCE, *_taught(LARGER, "kd", "afd")),
    ("teacher", "itself", {"method": "teacher", "teacher": LARGER}),
)
ADAPTED = (
    *(ALONE, OWN_SOURCE, *_taught(OF_PHOTOS, "kd")),
    # 4Ds' own weights, without what it adds.
    *_taught(OF_PHOTOS, **{"kd, both weights 1": KD(1.0, task_weight=1.0, name="a")}),
    *_taught(OF_PHOTOS, "four_ds"),
    *_taught(OF_PHOTOS, **{"four_ds, as the code": FourDs(variant="code", name="a")}),
    ("teacher", "itself", {"method": "teacher", "teacher": OF_PHOTOS}),
)


# Every method that begins at the pretrained network, in one recipe.
FAMILY = (
    *((f"folder:{name}", 10) for name in ("flowers12", "trash6", "dtd10")),
    ("folder:trash6", 40),
    ("folder:pacs/sketch", 20),
)
OF_FAMILY = (
    *("feature_map", "l2", "l2_sp", "l2_sp_att", "l2_sp_fisher", "delta", "dtnh"),
    *("bss", "bi_tuning", "lwf", "co_tuning", "fitnets", "at", "fsp"),
)
MEMBERS = (
    *((name, {**AS_IT_IS[2], "recipe": {"regularizer": name}}) for name in OF_FAMILY),
    ("AFD without KD", {**AS_IT_IS[2], "recipe": _with(AFD(kd=0.0, name="afd"))}),
    ("probe", {"method": "probe"}),
)
OF_REFERENCE = OF_FAMILY[0]
FACTORS = (0.1, 10.0)  # of a method's own strength, to choose from beside it
# The same from a random head, as papers have it: on two data sets, with right labels.
PLAIN = tuple((name, {"method": name}) for name in ("l2_fe", *OF_FAMILY))
PLAIN += tuple((name, {"method": name}) for name in ("stoch_norm", "rifle"))


def article(
    table=1,
    *,
    protocol="article",
    datasets=None,
    networks=ARTICLE_NETWORKS,
    methods=None,
    repeats=None,
    weights="imagenet",
    choose=False,
    seed=0,
):
    """The article's Table 1 (default augmentation), Table 2 (improved) or Fig. 3.

    Args:
        table: 1, 2, or `"figure 3"`: test accuracy over the epochs, both schedules.
        protocol: a `Protocol` or its name.
        datasets, networks, methods: names; default: the article's.
        repeats: trainings of each cell; default: the protocol's.
        weights: `"imagenet"`, a path, or a dict data set -> one of these. (The article
            starts MIT Indoors from Places365.)
        choose: whether alpha and beta are chosen by cross-validation over the
            article's 25 pairs; else they are the protocol's.
        seed: of the first repeat.
    """
    protocol = protocols.get(protocol)
    schedules = [protocol.schedule]
    if table == 2:
        improved = "improved_code" if protocol.name == "code" else "improved"
        protocol = protocol.replace(
            augmentation=improved, ten_crop=protocol.ten_crop or "logits"
        )
    elif table == "figure 3":
        schedules = list(protocols.SCHEDULES)
    elif table != 1:
        raise ValueError(invalid("table", '1, 2 or "figure 3"', table))
    default = {1: TABLE_1, 2: TABLE_2}.get(table, FIGURE_3)
    found = []
    for dataset in _names(datasets or ARTICLE_DATA):
        of = weights.get(dataset, "imagenet") if isinstance(weights, dict) else weights
        for network in _names(networks):
            for schedule in schedules:
                for method in _names(methods or default):
                    cell = Cell(
                        dataset,
                        method,
                        protocol=_scheduled(protocol, schedule),
                        network=network,
                        weights=of,
                        curve=table == "figure 3",
                    )
                    found += _repeated(
                        _strong(cell),
                        repeats or protocol.repeats,
                        seed,
                        _article_choice(cell) if choose else None,
                    )
    return found


def few_shot(
    settings=FEW_SHOT,
    *,
    methods=ALL,
    repeats=None,
    choose=True,
    stage=0,
    **options,
):
    """Accuracy of all methods on few images a class; strengths chosen on training data.

    Alpha is chosen by cross-validation for each data set and method on the training
    images of the first seed at 10 images a class (or what there is), in trainings of
    half the length; beta is the regularizer's own. All seeds and numbers of images use
    it.

    Args:
        settings: (data set, images a class) each.
        methods, repeats: what is trained, and how often.
        choose: False: the regularizers' own defaults, which need no search.
        stage: see `Entry`.
        **options: `protocol` (a `Protocol` or its name), `network`, `image_size`.
    """
    options = _options(**options)
    found = []
    for cell in _cells(settings, methods, options):
        choice = _few_shot_choice(cell) if choose else None
        found += _repeated(cell, repeats or cell.protocol.repeats, 0, choice, stage)
    return found


def why(
    settings=WHY,
    *,
    conditions=(REFERENCE, *CONDITIONS),
    repeats=None,
    stage=0,
    **options,
):
    """DELTA with one factor changed at a time, at its default strength.

    Args:
        settings, repeats, stage, **options: see `few_shot`.
        conditions: (factor, label, changes) each: `changes` are arguments of `Cell`,
            or of its protocol.
    """
    options = _options(**options)
    protocol, found = options["protocol"], []
    for i, (factor, label, changes) in enumerate(conditions):
        given = {"method": "delta", **changes}
        of_protocol = {k: given.pop(k) for k in OF_PROTOCOL if k in given}
        changed = {
            **options,
            "protocol": protocol.replace(**of_protocol),
            "factor": factor,
            "label": label,
        }
        # Condition by condition, so that the first rows are whole soon.
        later = stage + i / len(conditions)
        for cell in _cells(settings, given.pop("method"), {**changed, **given}):
            found += _repeated(cell, repeats or protocol.repeats, 0, None, later)
    return found


def start(settings=START, *, conditions=(FROM_RANDOM, *STARTS), **options):
    """Random and fitted heads, and what follows them; arguments as of `why`."""
    return why(settings, conditions=conditions, **options)


def recipe(settings=RECIPE, *, parts=PARTS, reference=AS_IT_IS, **options):
    """The recipe with one part changed at a time.

    Args:
        settings, **options: as of `why`; the protocol is `"bench"` by default.
        parts: (factor, label, changes) each: `changes` are arguments of `Recipe`.
        reference: the recipe as it is, as a condition of `why`.
    """
    changed = [(f, label, {**AS_IT_IS[2], "recipe": c}) for f, label, c in parts]
    options = {"protocol": "bench", **options}
    return why(settings, conditions=(reference, *changed), **options)


def distances(settings=RECIPE, *, parts=DISTANCES, **options):
    """The recipe with other distances of feature maps; arguments as of `recipe`."""
    return recipe(settings, parts=parts, reference=EVEN, **options)


def search(settings=RECIPE, *, parts=CANDIDATES, repeats=None, stage=0, **options):
    """Method and strength by cross-validation on the training images, in the recipe.

    Args:
        settings, **options: as of `why`; the protocol is `"bench"` by default, which
            has the number of folds.
        parts: the candidates beside the recipe as it is; see `recipe`.
        repeats, stage: see `few_shot`.
    """
    entries = recipe(settings, parts=parts, repeats=repeats, stage=stage, **options)
    entries += [
        Entry(entry.cell.replace(fold=(k, entry.cell.protocol.folds)), None, stage + k)
        for k in range(entries[0].cell.protocol.folds)
        for entry in entries
    ]
    return entries


def robustness(
    settings=ROBUSTNESS,
    *,
    methods=("l2", "l2_sp", "delta"),
    noises=NOISES,
    corruptions=CORRUPTIONS,
    repeats=None,
    choose=True,
    stage=0,
    **options,
):
    """Accuracy after wrong training labels, and on corrupted test images.

    Args:
        settings, methods, repeats, choose, stage, **options: see `few_shot`.
        noises: shares of wrong labels.
        corruptions: of the test images, for trainings with right labels.
    """
    options = _options(**options)
    found = []
    for cell in _cells(settings, methods, options):
        choice = _few_shot_choice(cell) if choose else None
        for noise in noises:
            its = cell.replace(
                label_noise=noise, corruptions=() if noise else corruptions
            )
            found += _repeated(its, repeats or cell.protocol.repeats, 0, choice, stage)
    return found


def averages(settings=RECIPE, *, conditions=AVERAGES, noises=NOISES[::2], **options):
    """Shares of the source in the result: wrong labels, corrupted images, calibration.

    Args:
        settings, conditions, **options: as of `why`; the protocol is `"bench"` by
            default.
        noises: shares of wrong labels.
    """
    changed = [
        (
            *(factor, label),
            {
                **changes,
                "label_noise": noise,
                "corruptions": () if noise else CORRUPTIONS,
            },
        )
        for noise in noises
        for factor, label, changes in conditions
    ]
    return why(settings, conditions=changed, **{"protocol": "bench", **options})


def family(
    settings=FAMILY,
    *,
    members=MEMBERS,
    noises=(0.0, 0.2),
    noise_repeats=1,
    repeats=None,
    choose=True,
    **options,
):
    """Every method in one recipe, with right and with wrong labels, seed by seed.

    Args:
        settings, repeats, **options: as of `why`; the protocol is `"bench"` by default.
        members: (label, changes) each: `changes` are arguments of `Cell`.
        noises: shares of wrong labels.
        noise_repeats: seeds with wrong labels, at most `repeats`.
        choose: whether each method gets one of three strengths, its own default and a
            tenth and ten times of it: that of the best mean accuracy over the
            settings, on one fold of the training images of the first seed.
    """
    stage = options.pop("stage", 0)
    options = _options(**{"protocol": "bench", **options})
    repeats = repeats or options["protocol"].repeats

    def cells(label, changes, **its):
        its = {**options, **its, "label": label, **changes}
        return _cells(settings, its.pop("method"), its)

    choices = {
        label: _choice_of_factor(cells(label, changes, seed=0)) if choose else None
        for label, changes in members
    }
    return [
        Entry(cell, choices[label], stage + seed / repeats)
        for seed in range(repeats)
        for noise in noises
        if not noise or seed < noise_repeats
        for label, changes in members
        for cell in cells(label, changes, seed=seed, label_noise=noise)
    ]


def family_plain(
    settings=(FAMILY[0], FAMILY[-1]), *, members=PLAIN, noises=(0.0,), **options
):
    """The family from a random head, without the recipe; arguments as of `family`.

    Strengths are the methods' own.
    """
    its = {"members": members, "noises": noises, "choose": False}
    return family(settings, **its, **options)


def distillation(settings=TASKS, *, conditions=DISTILLED, **options):
    """A larger network, fine-tuned on the same images, teaches; arguments as of `why`.

    The protocol is `"bench"` by default.
    """
    return why(settings, conditions=conditions, **{"protocol": "bench", **options})


def domains(settings=DOMAINS, *, conditions=ADAPTED, **options):
    """A network that was fine-tuned on photographs teaches one for drawings.

    Arguments as of `why`; the protocol is `"bench"` by default.
    """
    return why(settings, conditions=conditions, **{"protocol": "bench", **options})


def bench(settings=START, *, methods=methods.BENCH, repeats=None, stage=0, **options):
    """The recipe beside the usual ways to fine-tune, at their default strengths.

    Args:
        settings, methods, repeats, stage, **options: see `few_shot`; the protocol is
            `"bench"` by default.
    """
    options = _options(**{"protocol": "bench", **options})
    repeats = repeats or options["protocol"].repeats
    cells = _cells(settings, methods, options)
    return [
        # Seed by seed, so that a whole comparison is there soon.
        Entry(cell.replace(seed=seed), None, stage + seed / repeats)
        for seed in range(repeats)
        for cell in cells
    ]


def _options(protocol="few_shot", network="efficientnet_lite0", image_size=112):
    protocol = protocols.get(protocol)
    return {"protocol": protocol, "network": network, "image_size": image_size}


def _cells(settings, methods, options):
    """A cell of each method on each setting."""
    return [
        Cell(dataset, method, per_class=per_class, **options)
        for method in _names(methods)
        for dataset, per_class in _checked(settings)
    ]


def _checked(settings):
    """Pairs of data set and images per class."""
    for pair in settings if isinstance(settings, (list, tuple)) else [None]:
        whole = isinstance(pair, (list, tuple)) and len(pair) == 2
        count = (int, type(None))
        if not whole or not isinstance(pair[0], str) or not isinstance(pair[1], count):
            expected = 'pairs (data set, images per class): (("folder:flowers", 10),)'
            raise TypeError(invalid("settings", expected, settings))
        _arguments.integer("settings", pair[1], optional=True)
    return settings


def _names(given):
    return (given,) if isinstance(given, str) else tuple(given)


def _repeated(cell, repeats, first_seed, choice=None, stage=0):
    seeds = range(first_seed, first_seed + repeats)
    return [Entry(cell.replace(seed=seed), choice, stage) for seed in seeds]


def _strong(cell):
    """The cell with the strengths of its protocol."""
    alpha, beta = cell.protocol.strength(cell.method, cell.dataset)
    return cell.replace(alpha=alpha, beta=beta)


def _scheduled(protocol, schedule):
    """The protocol with a schedule; Fig. 3's exponential one is 0.93 an epoch."""
    if schedule == protocol.schedule:
        return protocol
    decay = 0.93 if protocol.name == "article" and schedule == "exponential" else None
    return protocol.replace(schedule=schedule, decay=decay)


def _article_choice(cell):
    alphas = ARTICLE_GRID if methods.get(cell.method).alphas else (None,)
    pairs = tuple((a, b) for a in alphas for b in ARTICLE_GRID)
    return Choice((cell.replace(curve=False),), pairs, cell.protocol.folds)


def _choice_of_factor(cells):
    """One strength for all of these cells; None for a method without."""
    if cells[0].method != "recipe":
        return None
    own = regularizers.get(cells[0].its_recipe().regularizer).alpha
    tried = [float(f"{float(own) * factor:.3g}") for factor in FACTORS]
    pairs = [(alpha, None) for alpha in (None, *tried)]
    return Choice(tuple(cells), tuple(pairs), cells[0].protocol.folds, held_out=1)


def _few_shot_choice(cell):
    """None where alpha has no effect."""
    alphas = methods.get(cell.method).alphas
    if not alphas:
        return None
    protocol = cell.protocol.replace(iterations=CHOICE_ITERATIONS)
    its = cell.replace(
        protocol=protocol,
        per_class=min(cell.per_class or CHOICE_PER_CLASS, CHOICE_PER_CLASS),
        label_noise=0.0,
        corruptions=(),
    )
    return Choice((its,), tuple((a, None) for a in alphas), protocol.folds)
