"""hwsearch evaluate: errors of a cost model on rows it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from hwsearch.cli.options import seed_option
from hwsearch.cli.output import console, emit_json, json_option, note, table, working
from hwsearch.costmodel.accuracy import OperatorErrors
from hwsearch.costmodel.evaluate import Evaluation, evaluate
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InputError
from hwsearch.pipeline import Rows, cost_model_named, load_rows

__all__ = ["command", "errors_table", "evaluation_json", "print_evaluation"]


@click.command("evaluate")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--as-is",
    is_flag=True,
    help="Judge the saved model on rows it has never seen, without refitting.",
)
@seed_option
@json_option
def command(*, model: str, file: Path, as_is: bool, seed: int, as_json: bool) -> None:
    """Errors of MODEL on the measurements in FILE, on rows that it was not fitted on.

    MODEL is a name from `hwsearch devices` or a folder that `hwsearch fit` wrote. FILE is a store, or
    AIConfigurator's table or folder. By default the model's recipe is fitted again on 80% of FILE and judged on
    the other 20%.
    """
    saved = cost_model_named(model)
    rows = load_rows(file, ceilings=saved.device)
    foreign = _check_origin(rows, saved, file=file, model=model, as_is=as_is)
    with working("judging" if as_is else "fitting on 80% of the rows"):
        judged = evaluate(saved, rows.tables, as_is=as_is, seed=seed, foreign=foreign)
    if as_json:
        emit_json({"model": model, **evaluation_json(judged, saved, left_out=rows.left_out)})
    else:
        print_evaluation(judged, left_out=rows.left_out, to=console())


def _check_origin(rows: Rows, saved: CostModel, *, file: Path, model: str, as_is: bool) -> bool:
    """Whether the rows come from another device or runtime than the model; says so, or refuses what means nothing."""
    if rows.dtype != saved.dtype:
        raise InputError(f"{file} was measured in {rows.dtype} and {model} was fitted for {saved.dtype}")
    other_device = rows.device.device_name != saved.device.device_name
    if other_device and not as_is:
        raise InputError(
            f"{file} was measured on {rows.device.device_name} and {model} is for {saved.device.device_name}: judge "
            "the saved model on it with --as-is, or fit a model of its own (hwsearch fit)"
        )
    # Tables of one runtime spell its name in different cases.
    foreign = other_device or rows.runtime.casefold() != saved.runtime.casefold()
    if foreign:
        note(
            f"{file} was measured on {rows.device.device_name} with {rows.runtime}; "
            f"{model} was fitted for {saved.device.device_name} with {saved.runtime}"
        )
    return foreign


def evaluation_json(judged: Evaluation, model: CostModel, *, left_out: Mapping[str, int]) -> dict[str, Any]:
    """The public keys of an evaluation; errors are in percent."""
    return {
        "device": model.device.name,
        "runtime": model.runtime,
        "how": judged.how,
        "operators": {kind: asdict(errors) for kind, errors in judged.operators.items()},
        "left_out": dict(left_out),
    }


def print_evaluation(judged: Evaluation, *, left_out: Mapping[str, int], to: Console) -> None:
    to.print(errors_table(f"Errors in percent: {judged.how}", judged.operators))
    for reason, count in left_out.items():
        to.print(f"left out: {count} rows, {reason}", markup=False, soft_wrap=True)


def errors_table(title: str, operators: Mapping[str, OperatorErrors]) -> Table:
    """Errors by kind of operator."""
    shown = table(
        title,
        "operator",
        "rows",
        "MAPE",
        "median",
        "95th pct",
        "in 90% interval",
        "summed time",
        "seen, skipped",
    )
    for kind, e in operators.items():
        shown.add_row(
            kind,
            str(e.rows),
            f"{e.mape:.2f}",
            f"{e.median_ape:.2f}",
            f"{e.p95_ape:.2f}",
            f"{e.coverage_90:.1f}",
            f"{e.summed_time:+.2f}",
            str(e.skipped_seen),
        )
    return shown
