"""From operators to whole models: latency, throughput and memory of an architecture at a workload.

Device time is the sum over operators, each launched after the other: no overlap between kernels. The host profile
(host.py) decides which operators run and adds what the host itself costs: copies of the cache, and the time to
launch every kernel, which hides behind the device's where that is longer. The 90% interval takes the errors of one
operator family as fully correlated (a family that is slow on one shape tends to be slow on the next) and those of
different families as independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwsearch.costmodel.attribution import Share, ceilings
from hwsearch.costmodel.host import ENGINE, Host
from hwsearch.costmodel.memory import Memory, memory_of
from hwsearch.costmodel.model import PROVENANCES, CostModel
from hwsearch.costmodel.roofline import BANDWIDTH_SHARE, ROOFLINE_FACTOR
from hwsearch.errors import InputError
from hwsearch.operators import Operator, dtype_bytes
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.workload import Workload

__all__ = [
    "CACHE_COPY",
    "HOST_PROFILE",
    "HOST_WAIT",
    "Latency",
    "LayerCost",
    "ModelCost",
    "check_dtype",
    "latency_of",
    "model_cost",
]

CACHE_COPY, HOST_WAIT = "cache_copy", "host_wait"
"""Names, beside the kinds of operators, of the time for copies of the cache and for waiting for the host."""
HOST_PROFILE = "host profile"
"""The provenance of both."""


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

    host_ms: what the host needs to launch everything; part of the latency only where it exceeds device time.
    """

    architecture: Architecture
    workload: Workload
    host: Host
    host_ms: float
    latency: Latency
    layers: tuple[LayerCost, ...]
    embedding_ms: float
    head_ms: float
    memory: Memory
    notes: tuple[str, ...]

    @property
    def throughput_tokens_per_s(self) -> float:
        """Tokens through the model per second: generated ones in decode, prompt tokens in prefill."""
        return self.workload.tokens / (self.latency.median_ms / 1e3)


@dataclass(frozen=True)
class _Part:
    """A piece of a model: its operators in order, and the bytes of cache copied while it runs."""

    operators: tuple[Operator, ...]
    copied_bytes: int = 0

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.operators + other.operators, self.copied_bytes + other.copied_bytes)


class _Prices:
    """Predictions for the distinct operators of a model, each asked for once."""

    def __init__(self, model: CostModel, operators: Iterable[Operator], *, host: Host = ENGINE) -> None:
        distinct = list(dict.fromkeys(operators))
        self._row = {op: i for i, op in enumerate(distinct)}
        self._prediction = model.predict(distinct)
        self._roofline_ms, self._bound = ceilings(
            distinct, device=model.device, size=dtype_bytes(model.dtype)
        )
        self._copy_bandwidth = (host.copy_share or 1.0) * model.device.bandwidth
        self._reachable = BANDWIDTH_SHARE * model.device.bandwidth

    @property
    def notes(self) -> tuple[str, ...]:
        return self._prediction.notes

    def total(self, part: _Part) -> Latency:
        p = self._prediction
        operators = part.operators
        rows = np.array([self._row[op] for op in operators], dtype=np.int64)
        below: dict[str, float] = defaultdict(float)
        above: dict[str, float] = defaultdict(float)
        by_operator: dict[str, float] = defaultdict(float)
        by_provenance: dict[str, float] = defaultdict(float)
        shares: dict[str, Share] = defaultdict(Share)
        for op, row in zip(operators, rows, strict=True):
            median = float(p.median_ms[row])
            by_operator[op.kind] += median
            by_provenance[PROVENANCES[p.provenance[row]]] += median
            below[op.kind] += median - float(p.low_ms[row])
            above[op.kind] += float(p.high_ms[row]) - median
            shares[op.kind].add(
                latency_ms=median, roofline_ms=float(self._roofline_ms[row]), bound=self._bound[row]
            )
        total = float(p.median_ms[rows].sum())
        if part.copied_bytes:
            copy = 1e3 * part.copied_bytes / self._copy_bandwidth
            total += copy
            by_operator[CACHE_COPY] = by_provenance[HOST_PROFILE] = copy
            below[CACHE_COPY] = copy - copy / ROOFLINE_FACTOR
            above[CACHE_COPY] = copy * ROOFLINE_FACTOR - copy
            shares[CACHE_COPY].add(
                latency_ms=copy,
                roofline_ms=1e3 * part.copied_bytes / self._reachable,
                bound="memory",
                kernels=0,
            )
        return Latency(
            median_ms=total,
            low_ms=total - float(np.linalg.norm(list(below.values()))),
            high_ms=total + float(np.linalg.norm(list(above.values()))),
            by_operator=dict(by_operator),
            by_provenance=dict(by_provenance),
            shares=dict(shares),
        )


def latency_of(model: CostModel, groups: Sequence[Sequence[Operator]]) -> list[Latency]:
    """Latency of several groups of operators, priced together."""
    prices = _Prices(model, [op for group in groups for op in group])
    return [prices.total(_Part(tuple(group))) for group in groups]


def model_cost(
    architecture: Architecture, workload: Workload, *, model: CostModel, host: Host = ENGINE
) -> ModelCost:
    """Latency, throughput and memory of an architecture.

    Raises InputError where the cost model was fitted for another dtype.
    """
    check_dtype(model, workload)
    hidden = architecture.base.hidden_size
    # Layers repeat: each distinct one is lowered and priced once.
    mixers = {
        layer: _Part(host.mixer(layer, hidden, workload), host.copied_bytes(layer, workload))
        for layer in dict.fromkeys(architecture.layers)
    }
    ffns = {layer: _Part(host.ffn(layer, hidden, workload)) for layer in mixers}
    embedding = _Part(host.embedding(architecture, workload))
    head = _Part(host.head(architecture, workload))
    layers = [mixers[layer] + ffns[layer] for layer in architecture.layers]
    everything = _Part(
        tuple(op for part in (embedding, *layers, head) for op in part.operators),
        sum(part.copied_bytes for part in layers),
    )
    prices = _Prices(model, everything.operators, host=host)
    priced = {
        layer: (
            prices.total(mixers[layer] + ffns[layer]),
            prices.total(mixers[layer]).median_ms,
            prices.total(ffns[layer]).median_ms,
        )
        for layer in mixers
    }
    host_ms = host.launch_ms * len(everything.operators)
    return ModelCost(
        architecture=architecture,
        workload=workload,
        host=host,
        host_ms=host_ms,
        latency=_with_host(prices.total(everything), host_ms),
        layers=tuple(
            LayerCost(index=i, layer=layer, latency=whole, mixer_ms=mixer_ms, ffn_ms=ffn_ms)
            for i, layer in enumerate(architecture.layers)
            for whole, mixer_ms, ffn_ms in (priced[layer],)
        ),
        embedding_ms=prices.total(embedding).median_ms,
        head_ms=prices.total(head).median_ms,
        memory=memory_of(architecture, workload, device_bytes=model.device.memory_bytes, host=host),
        notes=prices.notes,
    )


def _with_host(device: Latency, host_ms: float) -> Latency:
    """Host and device work side by side: the longer of the two, the excess of the host as a time of its own."""
    wait = host_ms - device.median_ms
    if wait <= 0:
        return replace(device, high_ms=max(device.high_ms, host_ms))
    waiting = Share()
    waiting.add(latency_ms=wait, roofline_ms=0.0, bound="host", kernels=0)
    return Latency(
        median_ms=host_ms,
        low_ms=max(device.low_ms, host_ms / ROOFLINE_FACTOR),
        high_ms=max(device.high_ms, host_ms * ROOFLINE_FACTOR),
        by_operator={**device.by_operator, HOST_WAIT: wait},
        by_provenance={
            **device.by_provenance,
            HOST_PROFILE: device.by_provenance.get(HOST_PROFILE, 0.0) + wait,
        },
        shares={**device.shares, HOST_WAIT: waiting},
    )


def check_dtype(model: CostModel, workload: Workload) -> None:
    """Raises InputError where a workload's dtype is not the one that the model was fitted for."""
    if workload.dtype != model.dtype:
        raise InputError(
            f"the cost model {model.device.name} was fitted for {model.dtype} and the workload asks for "
            f"{workload.dtype}: add dtype={model.dtype} to the workload or use another cost model"
        )
