"""The compared methods: how each is called, made, and searched."""

from collections.abc import Callable
from typing import NamedTuple

from keras_delta import _arguments, regularizers

R = regularizers


class Method(NamedTuple):
    """One method of the comparison.

    Attributes:
        title: what the article calls it.
        make: function of (alpha, beta, variant) that gives a new regularizer; None in
            place of a number is the regularizer's own default. None for a method
            that trains in its own way, see `baselines`.
        alphas: what a cross-validated choice tries where the protocol has no grid
            of its own; empty where alpha has no effect.
        attended: whether it needs the channel attention.
    """

    title: str
    make: Callable | None
    alphas: tuple
    attended: bool = False


def _weights(kind):
    def make(alpha, beta, variant):
        given = {"alpha": alpha, "beta": beta}
        return kind(**{k: v for k, v in given.items() if v is not None})

    return make


def _frozen(alpha, beta, variant):
    return R.L2FE(beta=0.01 if beta is None else beta)


def _maps(kind, fixed=None):
    def make(alpha, beta, variant):
        beta = 0.01 if beta is None else beta
        return kind(alpha=alpha, beta=beta, variant=fixed or variant)

    return make


ALL = {
    "l2_fe": Method("L2-FE", _frozen, ()),
    "l2": Method("L2", _weights(R.L2), (1e-4, 1e-3, 1e-2)),
    "l2_sp": Method("L2-SP", _weights(R.L2SP), (1e-3, 1e-2, 1e-1)),
    "l2_sp_att": Method("L2-SP (ATT)", _weights(R.L2SPAtt), (1e-3, 1e-2, 1e-1), True),
    "feature_map": Method("DELTA w/o ATT", _maps(R.FeatureMap), (0.5, 5.0, 20.0)),
    "delta": Method("DELTA", _maps(R.Delta), (0.5, 5.0, 20.0), True),
    # The authors' form, which sums over the batch and has the map's own units.
    "delta_code": Method(
        "DELTA (code)", _maps(R.Delta, "code"), (1e-5, 1e-4, 1e-3), True
    ),
}
PEERS = {  # from a random head, at their own strengths
    "l2_sp_fisher": Method("L2-SP-Fisher", _weights(R.L2SPFisher), ()),
    "dtnh": Method("DTNH", _weights(R.DTNH), ()),
    "bss": Method("BSS", _weights(R.BSS), ()),
    "bi_tuning": Method("Bi-Tuning", _weights(R.BiTuning), ()),
    "lwf": Method("LwF", _weights(R.LwF), ()),
    "co_tuning": Method("Co-Tuning", _weights(R.CoTuning), ()),
    "fitnets": Method("FitNets", _weights(R.FitNets), ()),
    "at": Method("AT", _weights(R.AT), ()),
    "fsp": Method("FSP", _weights(R.FSP), ()),
    "stoch_norm": Method("StochNorm", _weights(R.L2), ()),
    "rifle": Method("RIFLE", _weights(R.L2), ()),
}
PROBE = {"probe": Method("linear probe", _frozen, ())}  # nothing is trained
TRAINERS = {
    "keras_guide": Method("Keras's two phases", None, ()),
    "fastai": Method("fastai's fine_tune", None, ()),
    "recipe": Method("recipe", None, ()),
}
OF_TEACHER = {"teacher": Method("the teacher itself", None, ())}  # of another training
KNOWN = {**PROBE, **ALL, **PEERS, **TRAINERS, **OF_TEACHER}
ARTICLE = ("l2_fe", "l2", "l2_sp", "l2_sp_att", "feature_map", "delta")
BENCH = (*PROBE, "l2_fe", "l2", "l2_sp", "feature_map", *TRAINERS)


def get(name):
    """A `Method` by name."""
    return KNOWN[_arguments.choice("method", name, KNOWN)]
