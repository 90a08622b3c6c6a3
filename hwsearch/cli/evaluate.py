"""hwsearch evaluate: errors of a cost model on rows it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from hwsearch.cli.options import seed_option, unit_option
from hwsearch.cli.output import (
    console,
    emit_json,
    json_option,
    note,
    print_counts,
    table,
    working,
)
from hwsearch.costmodel.accuracy import OperatorErrors
from hwsearch.costmodel.devices import DEVICES
from hwsearch.costmodel.evaluate import LEAST_JUDGED, Evaluation, WorstRow, evaluate
from hwsearch.costmodel.model import MEASURED, PROVENANCES, CostModel
from hwsearch.errors import DataError, InputError
from hwsearch.operators import KINDS, dtype_bytes
from hwsearch.pipeline.models import cost_model_named
from hwsearch.pipeline.rows import Rows, load_rows

__all__ = ["command", "errors_table", "evaluation_json", "print_evaluation"]

_HALVES = {"bfloat16", "float16"}


@click.command("evaluate")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--as-is",
    is_flag=True,
    help="Judge the saved model on rows it has never seen, without refitting.",
)
@unit_option
@seed_option
@json_option
def command(*, model: str, file: Path, as_is: bool, unit: str, seed: int, as_json: bool) -> None:
    """Errors of MODEL on the measurements in FILE, on rows that it was not fitted on.

    MODEL is a name from `hwsearch devices` or a folder that `hwsearch fit` wrote. FILE is a store, or a table or
    folder of AIConfigurator or Vidur. By default the model's recipe is fitted again on 80% of FILE and judged on
    the other 20%.
    """
    saved = cost_model_named(model)
    own = None if saved.device.name in DEVICES else saved.device
    rows = load_rows(file, unit=unit, ceilings=own)
    foreign = _check_origin(rows, saved, file=file, model=model, as_is=as_is)
    rows = rows if as_is else rows.without_small(LEAST_JUDGED)
    try:
        with working("judging" if as_is else "fitting on 80% of the rows"):
            judged = evaluate(saved, rows.tables, as_is=as_is, seed=seed, foreign=foreign)
    except DataError as error:
        counts = "; ".join(f"{count} rows, {reason}" for reason, count in rows.left_out.items())
        raise DataError(f"{error}" + (f" (left out: {counts})" if counts else "")) from None
    if as_json:
        emit_json({"model": model, **evaluation_json(judged, saved, rows)})
    else:
        print_evaluation(judged, rows, to=console())


def _check_origin(rows: Rows, saved: CostModel, *, file: Path, model: str, as_is: bool) -> bool:
    """Whether the rows come from another set-up than the model; says so, or refuses what means nothing."""
    halves = as_is and {rows.dtype, saved.dtype} <= _HALVES  # they run at the same rates
    if rows.dtype != saved.dtype and not halves:
        raise InputError(
            f"{file} was measured in {rows.dtype} and {model} was fitted for {saved.dtype}"
            + (": judge the saved model on it with --as-is" if dtype_bytes(rows.dtype) == 2 else "")
        )
    other_device = rows.device.device_name != saved.device.device_name
    if other_device and not as_is:
        raise InputError(
            f"{file} was measured on {rows.device.device_name} and {model} is for {saved.device.device_name}: judge "
            "the saved model on it with --as-is, or fit a model of its own (hwsearch fit)"
        )
    # Tables of one runtime spell its name in different cases.
    foreign = other_device or rows.runtime.casefold() != saved.runtime.casefold() or rows.dtype != saved.dtype
    if foreign:
        note(
            f"{file} was measured on {rows.device.device_name} with {rows.runtime} in {rows.dtype}; "
            f"{model} was fitted for {saved.device.device_name} with {saved.runtime} in {saved.dtype}"
        )
    return foreign


def evaluation_json(judged: Evaluation, model: CostModel, rows: Rows | None) -> dict[str, Any]:
    """The public keys of an evaluation on rows, or of a model without any; errors are in percent."""
    return {
        "device": model.device.name,
        "runtime": model.runtime,
        "how": judged.how,
        "operators": {kind: asdict(errors) for kind, errors in judged.operators.items()},
        "regimes": {
            kind: {name: asdict(errors) for name, errors in own.items()}
            for kind, own in judged.regimes.items()
        },
        "worst": [_worst_json(row) for row in judged.worst],
        "notes": list(judged.notes),
        "left_out": dict(rows.left_out) if rows else {},
        "merged": dict(rows.merged) if rows else {},
    }


def _worst_json(row: WorstRow) -> dict[str, Any]:
    return {
        "operator": row.operator.kind,
        "dims": dict(zip(KINDS[row.operator.kind].dims, row.operator.dims, strict=True)),
        "measured_ms": row.measured_ms,
        "predicted_ms": row.predicted_ms,
        "predicted_ms_low": row.low_ms,
        "predicted_ms_high": row.high_ms,
        "error": row.error,
        "provenance": row.provenance,
    }


def print_evaluation(judged: Evaluation, rows: Rows, *, to: Console) -> None:
    """Errors by operator and by regime, the worst rows, and what was left out."""
    to.print(errors_table(f"Errors in percent: {judged.how}", judged.operators))
    by_regime = {
        f"{kind}, {name}": errors for kind, own in judged.regimes.items() for name, errors in own.items()
    }
    to.print(errors_table("The same by regime", by_regime))
    worst = table("The rows furthest off", "operator", "measured ms", "predicted", "90% interval", "error %")
    for row in judged.worst:
        source = "" if row.provenance == PROVENANCES[MEASURED] else f", {row.provenance}"
        worst.add_row(
            f"{row.operator}{source}",
            f"{row.measured_ms:.4g}",
            f"{row.predicted_ms:.4g}",
            f"{row.low_ms:.4g} to {row.high_ms:.4g}",
            f"{row.error:+.1f}",
        )
    to.print(worst)
    print_counts(rows.left_out, rows.merged, to=to)
    for text in judged.notes:
        to.print(f"note: {text}", markup=False, style="dim", soft_wrap=True)


def errors_table(title: str, operators: Mapping[str, OperatorErrors]) -> Table:
    """Errors by kind of operator, or by whatever the keys name.

    In percent: mean, median and 95th percentile of the absolute error, mean signed error, rows in the 90% interval,
    error of the summed time; and the rows that were not judged because the model has seen them.
    """
    shown = table(
        title,
        "operator",
        "rows",
        "MAPE",
        "median",
        "p95",
        "bias",
        "in 90%",
        "summed",
        "seen",
    )
    for name, e in operators.items():
        shown.add_row(
            name,
            str(e.rows),
            f"{e.mape:.2f}",
            f"{e.median_ape:.2f}",
            f"{e.p95_ape:.2f}",
            "" if e.bias is None else f"{e.bias:+.2f}",
            f"{e.coverage_90:.1f}",
            f"{e.summed_time:+.2f}",
            str(e.skipped_seen),
        )
    return shown
