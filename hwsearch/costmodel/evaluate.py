"""Judges a cost model on operators it was not fitted on.

Two ways: refit the model's recipe on 80% of the tables and judge on the other 20% (the default: it says how good
the recipe is), or judge the model as it is on the operators it has not been fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.accuracy import OperatorErrors, operator_errors
from hwsearch.costmodel.model import LEAST_ROWS, PROVENANCES, CostModel, Prediction
from hwsearch.costmodel.regimes import regimes
from hwsearch.costmodel.tables import Table, Tables, split_table
from hwsearch.errors import DataError
from hwsearch.operators import Operator

__all__ = ["LEAST_JUDGED", "Evaluation", "WorstRow", "evaluate"]

_HELD_OUT = 0.2
LEAST_JUDGED = math.ceil(
    LEAST_ROWS / (1 - _HELD_OUT)
)  # rows of a kind to fit on a part and judge on the rest
_WORST = 10


@dataclass(frozen=True, kw_only=True)
class WorstRow:
    """A measurement far from its prediction; milliseconds, `error` signed and in percent of the measured latency."""

    operator: Operator
    measured_ms: float
    predicted_ms: float
    low_ms: float
    high_ms: float
    error: float
    provenance: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors by kind of operator and by regime of each kind, the worst rows, and `how` they were obtained, in words.

    notes: what else a reader of the figures should know.
    """

    how: str
    operators: Mapping[str, OperatorErrors]
    regimes: Mapping[str, Mapping[str, OperatorErrors]]
    worst: tuple[WorstRow, ...]
    notes: tuple[str, ...] = ()


def evaluate(
    model: CostModel, tables: Tables, *, as_is: bool, seed: int, foreign: bool = False
) -> Evaluation:
    """Errors on unseen rows.

    as_is: judge `model` itself on the operators of `tables` it was not fitted on, or on all of them where they are
    `foreign`, measured on another device or runtime; a kind without a fitted family is judged by its roofline, and a
    note says so. Otherwise a copy of its recipe is fitted on a random 80% of `tables` and judged on the other 20%;
    `seed` draws the split.

    Raises DataError where no row is left to judge.
    """
    notes: tuple[str, ...] = ()
    if as_is:
        how = "the saved model, on " + (
            "measurements of another device or runtime" if foreign else "the operators it was not fitted on"
        )
        judged, held, skipped = model, dict(tables), dict.fromkeys(tables, 0)
        for kind, table in tables.items():
            if kind not in model.families:
                notes += (f"{kind}: the model has no fitted family; its roofline was judged",)
            elif not foreign:
                seen = model.families[kind].seen(table.dims)
                held[kind], skipped[kind] = table.take(~seen), int(seen.sum())
    else:
        how = f"refitted on a random 80% of each table, judged on the other 20% (seed {seed})"
        judged, held = _refitted(model, tables, seed=seed)
        skipped = dict.fromkeys(held, 0)
    held = {kind: table for kind, table in sorted(held.items()) if len(table)}
    if not held:
        raise DataError(
            f"nothing to judge on: the model was fitted on all {sum(skipped.values())} operators given; give tables of "
            "other operators, or evaluate by refitting"
        )
    predicted = {kind: judged.predict_table(kind, table.dims) for kind, table in held.items()}
    return Evaluation(
        how=how,
        operators={
            kind: _errors(table, predicted[kind], np.ones(len(table), bool), skipped[kind])
            for kind, table in held.items()
        },
        regimes={
            kind: {name: _errors(table, predicted[kind], mask) for name, mask in regimes(kind, table.dims)}
            for kind, table in held.items()
        },
        worst=_worst(held, predicted),
        notes=notes,
    )


def _refitted(model: CostModel, tables: Tables, *, seed: int) -> tuple[CostModel, dict[str, Table]]:
    """The recipe of a model fitted on a part of every table, and the rest of them."""
    fitted: dict[str, Table] = {}
    held: dict[str, Table] = {}
    for kind, table in tables.items():
        if len(table) < LEAST_JUDGED:
            raise DataError(
                f"{kind}: {len(table)} measured operators; to fit on a part and judge on the rest takes at least "
                f"{LEAST_JUDGED}: measure more (hwsearch profile --points)"
            )
        fitted[kind], held[kind] = split_table(table, held_out=_HELD_OUT, seed=seed)
    refitted = CostModel.fit(
        fitted,
        device=model.device,
        runtime=model.runtime,
        dtype=model.dtype,
        source=model.source,
        seed=seed,
    )
    return refitted, held


def _errors(table: Table, predicted: Prediction, mask: NDArray[np.bool_], skipped: int = 0) -> OperatorErrors:
    return operator_errors(
        table.latency_ms[mask],
        median_ms=predicted.median_ms[mask],
        low_ms=predicted.low_ms[mask],
        high_ms=predicted.high_ms[mask],
        skipped_seen=skipped,
    )


def _worst(held: Mapping[str, Table], predicted: Mapping[str, Prediction]) -> tuple[WorstRow, ...]:
    """The rows with the largest relative errors of all kinds, the worst first."""
    found = []
    for kind, table in held.items():
        p = predicted[kind]
        error = p.median_ms / table.latency_ms - 1
        found += [
            WorstRow(
                operator=Operator(kind, tuple(table.dims[row].tolist())),
                measured_ms=float(table.latency_ms[row]),
                predicted_ms=float(p.median_ms[row]),
                low_ms=float(p.low_ms[row]),
                high_ms=float(p.high_ms[row]),
                error=100 * float(error[row]),
                provenance=PROVENANCES[p.provenance[row]],
            )
            for row in np.argsort(-np.abs(error), kind="stable")[:_WORST]
        ]
    return tuple(sorted(found, key=lambda row: -abs(row.error))[:_WORST])
