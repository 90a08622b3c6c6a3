"""Whole models from measured blocks: what to measure for a search space, and the sum that predicts a model.

A model's latency is that of its frame and its layers, each measured whole in stacks that go through as much memory as
models of the space do (profilers/stack.py), so that nothing is left to add for norms, residuals and the framework's own
time; between these sizes latencies are interpolated along the logarithm of what the model goes through. What unequal
layers cost each other, and how far a model may lie from their sum, is measured too, in mixes of the space's layers
(pipeline/composition.py). It holds for the workloads, dtype, backend and execution that were measured, and
for no others: what is missing is named, not guessed. A sum over operators (costmodel.compose) covers everything else.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.costmodel.cost import ModelCost
from hwsearch.errors import DataError, InputError, OutputError
from hwsearch.pipeline.composition import Composition, compose
from hwsearch.profilers.store import Store
from hwsearch.records import DeviceSpec, Execution
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.block import (
    Block,
    BlockMeasurement,
    blocks_of,
    blocks_of_space,
    mixes_of_space,
    pass_bytes_of,
    pass_bytes_of_space,
)
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.spec import read_json
from hwsearch.searchspace.workload import Workload

__all__ = [
    "BlockTable",
    "BlockTime",
    "asked_blocks",
    "check_standing_alone",
    "load_blocks",
    "uncovered",
    "with_blocks",
]

_FILE = "blocks.json"
_CACHES = 8  # what lies behind so many times the last cache is as far away as it gets
_FITS = 0.75  # of the device's memory for a mix's weights and caches: activations want some too
_FORMAT, _VERSION = "hwsearch measured blocks", 1


@dataclass(frozen=True, kw_only=True)
class BlockTime:
    """Milliseconds: the median; and the fastest and slowest visits to a block, the 90% interval of a model."""

    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """Measured blocks of one device under one runtime, backend and execution.

    reference_ms: the drift reference while they were measured; None where nobody timed it.
    """

    device_name: str
    runtime: str
    backend: str
    execution: Execution
    reference_ms: float | None
    times: Mapping[Block, BlockTime]

    @classmethod
    def of(cls, rows: Iterable[BlockMeasurement], *, source: str) -> BlockTable | None:
        """The table of all rows that could run; None where there is none.

        Raises DataError where they come from several devices, runtimes, backends or executions.
        """
        usable = [row for row in rows if row.status == "ok"]
        if not usable:
            return None
        setups = Counter(
            (row.environment.device_name, row.environment.runtime, row.kernel_requested, row.execution)
            for row in usable
        )
        if len(setups) > 1:
            listed = "; ".join(", ".join(setup) for setup in sorted(setups))
            raise DataError(f"{source} holds blocks of {listed}: keep them in stores of their own")
        ((device_name, runtime, backend, execution),) = setups
        references = [
            row.conditions.reference_ms for row in usable if row.conditions and row.conditions.reference_ms
        ]
        return cls(
            device_name=device_name,
            runtime=runtime,
            backend=backend,
            execution=execution,
            reference_ms=statistics.median(references) if references else None,
            times={row.block: _time(row) for row in usable},
        )

    @property
    def workloads(self) -> list[Workload]:
        """The workloads that blocks were measured at."""
        return list(dict.fromkeys(block.workload for block in self.times))

    def missing(self, architecture: Architecture, workload: Workload) -> list[Block]:
        """The blocks of an architecture at a workload that are not measured."""
        return [block for block in blocks_of(architecture, workload) if block not in self._sizes]

    def missing_of(self, space: SearchSpace, workload: Workload) -> list[Block]:
        """The blocks that a space's models are made of at a workload and that are not measured."""
        return [block for block in blocks_of_space(space, [workload]) if block not in self._sizes]

    def at(self, block: Block, pass_bytes: int) -> BlockTime:
        """A measured block (its own pass_bytes not said) in a model that goes through so many bytes.

        Beyond the sizes that it was measured at, as at the nearest.
        """
        sizes = self._sizes[block]
        asked, known = math.log(pass_bytes), np.log([size for size, _ in sizes])

        def between(values: list[float]) -> float:
            return float(np.interp(asked, known, values))

        return BlockTime(
            median_ms=between([time.median_ms for _, time in sizes]),
            low_ms=between([time.low_ms for _, time in sizes]),
            high_ms=between([time.high_ms for _, time in sizes]),
        )

    def predict(self, architecture: Architecture, workload: Workload) -> BlockTime:
        """The latency of a whole model. InputError where a block of it is not measured."""
        missing = self.missing(architecture, workload)
        if missing:
            raise InputError(
                f"{len(missing)} blocks of {architecture.name} are not measured, the first is {missing[0]}: measure "
                "them with hwsearch profile --space ... --workload ..."
            )
        through = pass_bytes_of(architecture, workload)
        adding_up = self.composition(architecture.base.hidden_size, workload)
        factor = 1.0 if len(set(architecture.layers)) == 1 else adding_up.factor
        median_ms = math.fsum(
            times * (factor if block.layers else 1.0) * self.at(block, through).median_ms
            for block, times in blocks_of(architecture, workload).items()
        )
        spread = math.exp(adding_up.half_width)
        return BlockTime(median_ms=median_ms, low_ms=median_ms / spread, high_ms=median_ms * spread)

    @property
    def compositions(self) -> list[tuple[Workload, Composition]]:
        """How blocks add up, for every workload and hidden size that was measured."""
        setups = dict.fromkeys((block.hidden_size, block.workload) for block in self.times)
        return [(workload, self.composition(hidden, workload)) for hidden, workload in setups]

    def composition(self, hidden_size: int, workload: Workload) -> Composition:
        """How the blocks of a hidden size add up at a workload."""
        mixes, visited = [], []
        for block, sizes in self._sizes.items():
            if block.workload != workload or block.hidden_size != hidden_size:
                continue
            for size, time in sizes:
                visits = (time.low_ms, time.median_ms, time.high_ms)
                if block.mix is None:
                    visited.append(visits)
                    continue
                layers = [self._alone(layer, block) for layer in block.mix]
                if None not in layers:
                    alone_ms = math.fsum(self.at(layer, size).median_ms for layer in layers if layer)
                    low, middle, high = (ms / alone_ms for ms in visits)
                    mixes.append((low, middle, high))
        return compose(mixes, visited)

    def mixes(self, hidden_size: int, workload: Workload, *, near_bytes: int) -> list[Block]:
        """The mixes of a hidden size at a workload, those first that go through nearest to so many bytes."""
        found = [
            block
            for block in self.times
            if block.mix and (block.hidden_size, block.workload) == (hidden_size, workload)
        ]
        return sorted(found, key=lambda mix: abs(math.log((mix.pass_bytes or 1) / near_bytes)))

    def _alone(self, layer: LayerSpec, mix: Block) -> Block | None:
        """A mix's layer as a block of its own; None where it is not measured."""
        for stretched in (mix.stretched_rope, False):
            block = mix.replace(mix=None, layer=layer, stretched_rope=stretched)
            if block in self._sizes:
                return block
        return None

    @cached_property
    def _sizes(self) -> dict[Block, list[tuple[int, BlockTime]]]:
        """Block without its pass_bytes -> those that it was measured at, rising, with its times.

        Rows of earlier versions do not say theirs; they stand where there are no others.
        """
        found: dict[Block, list[tuple[int, BlockTime]]] = defaultdict(list)
        for block, time in sorted(self.times.items(), key=lambda item: item[0].pass_bytes or 0):
            found[block.replace(pass_bytes=None)].append((block.pass_bytes or 0, time))
        return {
            block: [(size, time) for size, time in sizes if size] or [(1, time) for _, time in sizes]
            for block, sizes in found.items()
        }

    def save(self, folder: Path) -> None:
        """Write the table into the folder of a cost model. OutputError where that is impossible."""
        content = {
            "format": _FORMAT,
            "format_version": _VERSION,
            "device_name": self.device_name,
            "runtime": self.runtime,
            "backend": self.backend,
            "execution": self.execution,
            "reference_ms": self.reference_ms,
            "blocks": [
                {
                    "block": block.model_dump(mode="json", exclude_none=True),
                    "ms": [t.median_ms, t.low_ms, t.high_ms],
                }
                for block, t in self.times.items()
            ],
        }
        try:
            (folder / _FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {folder / _FILE} ({error.strerror or error})") from error

    @classmethod
    def load(cls, folder: Path) -> BlockTable | None:
        """The table in the folder of a cost model; None where it has none. DataError for a damaged one."""
        path = folder / _FILE
        if not path.is_file():
            return None
        content: Any = read_json(path)
        try:
            if content["format"] != _FORMAT or content["format_version"] != _VERSION:
                raise DataError(f"{path} was written by another version of hwsearch: fit again")
            times = {
                Block.model_validate(entry["block"]): BlockTime(
                    **dict(zip(("median_ms", "low_ms", "high_ms"), entry["ms"], strict=True))
                )
                for entry in content["blocks"]
            }
            names = ("device_name", "runtime", "backend", "execution", "reference_ms")
            return cls(times=times, **{name: content[name] for name in names})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} holds no measured blocks ({error}): fit again") from error


def _time(row: BlockMeasurement) -> BlockTime:
    visits = row.conditions.visit_ms if row.conditions and row.conditions.visit_ms else (row.median_ms,)
    return BlockTime(
        median_ms=row.median_ms,
        low_ms=min(row.median_ms, *visits),
        high_ms=max(row.median_ms, *visits),
    )


def check_standing_alone(space: SearchSpace) -> None:
    """InputError for a space with a layer that cannot be measured as a block of its own."""
    if "shared_kv_attention" in space.kinds:
        raise InputError(
            "a shared_kv_attention layer reads another layer's cache and cannot be measured as a block of its own: "
            "leave it out of the space, or measure operators alone (--no-blocks), of which its time is the sum"
        )


def asked_blocks(space: SearchSpace, workloads: Iterable[Workload], *, device: DeviceSpec) -> list[Block]:
    """The blocks that a space's models are made of, at the sizes that a device tells apart, and mixes of them.

    A layer so large that one copy of it is all that most models go through is also asked for among two of its kind and
    among as many as a model has layers: alone it would be found in the last cache.
    Raises InputError for a layer that cannot stand alone.
    """
    check_standing_alone(space)
    most_bytes = _CACHES * device.l2_bytes
    asked: dict[Block, None] = {}
    for workload in workloads:
        blocks = blocks_of_space(space, [workload])
        sizes = pass_bytes_of_space(space, workload, most_bytes=most_bytes)
        asked |= dict.fromkeys(block.among(size) for block in blocks for size in sizes)
        for block in blocks:
            own = block.weight_bytes + block.state_bytes
            if block.layer is not None and sizes[-1] < 2 * own <= most_bytes:
                asked |= dict.fromkeys(block.among(count * own) for count in (2, space.num_layers))
        if len(space.choices) > 1:
            mixes = mixes_of_space(
                space, workload, most_bytes=most_bytes, fit_bytes=_FITS * device.memory_bytes
            )
            asked |= dict.fromkeys(mixes)
    return list(asked)


def with_blocks(cost: ModelCost, blocks: BlockTable | None) -> ModelCost:
    """A prediction with its latency from measured blocks, where they cover it; as it is elsewhere.

    They were measured on one device, with weights in the workload's dtype. The notes say which of the two it is.
    """
    if blocks is None or cost.tp > 1 or cost.weights is not None:
        return cost
    missing = blocks.missing(cost.architecture, cost.workload)
    if missing:
        note = f"by operators: {len(missing)} blocks are not measured, the first is {missing[0]}"
        return replace(cost, notes=(*cost.notes, note))
    found = blocks.predict(cost.architecture, cost.workload)
    note = (
        f"latency is the sum of layers measured whole ({blocks.device_name}, {blocks.execution}); all other times are "
        f"by operators, which add up to {cost.operators_ms:.4g} ms"
    )
    return replace(
        cost,
        latency=replace(cost.latency, median_ms=found.median_ms, low_ms=found.low_ms, high_ms=found.high_ms),
        notes=(note, *cost.notes),
        predicted_from="blocks",
    )


def uncovered(blocks: BlockTable | None, space: SearchSpace, workload: Workload) -> tuple[str, ...]:
    """A note where there are measured blocks, and latencies of a space come from operators all the same."""
    missing = [] if blocks is None else blocks.missing_of(space, workload)
    if not missing:
        return ()
    return (
        f"latency is the sum over operators: {len(missing)} of the space's blocks are not measured whole, the first is "
        f"{missing[0]}; hwsearch profile --space measures them, fit again after it",
    )


def load_blocks(path: Path) -> BlockTable | None:
    """Measured blocks of a store, or of the folder of a cost model; None where there are none, or no such folder."""
    if path.is_dir():
        return BlockTable.load(path)
    if path.suffix != ".db":
        return None
    with Store.open(path) as store:
        return BlockTable.of(store.blocks(), source=str(path))
