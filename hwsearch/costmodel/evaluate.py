"""Judges a cost model on operators it was not fitted on.

Two ways: refit the model's recipe on 80% of the tables and judge on the other 20% (the default: it says how good
the recipe is), or judge the model as it is on the operators it has not been fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hwsearch.costmodel.accuracy import OperatorErrors, operator_errors
from hwsearch.costmodel.model import LEAST_ROWS, CostModel
from hwsearch.costmodel.tables import Table, Tables, split_table
from hwsearch.errors import DataError

__all__ = ["Evaluation", "evaluate"]

_HELD_OUT = 0.2


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Errors by kind of operator, and `how` they were obtained, in words."""

    how: str
    operators: Mapping[str, OperatorErrors]


def evaluate(
    model: CostModel, tables: Tables, *, as_is: bool, seed: int, foreign: bool = False
) -> Evaluation:
    """Errors on unseen rows; kinds without a fitted family are not judged.

    as_is: judge `model` itself on the operators of `tables` it was not fitted on, or on all of them where they are
    `foreign`, measured on another device or runtime. Otherwise a copy of its recipe
    is fitted on a random 80% of `tables` and judged on the other 20%; `seed` draws the split.

    Raises DataError where no row is left to judge.
    """
    if as_is:
        how = "the saved model, on " + (
            "measurements of another device or runtime" if foreign else "the operators it was not fitted on"
        )
        held = {}
        skipped = {}
        for kind, table in tables.items():
            if kind in model.families:
                known = model.families[kind].seen(table.dims)
                seen = np.zeros_like(known) if foreign else known
                held[kind], skipped[kind] = table.take(~seen), int(seen.sum())
        judged = model
    else:
        how = f"refitted on a random 80% of each table, judged on the other 20% (seed {seed})"
        fitted: dict[str, Table] = {}
        held = {}
        for kind, table in tables.items():
            needed = math.ceil(LEAST_ROWS / (1 - _HELD_OUT))
            if len(table) < needed:
                raise DataError(
                    f"{kind}: {len(table)} measured operators; to fit on a part and judge on the rest takes at least "
                    f"{needed}: measure more (hwsearch profile --points)"
                )
            fitted[kind], held[kind] = split_table(table, held_out=_HELD_OUT, seed=seed)
        skipped = dict.fromkeys(held, 0)
        judged = CostModel.fit(
            fitted,
            device=model.device,
            runtime=model.runtime,
            dtype=model.dtype,
            source=model.source,
            seed=seed,
        )
    errors = {
        kind: _errors(judged, table, skipped[kind]) for kind, table in sorted(held.items()) if len(table)
    }
    if not errors:
        total = sum(skipped.values())
        raise DataError(
            f"nothing to judge on: the model was fitted on all {total} operators given; give tables of other "
            "operators, or evaluate by refitting"
            if total
            else "nothing to judge on: the tables hold no kind that the model has a family for"
        )
    return Evaluation(how=how, operators=errors)


def _errors(model: CostModel, table: Table, skipped: int) -> OperatorErrors:
    predicted = model.predict_table(table.kind, table.dims)
    return operator_errors(
        table.latency_ms,
        median_ms=predicted.median_ms,
        low_ms=predicted.low_ms,
        high_ms=predicted.high_ms,
        skipped_seen=skipped,
    )
