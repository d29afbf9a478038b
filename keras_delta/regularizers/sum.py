"""The sum of several regularizers."""

from collections.abc import Iterable
from typing import Any, Self

import keras
from keras import ops

from keras_delta._network.graph import Graph
from keras_delta._network.networks import Networks
from keras_delta._types import Tensor
from keras_delta.regularizers.base import Regularizer
from keras_delta.regularizers.batch import Batch


@keras.saving.register_keras_serializable("keras_delta")
class Sum(Regularizer):
    """Several regularizers at once, also made from a list like `["delta", "l2_sp"]`.

    Each keeps its alpha and beta, so the head is penalised by the sum of the betas.

    Args:
        members: list of regularizers.
        name: optional name.

    Raises:
        ValueError: if a member changes the source while others look at it, or if one
            combines gradients and there are others.
    """

    def __init__(
        self, members: Iterable[Regularizer], name: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(alpha=0.0, beta=0.0, name=name, **kwargs)
        self.members = list(members)
        self.needs = frozenset().union(*(m.needs for m in self.members))
        self.prepare_needs = frozenset().union(*(m.prepare_needs for m in self.members))
        self.needs_classes = any(m.needs_classes for m in self.members)
        self.needs_source_head = any(m.needs_source_head for m in self.members)
        self.starts_at_source = any(m.starts_at_source for m in self.members)
        self.trains_features = all(m.trains_features for m in self.members)
        self._check_members()

    def _check_members(self):
        splitting = next((m for m in self.members if m.splits_gradients), None)
        if splitting and len(self.members) > 1:
            name = type(splitting).__name__
            raise ValueError(
                f"{name} compares the gradient of all penalties with that of the task "
                f"loss, so it must wrap the others: `{name}([...])`, not "
                f"`[{name}(...), ...]`."
            )
        adapting = self.find_adapting()
        of_source = {"source_maps", "source_outputs"}
        looking = [m for m in self.members if m.needs & of_source]
        if adapting and len(looking) > 1:
            other = next(m for m in looking if m is not adapting)
            raise ValueError(
                f"{type(adapting).__name__} changes the source during training, "
                f"but {type(other).__name__} compares with the original source. Use "
                "one of the two; regularizers of parameters alone can be added, "
                'such as "l2".'
            )

    def _set_strength(self, name, value):
        raise ValueError(
            f"A sum of regularizers has no `{name}`. Received: "
            f"{name}={value!r}. Set it on a member: "
            f"`model.regularizer.members[0].{name} = {value!r}`."
        )

    def task_factor(self, step: Tensor) -> Tensor:
        """See `Regularizer.task_factor`: the product of the members'."""
        factor = ops.ones((), "float32")
        for member in self.members:
            factor = factor * member.task_factor(step)
        return factor

    def choose_taps(self, graph: Graph) -> list[str] | None:
        """See `Regularizer.choose_taps`; members that choose taps must agree."""
        every = [(type(m).__name__, m.choose_taps(graph)) for m in self.members]
        chosen = {name: taps for name, taps in every if taps}
        if len({tuple(taps) for taps in chosen.values()}) > 1:
            raise ValueError(
                f"Members of the sum tap different layers of '{graph.model.name}': "
                f"{chosen}. Specify the layers for all of them with `taps=` and "
                "`source_taps=` of the DeltaModel."
            )
        return next(iter(chosen.values()), None)

    def find_adapting(self) -> Any:
        """See `Regularizer.find_adapting`."""
        found = (member.find_adapting() for member in self.members)
        return next(filter(None, found), None)

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`."""
        members = [m.for_model(networks.pairing) for m in self.members]
        self.members.clear()  # after an assignment Keras would still track the old ones
        self.members.extend(members)
        for member in self.members:
            if not member.bound:
                member.bind(networks)
        super().bind(networks)

    @property
    def ready(self) -> bool:
        """Whether all members are ready."""
        return all(m.ready for m in self.members)

    def prepare(self, model: keras.Model, samples: Any, verbose: bool = True) -> None:
        """See `Regularizer.prepare`."""
        for member in self.members:
            member.make_ready(model, samples, verbose)

    def begin_training(self, steps: int | None, verbose: bool = True) -> None:
        """See `Regularizer.begin_training`."""
        for member in self.members:
            member.begin_training(steps, verbose)

    def take_strengths(self, other: Any) -> None:
        """See `Regularizer.take_strengths`."""
        for member, theirs in zip(self.members, other.members, strict=True):
            member.take_strengths(theirs)

    def penalties(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Regularizer.penalties`."""
        parts = [member.penalties(batch) for member in self.members]
        features, heads = zip(*parts, strict=True)
        zero = ops.zeros((), "float32")
        return sum(features, zero), sum(heads, zero)

    def after_step(self, batch: Batch) -> None:
        """See `Regularizer.after_step`."""
        for member in self.members:
            member.after_step(batch)

    def tap_penalties(self, batch: Batch) -> dict[str, Tensor]:
        """See `Regularizer.tap_penalties`."""
        total = {}
        for member in self.members:
            for tap, value in member.tap_penalties(batch).items():
                total[tap] = total.get(tap, 0.0) + value
        return total

    def get_config(self) -> dict[str, Any]:
        """See `Regularizer.get_config`."""
        members = [keras.saving.serialize_keras_object(m) for m in self.members]
        return {"name": self.name, "members": members}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """See `Regularizer.from_config`."""
        members = [keras.saving.deserialize_keras_object(m) for m in config["members"]]
        return cls(members, name=config.get("name"))
