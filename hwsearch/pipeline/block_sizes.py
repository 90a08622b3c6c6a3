"""Which size of model a search prices its layers at, where measured layers take longer in larger models.

A sum over layers needs one latency for each, and a layer's depends on how much memory the whole model goes through
(pipeline/blocks.py). Near a budget the models of a space are of much the same size, since caches and weights take the
time as well as the memory; that is where a wrong latency would decide, so that is where layers are priced.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwsearch.pipeline.blocks import BlockTable
from hwsearch.searchspace.block import blocks_of_space
from hwsearch.searchspace.space import Genomes, SearchSpace
from hwsearch.searchspace.workload import Workload

__all__ = ["block_latencies", "typical_bytes"]

FloatArray = NDArray[np.float64]
_MODELS, _NEAREST = 4096, 128  # of the space, at random; those of them that come nearest to a budget
_LARGE = 95  # percentile of their sizes: at the median a sum would flatter half of what just meets the budget
_GRID = 32  # sizes at which what unequal layers cost each other is asked for


def typical_bytes(
    blocks: BlockTable, space: SearchSpace, workload: Workload, *, near_ms: float | None = None
) -> int:
    """What a model of a space goes through in one pass: the median, or a large one of those near `near_ms`.

    Every block of the space must be measured at the workload.
    """
    genomes = space.sample(_MODELS, rng=np.random.default_rng(0))
    latency_ms, through = block_latencies(blocks, space, workload, genomes)
    if near_ms is None:
        return round(float(np.median(through)))
    nearest = np.argsort(np.abs(np.log(latency_ms / near_ms)), kind="stable")[:_NEAREST]
    return round(float(np.percentile(through[nearest], _LARGE)))


def block_latencies(
    blocks: BlockTable, space: SearchSpace, workload: Workload, genomes: Genomes
) -> tuple[FloatArray, FloatArray]:
    """Milliseconds (n,) of genomes (n, layers), each at its own size, and the bytes (n,) that it goes through.

    The same as BlockTable.predict says of one. Every block of the space must be measured at the workload.
    """
    frame, *layers = blocks_of_space(space, [workload])
    counts = np.stack([(genomes == choice).sum(axis=1) for choice in range(len(space.choices))], axis=1)
    held = np.array([layer.weight_bytes + layer.state_bytes for layer in layers], np.float64)
    through = frame.weight_bytes + frame.state_bytes + counts @ held
    grid = np.geomspace(through.min(), through.max(), _GRID)

    sizes = [round(size) for size in grid.tolist()]

    def at(values: list[float]) -> FloatArray:
        return np.interp(np.log(through), np.log(grid), values)

    outside, *each = (at([blocks.at(block, size).median_ms for size in sizes]) for block in (frame, *layers))
    mixing = blocks.composition(space.base.hidden_size, workload).factor
    alike = counts.max(axis=1) == space.num_layers
    summed = (counts * np.stack(each, axis=1)).sum(axis=1)
    return outside + np.where(alike, 1.0, mixing) * summed, through
