"""Regularizers by name. A new one is a file beside this and a line in `ALL`."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_delta._errors import invalid, unknown_name
from keras_delta._types import RegularizerLike
from keras_delta.regularizers.afd import AFD as AFD
from keras_delta.regularizers.at import AT as AT
from keras_delta.regularizers.base import MAPS as MAPS
from keras_delta.regularizers.base import Regularizer as Regularizer
from keras_delta.regularizers.batch import Batch as Batch
from keras_delta.regularizers.bi_tuning import BiTuning as BiTuning
from keras_delta.regularizers.bss import BSS as BSS
from keras_delta.regularizers.co_tuning import CoTuning as CoTuning
from keras_delta.regularizers.delta import Delta as Delta
from keras_delta.regularizers.dtnh import DTNH as DTNH
from keras_delta.regularizers.feature_map import FeatureMap as FeatureMap
from keras_delta.regularizers.fitnets import FitNets as FitNets
from keras_delta.regularizers.four_ds import FourDs as FourDs
from keras_delta.regularizers.fsp import FSP as FSP
from keras_delta.regularizers.kd import KD as KD
from keras_delta.regularizers.l2 import L2 as L2
from keras_delta.regularizers.l2_fe import L2FE as L2FE
from keras_delta.regularizers.l2_sp import L2SP as L2SP
from keras_delta.regularizers.l2_sp_att import L2SPAtt as L2SPAtt
from keras_delta.regularizers.l2_sp_fisher import L2SPFisher as L2SPFisher
from keras_delta.regularizers.lwf import LwF as LwF
from keras_delta.regularizers.sum import Sum as Sum

ALL: dict[str, type[Any]] = {
    "l2": L2,
    "l2_fe": L2FE,
    "l2_sp": L2SP,
    "l2_sp_att": L2SPAtt,
    "l2_sp_fisher": L2SPFisher,
    "feature_map": FeatureMap,
    "delta": Delta,
    "bss": BSS,
    "bi_tuning": BiTuning,
    "lwf": LwF,
    "co_tuning": CoTuning,
    "dtnh": DTNH,
    "kd": KD,
    "fitnets": FitNets,
    "attention_transfer": AT,
    "at": AT,
    "fsp": FSP,
    "afd": AFD,
    "four_ds": FourDs,
}


def get(identifier: RegularizerLike) -> Regularizer | None:
    """The regularizer that an identifier stands for.

    Args:
        identifier: a `Regularizer`, or its class; a name in `ALL`; a config dict as
            `serialize` gives it; a list of these (their sum); None or `"none"`.

    Returns:
        A `Regularizer`, or None.

    Raises:
        ValueError: if the name is unknown; the closest ones are listed.
        TypeError: if the identifier is anything else.
    """
    if identifier is None or isinstance(identifier, Regularizer):
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, Regularizer):
        kind: Any = identifier
        return kind()
    if isinstance(identifier, str):
        if identifier == "none":
            return None
        if identifier not in ALL:
            known = [*ALL, "none"]
            raise ValueError(unknown_name("regularizer", identifier, known))
        return ALL[identifier]()
    if isinstance(identifier, dict):
        return deserialize(identifier)
    if isinstance(identifier, (list, tuple)):
        members = [m for m in map(get, identifier) if m is not None]
        if not members:
            return None
        return members[0] if len(members) == 1 else Sum(members)
    expected = "a Regularizer, a name, a config dict, a list of these, or None"
    raise TypeError(invalid("regularizer", expected, identifier))


def serialize(regularizer: Regularizer | None) -> dict[str, Any] | None:
    """Config dict of a regularizer; None for None."""
    if regularizer is None:
        return None
    return keras.saving.serialize_keras_object(regularizer)


def deserialize(config: Mapping[str, Any] | None) -> Regularizer | None:
    """The regularizer of a config dict; None for None.

    Besides the output of `serialize`, `{"class_name": "delta", "config": {...}}` with
    a short name is accepted.
    """
    if config is None:
        return None
    name = config.get("class_name")
    if name is None:
        expected = 'a config dict {"class_name": ..., "config": {...}}'
        remedy = "Use `keras_delta.regularizers.serialize` to see one."
        raise ValueError(invalid("regularizer", expected, config, remedy))
    if name in ALL:
        return ALL[name].from_config(config.get("config", {}))
    if set(config) <= {"class_name", "config"} and ">" not in str(name):
        raise ValueError(unknown_name("regularizer", name, ALL))
    return get(keras.saving.deserialize_keras_object(config))


def alike(a: Regularizer | None, b: Regularizer | None) -> bool:
    """Whether two regularizers differ at most in name and strengths.

    Strengths are numbers that can be set; a schedule in place of one is a difference.
    """
    return settings(a) == settings(b)


def settings(regularizer: Regularizer | None) -> Any:
    """The config of a regularizer without names and without numeric strengths."""
    return _without_strengths(serialize(regularizer))


def _without_strengths(config):
    if isinstance(config, list):
        return [_without_strengths(v) for v in config]
    if not isinstance(config, dict):
        return config
    is_set = {k for k in ("alpha", "beta") if isinstance(config.get(k), (int, float))}
    left_out = {"name", *is_set}
    return {k: _without_strengths(v) for k, v in config.items() if k not in left_out}


def members(regularizer: Regularizer | None) -> list[Regularizer]:
    """List of the single regularizers that make up a regularizer; empty for None."""
    if isinstance(regularizer, Sum):
        return [found for m in regularizer.members for found in members(m)]
    return [] if regularizer is None else [regularizer]


def with_attention(regularizer: Regularizer | None) -> list[Regularizer]:
    """List of the single regularizers that weight channels by attention."""
    return [m for m in members(regularizer) if hasattr(m, "attention_weights")]
