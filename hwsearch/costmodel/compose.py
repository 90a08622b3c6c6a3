"""From operators to whole models: latency, throughput and memory of an architecture at a workload.

Device time is the sum over operators, each launched after the other: no overlap between kernels. The host profile
(host.py) decides which operators run and adds what the host itself costs: copies of the cache, and the time to
launch every kernel, which hides behind the device's where that is longer. The 90% interval takes the errors of one
operator family as fully correlated (a family that is slow on one shape tends to be slow on the next) and those of
different families as independent. Devices of a tensor-parallel group (parallel.py) do the same at the same time, so
that the latency is that of one shard and of what they exchange. Quantised weights (weights.py) scale the predictions
of the matrix products. Both are analytic, and their time is counted as such.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwsearch.costmodel.attribution import Share, ceilings
from hwsearch.costmodel.host import ENGINE, Host
from hwsearch.costmodel.memory import Memory, memory_of
from hwsearch.costmodel.model import PROVENANCES, CostModel
from hwsearch.costmodel.parallel import all_gather_ms, all_reduce_ms, link_bandwidth, sharded
from hwsearch.costmodel.roofline import BANDWIDTH_SHARE, ROOFLINE_FACTOR
from hwsearch.costmodel.weights import check_weights, quantised_share
from hwsearch.errors import InputError
from hwsearch.operators import Operator, columns, dtype_bytes
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.mixers import NoMixer
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
    "check_dtype",
    "latency_of",
    "model_cost",
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


@dataclass(frozen=True)
class _Part:
    """A piece of a model: its operators in order, the bytes of cache copied while it runs, and what it exchanges."""

    operators: tuple[Operator, ...]
    copied_bytes: int = 0
    exchanges: tuple[tuple[str, float], ...] = ()  # name, ms

    def __add__(self, other: _Part) -> _Part:
        return _Part(
            self.operators + other.operators,
            self.copied_bytes + other.copied_bytes,
            self.exchanges + other.exchanges,
        )


class _Prices:
    """Predictions for the distinct operators of a model, each asked for once."""

    def __init__(
        self,
        model: CostModel,
        operators: Iterable[Operator],
        *,
        host: Host = ENGINE,
        weights: str | None = None,
        plain: frozenset[Operator] = frozenset(),
    ) -> None:
        """weights: the format that matrix products have their weights in, all but those that are `plain`."""
        distinct = list(dict.fromkeys(operators))
        size = dtype_bytes(model.dtype)
        self._row = {op: i for i, op in enumerate(distinct)}
        prediction = model.predict(distinct)
        self.notes = prediction.notes
        self._median, self._low, self._high = prediction.median_ms, prediction.low_ms, prediction.high_ms
        self._source = [PROVENANCES[code] for code in prediction.provenance]
        self._roofline_ms, self._bound = ceilings(distinct, device=model.device, size=size)
        self._copy_bandwidth = (host.copy_share or 1.0) * model.device.bandwidth
        self._reachable = BANDWIDTH_SHARE * model.device.bandwidth
        if weights is not None:
            rows = [self._row[op] for op in distinct if op.kind == "gemm" and op not in plain]
            c = columns("gemm", [distinct[row].dims for row in rows])
            share = quantised_share(c, weights=weights, device=model.device, size=size)
            for figures in (self._median, self._low, self._roofline_ms):
                figures[rows] *= share
            for row, less in zip(rows, share, strict=True):
                if less < 1:
                    self._source[row] = ANALYTIC

    def total(self, part: _Part) -> Latency:
        operators = part.operators
        rows = np.array([self._row[op] for op in operators], dtype=np.int64)
        below: dict[str, float] = defaultdict(float)
        above: dict[str, float] = defaultdict(float)
        by_operator: dict[str, float] = defaultdict(float)
        by_provenance: dict[str, float] = defaultdict(float)
        shares: dict[str, Share] = defaultdict(Share)
        for op, row in zip(operators, rows, strict=True):
            median = float(self._median[row])
            by_operator[op.kind] += median
            by_provenance[self._source[row]] += median
            below[op.kind] += median - float(self._low[row])
            above[op.kind] += float(self._high[row]) - median
            shares[op.kind].add(
                latency_ms=median, roofline_ms=float(self._roofline_ms[row]), bound=self._bound[row]
            )
        total = float(self._median[rows].sum())
        for name, ms in part.exchanges:
            total += ms
            by_operator[name] += ms
            by_provenance[ANALYTIC] += ms
            below[name] += ms - ms / ROOFLINE_FACTOR
            above[name] += ms * ROOFLINE_FACTOR - ms
            shares[name].add(latency_ms=ms, roofline_ms=ms, bound="link")
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
    architecture: Architecture,
    workload: Workload,
    *,
    model: CostModel,
    host: Host = ENGINE,
    tp: int = 1,
    weights: str | None = None,
) -> ModelCost:
    """Latency, throughput and memory of an architecture, shared by `tp` devices and with weights in a format.

    Raises InputError where the cost model was fitted for another dtype, where the architecture does not divide over
    the devices or their link is not known, and for an unknown format.
    """
    check_dtype(model, workload)
    check_weights(weights)
    shard = sharded(architecture, tp)
    hidden = shard.base.hidden_size
    reduced = _reductions(workload, hidden, tp=tp, model=model)
    # Layers repeat: each distinct one is lowered and priced once.
    mixers = {
        layer: _Part(
            host.mixer(layer, hidden, workload),
            host.copied_bytes(layer, workload),
            () if isinstance(layer.mixer, NoMixer) else reduced,
        )
        for layer in dict.fromkeys(shard.layers)
    }
    ffns = {layer: _Part(host.ffn(layer, hidden, workload), exchanges=reduced) for layer in mixers}
    embedding = _Part(host.embedding(shard, workload), exchanges=reduced)
    head = _Part(
        host.head(shard, workload),
        exchanges=_gather(architecture, workload, tp=tp, model=model),
    )
    layers = [mixers[layer] + ffns[layer] for layer in shard.layers]
    everything = sum((*layers, head), start=embedding)
    prices = _Prices(model, everything.operators, host=host, weights=weights, plain=frozenset(head.operators))
    priced = {
        layer: (
            prices.total(mixers[layer] + ffns[layer]),
            prices.total(mixers[layer]).median_ms,
            prices.total(ffns[layer]).median_ms,
        )
        for layer in mixers
    }
    host_ms = host.launch_ms * (len(everything.operators) + len(everything.exchanges))
    return ModelCost(
        architecture=architecture,
        workload=workload,
        host=host,
        tp=tp,
        weights=weights,
        host_ms=host_ms,
        latency=_with_host(prices.total(everything), host_ms),
        layers=tuple(
            LayerCost(index=i, layer=layer, latency=whole, mixer_ms=mixer_ms, ffn_ms=ffn_ms)
            for i, (layer, shard_layer) in enumerate(zip(architecture.layers, shard.layers, strict=True))
            for whole, mixer_ms, ffn_ms in (priced[shard_layer],)
        ),
        embedding_ms=prices.total(embedding).median_ms,
        head_ms=prices.total(head).median_ms,
        memory=memory_of(
            architecture,
            workload,
            device_bytes=model.device.memory_bytes,
            host=host,
            tp=tp,
            weights=weights,
        ),
        notes=(*prices.notes, *_analytic_notes(tp, weights, model), *_position_notes(architecture, workload)),
    )


def _reductions(
    workload: Workload, hidden_size: int, *, tp: int, model: CostModel
) -> tuple[tuple[str, float], ...]:
    """The all-reduce of the residual stream that follows a block, once for each pass."""
    if tp == 1:
        return ()
    return tuple(
        (
            ALL_REDUCE,
            all_reduce_ms(step.tokens * hidden_size * step.element_bytes, tp=tp, device=model.device),
        )
        for step in workload.passes
    )


def _gather(
    architecture: Architecture, workload: Workload, *, tp: int, model: CostModel
) -> tuple[tuple[str, float], ...]:
    """The logits of the last token of each sequence."""
    if tp == 1:
        return ()
    logits = workload.batch * architecture.base.vocab_size * workload.element_bytes
    return ((ALL_GATHER, all_gather_ms(logits, tp=tp, device=model.device)),)


def _analytic_notes(tp: int, weights: str | None, model: CostModel) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if tp > 1:
        notes += (
            f"tensor parallelism over {tp} {model.device.name} is analytic, not measured: ring all-reduce over a link "
            f"of {link_bandwidth(model.device) / 1e9:.0f} GB/s in one direction, no overlap",
        )
    if weights is not None:
        notes += (
            f"{weights} weights are analytic, not measured: a byte factor on the weights of the layers' projections",
        )
    return notes


def _position_notes(architecture: Architecture, workload: Workload) -> tuple[str, ...]:
    positions = architecture.base.max_position_embeddings
    if workload.context <= positions:
        return ()
    return (
        f"{workload.context} tokens are more than the {positions} positions that {architecture.base.name} is made for "
        "(max_position_embeddings): priced all the same",
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
