"""Shared parts of methods that compare maps of two networks, tap by tap."""

from typing import Any

from keras import ops

from keras_delta._errors import invalid
from keras_delta._network import auto_taps
from keras_delta._network.graph import Graph
from keras_delta._network.networks import Networks
from keras_delta._types import Maps, Tensor
from keras_delta.regularizers.base import MAPS, Regularizer
from keras_delta.regularizers.predictions import check_image_maps


class PairedMaps(Regularizer):
    """Base class that compares the taps of source and target in order, one to one.

    Source and target may be different networks. With `taps="auto"` the taps are the
    ends of the last four stages of each.
    """

    needs = MAPS
    starts_at_source = False

    source_taps: Any = None
    target_taps: Any = None
    """Names of the taps in order, once a model uses the regularizer."""

    def choose_taps(self, graph: Graph) -> list[str] | None:
        """See `Regularizer.choose_taps`: the ends of the last four stages."""
        return auto_taps.find_stage_ends(graph)

    def check(self, networks: Networks) -> None:
        """See `Regularizer.check`; needs equal numbers of maps of images."""
        super().check(networks)
        check_image_maps(networks)
        shapes = networks.source_map_shapes, networks.target_map_shapes
        if len(shapes[0]) != len(shapes[1]):
            expected = "as many taps in the source as in the target"
            received = f"{list(shapes[0])} and {list(shapes[1])}"
            remedy = "Pass two lists of the same length, `taps` and `source_taps`."
            raise ValueError(invalid("taps", expected, received, remedy))

    def bind(self, networks: Networks) -> None:
        """See `Regularizer.bind`."""
        super().bind(networks)
        self.source_taps = tuple(networks.source_map_shapes)
        self.target_taps = tuple(networks.target_map_shapes)

    def pairs(
        self, source_maps: Maps, target_maps: Maps
    ) -> list[tuple[Tensor, Tensor]]:
        """List of `(source map, target map)`, float32, in the order of the taps."""
        ours, theirs = (
            [ops.cast(maps[tap], "float32") for tap in taps or maps]
            for taps, maps in (
                (self.target_taps, target_maps),
                (self.source_taps, source_maps),
            )
        )
        return list(zip(theirs, ours, strict=True))
