"""What a prediction of a whole model says: latency with its interval and its sources, layers, memory, notes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwsearch.costmodel.attribution import Share
from hwsearch.costmodel.host import Host
from hwsearch.costmodel.memory import Memory
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.workload import Workload

__all__ = [
    "ALL_GATHER",
    "ALL_REDUCE",
    "ANALYTIC",
    "CACHE_COPY",
    "HOST_PROFILE",
    "HOST_WAIT",
    "Latency",
    "LayerCost",
    "ModelCost",
]

CACHE_COPY, HOST_WAIT = "cache_copy", "host_wait"
"""Names, beside the kinds of operators, of the time for copies of the cache and for waiting for the host."""
HOST_PROFILE = "host profile"
"""The provenance of both."""
ALL_REDUCE, ALL_GATHER = "all_reduce", "all_gather"
"""Names of what the devices of a tensor-parallel group exchange."""
ANALYTIC = "analytic"
"""The provenance of exchanges, and of matrix products with quantised weights."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of a group of operators, their 90% interval, and where the time and the figures come from.

    by_operator: kind -> ms. by_provenance: how a figure was obtained -> ms. shares: kind -> what bounds it.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    by_operator: dict[str, float]
    by_provenance: dict[str, float]
    shares: dict[str, Share]


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One decoder layer of a prediction: device time, waiting for the host left out."""

    index: int
    layer: LayerSpec
    latency: Latency
    mixer_ms: float
    ffn_ms: float


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What an architecture costs at a workload on a device, run by a host.

    tp: how many devices share it; the latency is that of all of them together, layers and memory are those of one.
    weights: the format of quantised weights, or None. host_ms: what the host needs to launch everything; part of the
    latency only where it exceeds device time. predicted_from: what the latency is the sum of, "operators", or "blocks"
    of layers measured whole; all other times are by operators.
    """

    architecture: Architecture
    workload: Workload
    host: Host
    tp: int
    weights: str | None
    host_ms: float
    latency: Latency
    layers: tuple[LayerCost, ...]
    embedding_ms: float
    head_ms: float
    memory: Memory
    notes: tuple[str, ...]
    predicted_from: str = "operators"

    @property
    def operators_ms(self) -> float:
        """The sum over operators and what the host adds, whatever the latency was predicted from."""
        return math.fsum(self.latency.by_provenance.values())

    @property
    def throughput_tokens_per_s(self) -> float:
        """Tokens through the model per second: generated ones in decode, prompt tokens in prefill."""
        return self.workload.tokens / (self.latency.median_ms / 1e3)

    @property
    def time_to_first_token_ms(self) -> float | None:
        """Until the first token of every sequence is known: the whole prefill with the LM head, whose logits choose it.

        None for a decode step.
        """
        return self.latency.median_ms if self.workload.phase == "prefill" else None
