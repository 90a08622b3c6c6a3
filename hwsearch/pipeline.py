"""Joins the parts: measurements into cost models, spaces and cost models and importance into search problems.

This is the only library module that knows more than one of profilers, costmodel, surrogate and search.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.costmodel.builtin_models import builtin_models, load_builtin
from hwsearch.costmodel.compose import ModelCost, check_dtype, latency_of, model_cost
from hwsearch.costmodel.device_file import is_device_file, read_device
from hwsearch.costmodel.devices import DEVICES, completed, device_reported_as
from hwsearch.costmodel.evaluate import evaluate
from hwsearch.costmodel.importers import import_tables
from hwsearch.costmodel.memory import layer_activation_bytes, logit_bytes
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.quality import refuse_too_many, suspicious
from hwsearch.costmodel.tables import Table, tables_from_measurements
from hwsearch.costmodel.transfer import Gate, transfer_model
from hwsearch.errors import DataError, InputError, unknown_name
from hwsearch.operators import Operator, dtype_bytes
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec, Measurement
from hwsearch.search.problem import Additive, Budget, Objective, Problem
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.budget import BudgetSpec
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.space import CountLimit, SearchSpace
from hwsearch.searchspace.workload import Workload
from hwsearch.surrogate.importance import LayerSweep, QualityLoss, linear_shares

__all__ = [
    "Rows",
    "SearchTask",
    "Verdict",
    "carry_model",
    "cost_model_named",
    "fit_rows",
    "load_rows",
    "operators_of",
    "search_task",
    "transfer_rows",
]

_RESHAPED, _NARROW = "reshaped_attention", "narrow_ffn"  # what --assume calls what is no kind of mixer
_SQLITE_MAGIC = b"SQLite format 3\0"


def cost_model_named(name: str) -> CostModel:
    """A cost model that ships with the package, the one saved at a path, or the roofline of a device file.

    Raises InputError for an unknown name and DataError for a folder that holds no whole model.
    """
    if name in builtin_models():
        return load_builtin(name)
    if is_device_file(Path(name)):
        device = read_device(Path(name))
        return CostModel(
            device=device,
            runtime="roofline only, nothing measured",
            dtype=device.dtype,
            source=f"no measurement: the ceilings of {device.source}",
            seed=0,
            families={},
        )
    if Path(name).exists():
        return CostModel.load(Path(name))
    if name in DEVICES:
        raise InputError(
            f"no fitted cost model ships for {name}; these do: {', '.join(builtin_models())}. "
            "Measure the device (hwsearch profile), fit (hwsearch fit) and pass the folder that it writes"
        )
    raise unknown_name("cost model (and no such path)", name, builtin_models())


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Measurements read from a file or folder, of one device, runtime and dtype.

    left_out: reason -> rows that are not used. merged: how rows repeat an operator -> rows that merging took away.
    """

    tables: Mapping[str, Table]
    device: DeviceSpec
    runtime: str
    dtype: str
    source: str
    left_out: Mapping[str, int]
    merged: Mapping[str, int]


def load_rows(path: Path, *, unit: str = "ms", ceilings: DeviceSpec | None = None) -> Rows:
    """Measurements of a store that `hwsearch profile` or `hwsearch import` wrote, or another tool's tables.

    A folder is read whole. `unit` is that of another tool's latencies. `ceilings` stand for those of the rows' device,
    where it is not a built-in one or they are better known. Raises DataError for anything else, where the rows come
    from two devices, and for bad data: rows that cannot be right are left out and counted, more than a third of them,
    or a wrong unit, are refused.
    """
    if not path.exists():
        raise DataError(
            f"{path} does not exist: give a measurement store, or tables of AIConfigurator or Vidur, a file or a folder"
        )
    stores = sorted(path.glob("*.db")) if path.is_dir() else [path] if _is_sqlite(path) else []
    if stores and unit != "ms":
        raise InputError(f"{path} is a store, whose latencies are in ms: leave --unit out")
    return _load_stores(stores, path, ceilings) if stores else _load_foreign(path, unit, ceilings)


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC or path.suffix == ".db"
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _load_stores(paths: Iterable[Path], source: Path, ceilings: DeviceSpec | None) -> Rows:
    measurements: list[Measurement] = []
    devices: dict[str, DeviceSpec] = {}
    for path in paths:
        with Store.open(path) as store:
            measurements += store.measurements()
            devices |= {spec.device_name: spec for spec in store.devices()}
    left_out: dict[str, int] = {}
    bad: dict[str, int] = {}
    usable = []
    for measurement in measurements:
        if measurement.status != "ok":
            reason = f"{measurement.status}: {measurement.reason}"
            left_out[reason] = left_out.get(reason, 0) + 1
        elif not measurement.median_ms > 0:
            bad["latency is not positive"] = bad.get("latency is not positive", 0) + 1
        else:
            usable.append(measurement)
    tables = tables_from_measurements(usable)
    if not usable:
        raise DataError(
            f"{source} holds no successful measurement: profile first (hwsearch profile -o {source})"
        )
    first = usable[0]
    name = first.environment.device_name
    device = _device(name, source, ceilings or devices.get(name))
    merged = _merged(len(usable), tables)
    for kind, table in tables.items():
        wrong = suspicious(kind, table.dims, table.latency_ms, device=device, size=dtype_bytes(first.dtype))
        for reason, where in wrong.items():
            if where.any():
                bad[f"{kind}: {reason}"] = int(where.sum())
        tables[kind] = table.take(~np.any([np.zeros(len(table), bool), *wrong.values()], axis=0))
    refuse_too_many(bad, len(measurements) - sum(left_out.values()), place=str(source))
    return Rows(
        tables={kind: table for kind, table in tables.items() if len(table)},
        device=completed(device),
        runtime=first.environment.runtime,
        dtype=first.dtype,
        source=f"measured by hwsearch on {name}, {first.environment.runtime}",
        left_out=left_out | bad,
        merged=merged,
    )


def _merged(rows: int, tables: Mapping[str, Table]) -> dict[str, int]:
    """What a store repeats: an operator measured by several kernels, or under several keys."""
    repeats = rows - sum(len(table) for table in tables.values())
    return {"repeats, merged by their median": repeats} if repeats else {}


def _device(name: str, source: Path, ceilings: DeviceSpec | None) -> DeviceSpec:
    """Ceilings of the device that reports itself as `name`. DataError where nobody states them."""
    if ceilings is not None:
        return replace(ceilings, device_name=name)
    device = device_reported_as(name)
    if device is None:
        raise DataError(
            f"{source}: the ceilings of {name!r} are not known; state them in a device file (fit --device-file)"
        )
    return device


def _load_foreign(path: Path, unit: str, ceilings: DeviceSpec | None) -> Rows:
    imported = import_tables(path, unit=unit, device=ceilings)
    return Rows(
        tables=imported.tables,
        device=_device(imported.device_name, path, ceilings),
        runtime=imported.runtime,
        dtype=imported.dtype,
        source=imported.source,
        left_out=imported.left_out,
        merged=imported.merged,
    )


def fit_rows(rows: Rows, *, seed: int) -> CostModel:
    """A cost model of what was measured. Raises DataError where a kind has too few rows."""
    return CostModel.fit(
        rows.tables, device=rows.device, runtime=rows.runtime, dtype=rows.dtype, source=rows.source, seed=seed
    )


def transfer_rows(rows: Rows, *, source: CostModel, seed: int) -> tuple[CostModel, dict[str, Gate]]:
    """A cost model of few rows that starts from another device's or runtime's, with its cross-validated errors.

    Also what cross-validation said of each kind that both have. Raises DataError where a kind has too few rows.
    """
    if rows.dtype != source.dtype:
        raise InputError(f"the rows were measured in {rows.dtype}, the source model is for {source.dtype}")
    model, gates = transfer_model(
        source, rows.tables, device=rows.device, runtime=rows.runtime, measured=rows.source, seed=seed
    )
    strange = {kind: table for kind, table in rows.tables.items() if kind not in source.families}
    if strange:
        judged = evaluate(model, strange, as_is=False, seed=seed).operators
        model = replace(model, held_out={**model.held_out, **judged})
    return model, gates


def carry_model(source: CostModel, *, device: DeviceSpec) -> CostModel:
    """The source's cost model under the ceilings of a device that nothing was measured on."""
    return transfer_model(
        source, {}, device=device, runtime=f"{source.runtime} assumed", measured="nothing measured", seed=0
    )[0]


def operators_of(space: SearchSpace, workloads: Iterable[Workload]) -> list[Operator]:
    """The distinct operators that the architectures of a space ask for at some workloads."""
    found: dict[Operator, None] = {}
    base = Architecture.of_base(space.base)
    for workload in workloads:
        for choice in space.choices:
            found |= dict.fromkeys(choice.lower(space.base.hidden_size, workload))
        found |= dict.fromkeys((*base.lower_embedding(workload), *base.lower_head(workload)))
    return list(found)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is predicted of one architecture of a search."""

    architecture: Architecture
    cost: ModelCost
    quality: QualityLoss


@dataclass(frozen=True, kw_only=True)
class SearchTask:
    """A search problem, and what is needed to explain its answers.

    shares: of the linear drop that each choice of the space costs. notes: what was left out of the space, and why.
    """

    problem: Problem
    space: SearchSpace
    model: CostModel
    workload: Workload
    sweep: LayerSweep
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
            "tasks": list(self.sweep.tasks),
            "shares": list(self.shares),
            "layer_latency_ms": latency.table[0].tolist(),
        }

    def verdict(self, genome: Sequence[int], *, name: str) -> Verdict:
        """Full predictions for one genome (layers,) of the space."""
        architecture = self.space.decode(genome, name=name)
        return Verdict(
            architecture=architecture,
            cost=model_cost(architecture, self.workload, model=self.model),
            quality=self.sweep.loss([self.shares[choice] for choice in genome]),
        )


def search_task(
    base: Base,
    *,
    preset: str,
    model: CostModel,
    workload: Workload,
    sweep: LayerSweep,
    assumptions: Mapping[str, float],
    budgets: Sequence[BudgetSpec],
    placement: Architecture | None = None,
) -> SearchTask:
    """Quality loss against latency over a space (a preset or a file), within budgets.

    Choices for which there is neither data nor an assumption are left out of the space, with a note. Budgets on
    counts become limits of the space, the others upper bounds on additive costs. With a placement the softmax
    attention stays where that architecture has it.
    """
    check_dtype(model, workload)
    full = space_named(preset, base)
    if placement is not None:
        full = full.placed_as(placement)
    by_choice, unknown = _shares(full, assumptions)
    notes = tuple(
        f"{name} is left out of the space: the sweep has no data on it; to include it, state what it costs as a "
        f"share of the linear drop, for example --assume {name}=0.5"
        for name in unknown
    )
    space = full.restrict([i for i, share in enumerate(by_choice) if share is not None])
    shares = tuple(share for share in by_choice if share is not None)
    for kind, limit in _count_limits(budgets).items():
        if limit.at_least and kind not in space.kinds:
            raise InputError(
                f"{kind}>={limit.at_least}: {kind} is not in the space"
                + (f"; include it by --assume {kind}=SHARE" if kind in unknown else "")
            )
        space = space.limit(kind, limit)
    latency = _latency_cost(space, model, workload)
    memory = _memory_cost(space, workload)
    quality = Additive(sweep.table(shares))
    problem = Problem(
        space=space,
        objectives=(
            Objective("quality_loss", unit="points", cost=quality),
            Objective("latency", unit="ms", cost=latency),
        ),
        budgets=tuple(
            _budget(spec, latency=latency, memory=memory, tokens=workload.tokens)
            for spec in budgets
            if spec.metric in ("latency", "memory", "throughput")
        ),
    )
    return SearchTask(
        problem=problem, space=space, model=model, workload=workload, sweep=sweep, shares=shares, notes=notes
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


def _count_limits(budgets: Sequence[BudgetSpec]) -> dict[str, CountLimit]:
    limits: dict[str, CountLimit] = {}
    for spec in budgets:
        if spec.metric in ("latency", "memory", "throughput"):
            continue
        old = limits.get(spec.metric, CountLimit())
        count = int(spec.value)
        if spec.sense == "<=":
            most = count if old.at_most is None else min(count, old.at_most)
            limits[spec.metric] = CountLimit(at_least=old.at_least, at_most=most)
        else:
            limits[spec.metric] = CountLimit(at_least=max(count, old.at_least), at_most=old.at_most)
    return limits


def _latency_cost(space: SearchSpace, model: CostModel, workload: Workload) -> Additive:
    """Milliseconds: each choice's layer, plus embedding and LM head."""
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


def _memory_cost(space: SearchSpace, workload: Workload) -> Additive:
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


def _budget(spec: BudgetSpec, *, latency: Additive, memory: Additive, tokens: int) -> Budget:
    if spec.metric == "memory":
        return Budget(
            "memory",
            text=spec.text,
            cost=memory,
            at_most=spec.value,
            describe=lambda v: f"{_up(v / 2**30, 2)} GiB",
        )
    if spec.metric == "throughput":
        # At a fixed batch, at least X tokens/s is at most tokens/X seconds.
        return Budget(
            "throughput",
            text=spec.text,
            cost=latency,
            at_most=1e3 * tokens / spec.value,
            describe=lambda v: f"{math.floor(1e3 * tokens / v):,} tokens/s",
        )
    return Budget(
        "latency", text=spec.text, cost=latency, at_most=spec.value, describe=lambda v: f"{_up(v, 3)} ms"
    )
