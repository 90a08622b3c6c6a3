"""From operators to whole models: latency, throughput and memory of an architecture at a workload.

Latency is the sum over operators, each launched after the other, as inside a CUDA graph: no overlap between
kernels and no host time. Its 90% interval takes the errors of one operator family as fully correlated (a family
that is slow on one shape tends to be slow on the next) and those of different families as independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwsearch.costmodel.memory import Memory, memory_of
from hwsearch.costmodel.model import PROVENANCES, CostModel
from hwsearch.errors import InputError
from hwsearch.operators import Operator
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.workload import Workload

__all__ = ["Latency", "LayerCost", "ModelCost", "check_dtype", "latency_of", "model_cost"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of a group of operators, their 90% interval, and where the time and the figures come from.

    by_operator: kind -> ms. by_provenance: how a figure was obtained -> ms.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    by_operator: dict[str, float]
    by_provenance: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One decoder layer of a prediction."""

    index: int
    layer: LayerSpec
    latency: Latency
    mixer_ms: float
    ffn_ms: float


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What an architecture costs at a workload on a device."""

    architecture: Architecture
    workload: Workload
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


class _Prices:
    """Predictions for the distinct operators of a model, each asked for once."""

    def __init__(self, model: CostModel, operators: Sequence[Operator]) -> None:
        distinct = list(dict.fromkeys(operators))
        self._row = {op: i for i, op in enumerate(distinct)}
        self._prediction = model.predict(distinct)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._prediction.notes

    def total(self, operators: Sequence[Operator]) -> Latency:
        p = self._prediction
        rows = np.array([self._row[op] for op in operators], dtype=np.int64)
        below: dict[str, float] = defaultdict(float)
        above: dict[str, float] = defaultdict(float)
        by_operator: dict[str, float] = defaultdict(float)
        by_provenance: dict[str, float] = defaultdict(float)
        for op, row in zip(operators, rows, strict=True):
            median = float(p.median_ms[row])
            by_operator[op.kind] += median
            by_provenance[PROVENANCES[p.provenance[row]]] += median
            below[op.kind] += median - float(p.low_ms[row])
            above[op.kind] += float(p.high_ms[row]) - median
        total = float(p.median_ms[rows].sum())
        return Latency(
            median_ms=total,
            low_ms=total - float(np.linalg.norm(list(below.values()))),
            high_ms=total + float(np.linalg.norm(list(above.values()))),
            by_operator=dict(by_operator),
            by_provenance=dict(by_provenance),
        )


def latency_of(model: CostModel, groups: Sequence[Sequence[Operator]]) -> list[Latency]:
    """Latency of several groups of operators, priced together."""
    prices = _Prices(model, [op for group in groups for op in group])
    return [prices.total(group) for group in groups]


def model_cost(architecture: Architecture, workload: Workload, *, model: CostModel) -> ModelCost:
    """Latency, throughput and memory of an architecture.

    Raises InputError where the cost model was fitted for another dtype.
    """
    check_dtype(model, workload)
    hidden = architecture.base.hidden_size
    mixers = [layer.lower_mixer(hidden, workload) for layer in architecture.layers]
    ffns = [layer.lower_ffn(hidden, workload) for layer in architecture.layers]
    embedding, head = architecture.lower_embedding(workload), architecture.lower_head(workload)
    layers = [mixer + ffn for mixer, ffn in zip(mixers, ffns, strict=True)]
    everything = [op for group in (embedding, *layers, head) for op in group]
    prices = _Prices(model, everything)
    return ModelCost(
        architecture=architecture,
        workload=workload,
        latency=prices.total(everything),
        layers=tuple(
            LayerCost(
                index=i,
                layer=architecture.layers[i],
                latency=prices.total(layers[i]),
                mixer_ms=prices.total(mixers[i]).median_ms,
                ffn_ms=prices.total(ffns[i]).median_ms,
            )
            for i in range(len(layers))
        ),
        embedding_ms=prices.total(embedding).median_ms,
        head_ms=prices.total(head).median_ms,
        memory=memory_of(architecture, workload, device_bytes=model.device.memory_bytes),
        notes=prices.notes,
    )


def check_dtype(model: CostModel, workload: Workload) -> None:
    """Raises InputError where a workload's dtype is not the one that the model was fitted for."""
    if workload.dtype != model.dtype:
        raise InputError(
            f"the cost model {model.device.name} was fitted for {model.dtype} and the workload asks for "
            f"{workload.dtype}: add dtype={model.dtype} to the workload or use another cost model"
        )
