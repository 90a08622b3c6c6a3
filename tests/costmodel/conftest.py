"""A small synthetic device whose latencies follow a known law, so that fits can be judged against the truth."""

from __future__ import annotations

import numpy as np
import pytest

from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.tables import Table
from hwsearch.operators import columns


def gemm_table(rows: int, *, seed: int) -> Table:
    """Products whose latency is a launch, a roofline with fixed efficiencies, and a ripple in m."""
    rng = np.random.default_rng(seed)
    dims = np.unique(np.exp2(rng.integers(10, 26, (4 * rows, 3)) / 2).astype(np.int64), axis=0)
    dims = rng.permutation(dims)[:rows]
    c = columns("gemm", dims)
    m, n, k = c["m"], c["n"], c["k"]
    work = np.maximum(2 * m * n * k / 700e9, 2 * (m * k + n * k + m * n) / 2.9e9)
    ripple = 1 + 0.1 * np.sin(np.log2(m))
    return Table("gemm", dims, 0.003 + work * ripple)


def conv_table() -> Table:
    """Decode convolutions on a full grid: launch plus traffic."""
    dims = np.array([(b, c, 4) for b in 2 ** np.arange(9) for c in 512 * np.arange(1, 6)], dtype=np.int64)
    latency = 0.002 + 16.0 * dims[:, 0] * dims[:, 1] / 2.5e9
    return Table("short_conv_decode", dims, latency.astype(np.float64))


@pytest.fixture(scope="session")
def tables() -> dict[str, Table]:
    return {"gemm": gemm_table(300, seed=0), "short_conv_decode": conv_table()}


@pytest.fixture(scope="session")
def fitted(tables: dict[str, Table]) -> CostModel:
    return CostModel.fit(
        tables,
        device=device_named("h100-sxm"),
        runtime="test 1.0",
        dtype="bfloat16",
        source="made up",
        seed=0,
    )
