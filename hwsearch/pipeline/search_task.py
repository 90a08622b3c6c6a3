"""A search problem out of a space, a cost model and a source of quality, and what explains its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwsearch.costmodel.compose import check_dtype, latency_of, model_cost
from hwsearch.costmodel.cost import ModelCost
from hwsearch.costmodel.memory import layer_activation_bytes, logit_bytes
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InputError
from hwsearch.pipeline.block_sizes import typical_bytes
from hwsearch.pipeline.blocks import BlockTable, uncovered, with_blocks
from hwsearch.pipeline.measured import MeasuredQuality
from hwsearch.search.problem import Additive, Budget, Objective, Problem
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.block import blocks_of_space
from hwsearch.searchspace.budget import BudgetSpec
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.space import CountLimit, SearchSpace
from hwsearch.searchspace.workload import Workload
from hwsearch.surrogate.importance import LayerSweep, QualityLoss, linear_shares

__all__ = [
    "SearchTask",
    "Verdict",
    "cost_budgets",
    "count_limits",
    "latency_cost",
    "memory_cost",
    "search_task",
]

_TIMES = ("latency", "throughput")
_COSTS = (*_TIMES, "memory")  # the metrics of budgets that are not on numbers of layers
_RESHAPED, _NARROW = "reshaped_attention", "narrow_ffn"  # what --assume calls what is no kind of mixer


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of one architecture of a search.

    points: its quality loss. quality: the prediction that this is, where it is one; None where it was measured.
    searched_ms: the latency that the search counted, which adds up layers; `cost` knows the architecture's own size.
    """

    architecture: Architecture
    cost: ModelCost
    searched_ms: float
    points: float
    quality: QualityLoss | None


@dataclass(frozen=True, kw_only=True)
class SearchTask:
    """A search problem, and what is needed to explain its answers.

    blocks: measured whole on the device, which predict latency where they cover the space. shares: of the linear drop
    that each choice of the space costs; empty where quality is measured. notes: what was left out of the space, and
    why; where latency comes from.
    """

    problem: Problem
    space: SearchSpace
    model: CostModel
    workload: Workload
    blocks: BlockTable | None
    quality: LayerSweep | MeasuredQuality
    shares: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the costs, as JSON values; a resumed run must have the same."""
        latency = self.problem.objectives[1].cost
        assert isinstance(latency, Additive)
        return {
            "base": self.space.base.model_dump(mode="json"),
            "choices": [choice.model_dump(mode="json") for choice in self.space.choices],
            "allowed": [list(options) for options in self.space.allowed],
            "rules": self.space.rules,
            "device": self.model.device.name,
            "runtime": self.model.runtime,
            "workload": str(self.workload),
            "tasks": list(self.quality.tasks) if isinstance(self.quality, LayerSweep) else [],
            "shares": list(self.shares),
            "layer_latency_ms": latency.table[0].tolist(),
        }

    def verdict(self, genome: Sequence[int], *, name: str, points: float) -> Verdict:
        """Full predictions for one genome (layers,) of the space, whose quality loss the search knows."""
        architecture = self.space.decode(genome, name=name)
        predicted = None
        if isinstance(self.quality, LayerSweep):
            predicted = self.quality.loss([self.shares[choice] for choice in genome])
        return Verdict(
            architecture=architecture,
            cost=with_blocks(model_cost(architecture, self.workload, model=self.model), self.blocks),
            searched_ms=float(self.problem.objectives[1].cost(np.array([genome]))[0]),
            points=points,
            quality=predicted,
        )


def search_task(
    base: Base,
    *,
    preset: str,
    model: CostModel,
    workload: Workload,
    quality: LayerSweep | MeasuredQuality,
    assumptions: Mapping[str, float],
    budgets: Sequence[BudgetSpec],
    blocks: BlockTable | None = None,
    placement: Architecture | None = None,
) -> SearchTask:
    """Quality loss against latency over a space (a preset or a file), within budgets.

    Choices for which a sweep has no data and nothing is assumed are left out of the space, with a note; measured
    quality knows them all. Budgets on counts become limits of the space, the others upper bounds on additive costs.
    blocks: measured whole on the model's device. With a placement the softmax attention stays where that architecture
    has it.
    """
    check_dtype(model, workload)
    full = space_named(preset, base)
    if placement is not None:
        full = full.placed_as(placement)
    by_choice: Sequence[float | None] = ()
    unknown: tuple[str, ...] = ()
    if isinstance(quality, LayerSweep):
        by_choice, unknown = _shares(full, assumptions)
    elif assumptions:
        raise InputError(f"--assume states what a sweep does not know: leave it out with {quality.source}")
    notes = tuple(
        f"{name} is left out of the space: the sweep has no data on it; to include it, state what it costs as a "
        f"share of the linear drop, for example --assume {name}=0.5"
        for name in unknown
    )
    space = full.restrict([i for i in range(len(full.choices)) if not by_choice or by_choice[i] is not None])
    shares = tuple(share for share in by_choice if share is not None)
    for kind, limit in count_limits(budgets).items():
        if limit.at_least and kind not in space.kinds:
            raise InputError(
                f"{kind}>={limit.at_least}: {kind} is not in the space"
                + (f"; include it by --assume {kind}=SHARE" if kind in unknown else "")
            )
        space = space.limit(kind, limit)
    notes += uncovered(blocks, space, workload)
    latency = latency_cost(space, model, workload, blocks=blocks, budgets=budgets)
    memory = memory_cost(space, workload)
    if isinstance(quality, LayerSweep):
        loss = Objective("quality_loss", unit="points", cost=Additive(quality.table(shares)))
    else:
        loss = Objective("quality_loss", unit="points", cost=quality.cost(space), tier="expensive")
    problem = Problem(
        space=space,
        objectives=(
            loss,
            Objective("latency", unit="ms", cost=latency),
        ),
        budgets=cost_budgets(budgets, latency=latency, memory=memory, tokens=workload.tokens),
    )
    return SearchTask(
        problem=problem,
        space=space,
        model=model,
        workload=workload,
        blocks=blocks,
        quality=quality,
        shares=shares,
        notes=notes,
    )


def _shares(
    space: SearchSpace, assumptions: Mapping[str, float]
) -> tuple[list[float | None], tuple[str, ...]]:
    """Of the linear drop, what each choice costs, None where nobody knows; and the names that would tell.

    A sweep knows about replacing attention. Other attention heads than the base's and other feed-forward widths
    need assumptions under the names below; that on the width is what a layer without any would cost.
    """
    extras = {name: assumptions[name] for name in (_RESHAPED, _NARROW) if name in assumptions}
    for name, share in extras.items():
        if not 0 <= share < math.inf:
            raise InputError(
                f"--assume {name}={share:g}: the share must be 0 or more, 1 being the linear drop"
            )
    kinds, unknown = linear_shares(space.kinds, {k: v for k, v in assumptions.items() if k not in extras})
    missing = dict.fromkeys(unknown)
    shares: list[float | None] = []
    for choice in space.choices:
        needed: dict[str, float | None] = {choice.mixer.kind: kinds.get(choice.mixer.kind)}
        heads = {name: getattr(choice.mixer, name, None) for name in type(space.base.mixer).model_fields}
        if (
            heads["num_kv_heads"] is not None
            and {**heads, "kind": "full_attention"} != space.base.mixer.model_dump()
        ):
            needed[_RESHAPED] = extras.get(_RESHAPED)
        width = choice.ffn.intermediate_size / space.base.ffn.intermediate_size
        if width != 1:
            needed[_NARROW] = extras[_NARROW] * max(1 - width, 0) if _NARROW in extras else None
        missing |= dict.fromkeys(name for name, share in needed.items() if share is None)
        known = [share for share in needed.values() if share is not None]
        shares.append(sum(known) if len(known) == len(needed) else None)
    return shares, tuple(missing)


def count_limits(budgets: Sequence[BudgetSpec]) -> dict[str, CountLimit]:
    """Of the budgets on numbers of layers, by kind."""
    limits: dict[str, CountLimit] = {}
    for spec in budgets:
        if spec.metric in _COSTS:
            continue
        old = limits.get(spec.metric, CountLimit())
        count = int(spec.value)
        if spec.sense == "<=":
            most = count if old.at_most is None else min(count, old.at_most)
            limits[spec.metric] = CountLimit(at_least=old.at_least, at_most=most)
        else:
            limits[spec.metric] = CountLimit(at_least=max(count, old.at_least), at_most=old.at_most)
    return limits


def latency_cost(
    space: SearchSpace,
    model: CostModel,
    workload: Workload,
    *,
    blocks: BlockTable | None = None,
    budgets: Sequence[BudgetSpec] = (),
) -> Additive:
    """Milliseconds: each choice's layer, plus embedding and LM head.

    From blocks measured whole where they cover every choice at the workload, as in the larger models of the space that
    come near the budgets (BlockTable.predict knows a model's own size), else from operators.
    """
    if blocks and not blocks.missing_of(space, workload):
        bounds = [_at_most_ms(spec, workload.tokens) for spec in budgets if spec.metric in _TIMES]
        typical = typical_bytes(blocks, space, workload, near_ms=min(bounds, default=None))
        asked = blocks_of_space(space, [workload])
        frame, *measured = (blocks.at(block, typical).median_ms for block in asked)
        row = blocks.composition(space.base.hidden_size, workload).factor * np.array(measured)
        return Additive(np.tile(row, (space.num_layers, 1)), constant=frame)
    hidden = space.base.hidden_size
    outside = Architecture.of_base(space.base)
    *layers, ends = latency_of(
        model,
        [
            *(choice.lower(hidden, workload) for choice in space.choices),
            (*outside.lower_embedding(workload), *outside.lower_head(workload)),
        ],
    )
    row = np.array([latency.median_ms for latency in layers])
    return Additive(np.tile(row, (space.num_layers, 1)), constant=ends.median_ms)


def memory_cost(space: SearchSpace, workload: Workload) -> Additive:
    """Bytes: weights and caches add up over layers, activations are those of the largest layer; logits are extra."""
    base, size = space.base, workload.element_bytes
    outside = Architecture.of_base(base)
    own = [choice.parameters(base.hidden_size) for choice in space.choices]
    everywhere = outside.parameters - base.num_layers * outside.layers[0].parameters(base.hidden_size)
    kept = [
        choice.mixer.cache_bytes(workload.context, size) + choice.mixer.conv_state_bytes(size)
        for choice in space.choices
    ]
    row = np.array(own, dtype=np.float64) * size + np.array(kept, dtype=np.float64) * workload.batch
    peak = [layer_activation_bytes(choice, base.hidden_size, workload) for choice in space.choices]
    shape = (space.num_layers, 1)
    return Additive(
        np.tile(row, shape),
        constant=float(everywhere * size + logit_bytes(outside, workload)),
        peak=np.tile(np.array(peak, np.float64), shape),
    )


def _up(value: float, digits: int) -> str:
    """Rounded up, so that a budget set to what is printed can be met."""
    scale = 10**digits
    return f"{math.ceil(value * scale) / scale:.{digits}f}"


def cost_budgets(
    specs: Sequence[BudgetSpec], *, latency: Additive, memory: Additive, tokens: int
) -> tuple[Budget, ...]:
    """Those of the budgets that bound a cost, not a number of layers (`count_limits`). tokens: of the workload."""
    return tuple(
        _cost_budget(spec, latency=latency, memory=memory, tokens=tokens)
        for spec in specs
        if spec.metric in _COSTS
    )


def _at_most_ms(spec: BudgetSpec, tokens: int) -> float:
    """The latency that a budget on time allows: at a fixed batch, at least X tokens/s is at most tokens/X seconds."""
    return spec.value if spec.metric == "latency" else 1e3 * tokens / spec.value


def _cost_budget(spec: BudgetSpec, *, latency: Additive, memory: Additive, tokens: int) -> Budget:
    """A budget on latency, memory or throughput as an upper bound on one of two costs."""
    if spec.metric == "memory":
        return Budget(
            "memory",
            text=spec.text,
            cost=memory,
            at_most=spec.value,
            describe=lambda v: f"{_up(v / 2**30, 2)} GiB",
        )
    if spec.metric == "throughput":
        return Budget(
            "throughput",
            text=spec.text,
            cost=latency,
            at_most=_at_most_ms(spec, tokens),
            describe=lambda v: f"{math.floor(1e3 * tokens / v):,} tokens/s",
        )
    return Budget(
        "latency", text=spec.text, cost=latency, at_most=spec.value, describe=lambda v: f"{_up(v, 3)} ms"
    )
