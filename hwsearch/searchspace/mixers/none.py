"""No token mixing."""

from __future__ import annotations

from typing import Literal

from hwsearch.operators import Operator
from hwsearch.searchspace.mixers.base import LayerType, Mixer
from hwsearch.searchspace.workload import Workload

__all__ = ["NoMixer"]


class NoMixer(Mixer):
    """No token mixing: the layer is its feed-forward network alone."""

    kind: Literal["none"] = "none"

    @property
    def layer_type(self) -> LayerType:
        return "moe"  # the name under which Hugging Face caches accept a layer without state

    @property
    def label(self) -> str:
        return ""

    def parameters(self, hidden_size: int) -> int:
        return 0

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        return ()

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return 0
