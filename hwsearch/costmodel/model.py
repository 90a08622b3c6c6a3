"""The cost model: operators in, latency with a 90% interval and its provenance out.

One model describes one device under one runtime at one dtype. Prediction is numpy alone; a saved model is a
folder with `model.json` (identity, constants) and `arrays.npz` (ensembles), read without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.accuracy import OperatorErrors
from hwsearch.costmodel.family import Family, fit_family
from hwsearch.costmodel.roofline import ROOFLINE_FACTOR, roofline_ms
from hwsearch.costmodel.storage import ModelState, load_state, save_state
from hwsearch.costmodel.tables import Tables
from hwsearch.costmodel.transferred import TransferredFamily
from hwsearch.errors import DataError, InputError
from hwsearch.operators import Operator, columns, dtype_bytes, kind_named
from hwsearch.records import DeviceSpec

__all__ = [
    "EXTRAPOLATED",
    "LEAST_ROWS",
    "MEASURED",
    "PROVENANCES",
    "ROOFLINE",
    "TRANSFERRED",
    "UNMEASURED",
    "CostModel",
    "Prediction",
    "check_rows",
]

MEASURED, EXTRAPOLATED, ROOFLINE, TRANSFERRED, UNMEASURED = 0, 1, 2, 3, 4
PROVENANCES = ("measured family", "extrapolated", "roofline", "transferred", "transferred, unmeasured")
LEAST_ROWS = 12
_BLOCK = 65536
_KEPT = tuple(field.name for field in fields(ModelState))


def check_rows(kind: str, rows: int) -> None:
    """DataError where a kind has too few rows to fit and judge."""
    if rows < LEAST_ROWS:
        raise DataError(f"{kind}: {rows} measured operators; a fit needs at least {LEAST_ROWS}: measure more")


@dataclass(frozen=True)
class Prediction:
    """Latencies of n operators: median and 90% interval in milliseconds, provenance codes, all (n,).

    `provenance` indexes PROVENANCES. `notes` say in words what is not measured: one for each kind of operator
    that is extrapolated, rests on another device's measurements, or has no fitted family.
    """

    median_ms: NDArray[np.float64]
    low_ms: NDArray[np.float64]
    high_ms: NDArray[np.float64]
    provenance: NDArray[np.uint8]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.median_ms)


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """A fitted cost model; `source` says where its measurements come from.

    held_out: errors of the same recipe fitted on a part of the measurements and judged on the rest; empty where
    nobody has judged it.
    """

    device: DeviceSpec
    runtime: str
    dtype: str
    source: str
    seed: int
    families: Mapping[str, Family | TransferredFamily] = field(repr=False)
    held_out: Mapping[str, OperatorErrors] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls,
        tables: Tables,
        *,
        device: DeviceSpec,
        runtime: str,
        dtype: str,
        source: str,
        seed: int,
    ) -> CostModel:
        """Fit one family for each table. DataError for a table too small to fit and judge."""
        from threadpoolctl import threadpool_limits

        size = dtype_bytes(dtype)
        families = {}
        for kind in sorted(tables):
            check_rows(kind, len(tables[kind]))
            # The matrices are small: threads cost more than they give, and one gives the same sums everywhere.
            with threadpool_limits(limits=1):
                families[kind] = fit_family(tables[kind], device=device, size=size, seed=seed)
        return cls(device=device, runtime=runtime, dtype=dtype, source=source, seed=seed, families=families)

    def predict(self, operators: Sequence[Operator]) -> Prediction:
        """Predict operators of any kinds, in their order. InputError for a kind that does not exist."""
        rows_of: dict[str, list[int]] = {}
        for row, operator in enumerate(operators):
            rows_of.setdefault(operator.kind, []).append(row)
        n = len(operators)
        median, low, high = np.empty(n), np.empty(n), np.empty(n)
        provenance = np.empty(n, np.uint8)
        notes: list[str] = []
        for kind, rows in rows_of.items():
            part = self.predict_table(kind, np.array([operators[row].dims for row in rows], dtype=np.int64))
            median[rows], low[rows], high[rows] = part.median_ms, part.low_ms, part.high_ms
            provenance[rows] = part.provenance
            notes += part.notes
        return Prediction(median, low, high, provenance, tuple(notes))

    def predict_table(self, kind: str, dims: NDArray[np.int64]) -> Prediction:
        """Predict n operators of one kind from dims (n, d) in the kind's order."""
        width = len(kind_named(kind).dims)
        if dims.ndim != 2 or dims.shape[1] != width:
            raise InputError(f"{kind} takes dimensions of shape (n, {width}), got {dims.shape}")
        blocks = [
            self._predict_block(kind, dims[start : start + _BLOCK])
            for start in range(0, max(len(dims), 1), _BLOCK)
        ]
        median = np.concatenate([block[0] for block in blocks])
        factor = np.exp(np.concatenate([block[1] for block in blocks]))
        excess = np.concatenate([block[2] for block in blocks])
        if kind not in self.families:
            note = f"{kind}: not measured; roofline of {self.device.name}, interval a factor of {ROOFLINE_FACTOR:g}"
            code = np.full(len(dims), ROOFLINE, np.uint8)
            return Prediction(median, median / factor, median * factor, code, (note,))
        family = self.families[kind]
        outside = (excess > 0).any(axis=1)
        inside, beyond = MEASURED, EXTRAPOLATED
        notes = []
        if isinstance(family, TransferredFamily):
            inside = TRANSFERRED if family.rows else UNMEASURED
            beyond = EXTRAPOLATED if family.rows else UNMEASURED
            notes.append(f"{kind}: {family.origin} {self.device.name} ({self.runtime})")
        if outside.any():
            said = family.region.describe(
                columns(kind, dims[outside]), excess[outside], size=dtype_bytes(self.dtype)
            )
            notes.append(f"{kind}: {int(outside.sum())} of {len(dims)} extrapolated: {said}")
        code = np.where(outside, beyond, inside).astype(np.uint8)
        return Prediction(median, median / factor, median * factor, code, tuple(notes))

    def _predict_block(
        self, kind: str, dims: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Median, log half-width and region excess of a block of rows."""
        size = dtype_bytes(self.dtype)
        if kind in self.families:
            part = self.families[kind].predict(dims, device=self.device, size=size)
            return part.median_ms, part.half_width, part.excess
        median = roofline_ms(kind, columns(kind, dims), device=self.device, size=size)
        return median, np.full(len(median), np.log(ROOFLINE_FACTOR)), np.zeros((len(median), 1))

    def save(self, path: Path) -> None:
        """Write the model as the folder `path`, replacing an earlier model there in one step.

        Raises OutputError where the place cannot be written or holds something else.
        """
        save_state(path, ModelState(**{name: getattr(self, name) for name in _KEPT}))

    @classmethod
    def load(cls, path: Path) -> CostModel:
        """Read a saved model. DataError for a missing, truncated, foreign or newer file, with the fix."""
        state = load_state(path)
        return cls(**{name: getattr(state, name) for name in _KEPT})
