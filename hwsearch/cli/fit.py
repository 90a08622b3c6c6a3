"""hwsearch fit: measurements in, a cost model out, with its errors on rows it was not fitted on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hwsearch.cli.evaluate import errors_table, evaluation_json, print_evaluation
from hwsearch.cli.options import seed_option, unit_option
from hwsearch.cli.output import console, emit_json, json_option, print_counts, table, working
from hwsearch.costmodel.device_file import read_device
from hwsearch.costmodel.evaluate import LEAST_JUDGED, Evaluation, evaluate
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.storage import check_place
from hwsearch.costmodel.transfer import Gate
from hwsearch.errors import InputError
from hwsearch.pipeline.blocks import BlockTable, load_blocks
from hwsearch.pipeline.models import carry_model, cost_model_named, fit_rows, transfer_rows
from hwsearch.pipeline.rows import Rows, load_rows

__all__ = ["command"]

_CROSSED = "cross-validated on the rows given (5 folds)"


@click.command("fit")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the cost model."
)
@click.option(
    "--from",
    "start",
    metavar="MODEL",
    help="Start from the cost model of another device or runtime: FILE may hold as few as 12 rows of a kind.",
)
@click.option(
    "--device-file",
    type=click.Path(path_type=Path),
    help="JSON or TOML with the ceilings of the device that FILE was measured on.",
)
@unit_option
@seed_option
@json_option
def command(
    *,
    file: Path | None,
    output: Path,
    start: str | None,
    device_file: Path | None,
    unit: str,
    seed: int,
    as_json: bool,
) -> None:
    """Fit a cost model to FILE and save it.

    FILE is a store that `hwsearch profile` or `hwsearch import` wrote, or a table or folder of AIConfigurator
    or Vidur. The errors shown come from a second fit on 80% of the rows, judged on the other 20%; the saved model uses
    all. Kinds of operator with fewer than 15 rows are not fitted: counted here, and rooflines in predictions.

    With --from, the model starts from another one, and cross-validation decides for each kind of operator how
    much of it to keep; kinds without rows are carried over under the new ceilings and flagged as unmeasured.
    Without FILE, --from and --device-file carry over all of them.
    """
    check_place(output)  # before minutes of fitting
    ceilings = None if device_file is None else read_device(device_file)
    source = None if start is None else cost_model_named(start)
    if file is None:
        if source is None or ceilings is None:
            raise InputError(
                "nothing to fit to: give FILE, or --from and --device-file to carry a model over"
            )
        _finish(carry_model(source, device=ceilings), source, {}, None, None, output=output, as_json=as_json)
        return
    rows, blocks = load_rows(file, unit=unit, ceilings=ceilings), load_blocks(file)
    if source is not None:
        rows = rows.without_small(LEAST_JUDGED, lent=source.families.keys())
        with working("transferring"):
            model, gates = transfer_rows(rows, source=source, seed=seed)
        _finish(model, source, gates, rows, blocks, output=output, as_json=as_json)
        return
    rows = rows.without_small(LEAST_JUDGED)
    with working("fitting"):
        model = fit_rows(rows, seed=seed)
    with working("judging the recipe on held-out rows"):
        judged = evaluate(model, rows.tables, as_is=False, seed=seed)
    model = replace(model, held_out=judged.operators)
    _save(model, blocks, output)
    if as_json:
        emit_json({"model": str(output), **_blocks_json(blocks), **evaluation_json(judged, model, rows)})
        return
    print_evaluation(judged, rows, to=console())
    _print_blocks(blocks, to=console())
    console().print(f"model: {output}", markup=False)


def _finish(
    model: CostModel,
    source: CostModel,
    gates: Mapping[str, Gate],
    rows: Rows | None,
    blocks: BlockTable | None,
    *,
    output: Path,
    as_json: bool,
) -> None:
    """Save a transferred model and say what each kind took from the source."""
    _save(model, blocks, output)
    took = {kind: _took(kind, model, gates, rows) for kind in sorted(model.families)}
    if as_json:
        judged = Evaluation(how=_CROSSED, operators=model.held_out, regimes={}, worst=())
        emit_json(
            {
                "model": str(output),
                **_blocks_json(blocks),
                **evaluation_json(judged, model, rows),
                "source": {"device": source.device.name, "runtime": source.runtime},
                "transfer": took,
            }
        )
        return
    to = console()
    _print_transfer(took, source, to=to)
    if model.held_out:
        to.print(errors_table(f"Errors in percent: {_CROSSED}", model.held_out))
    if rows is not None:
        print_counts(rows.left_out, rows.merged, to=to)
    _print_blocks(blocks, to=to)
    to.print(f"model: {output}", markup=False)


def _save(model: CostModel, blocks: BlockTable | None, output: Path) -> None:
    model.save(output)
    if blocks is not None:
        blocks.save(output)


def _blocks_json(blocks: BlockTable | None) -> dict[str, Any]:
    if blocks is None:
        return {"blocks": 0, "adding_up": []}
    adding_up = [
        {
            "workload": str(workload),
            "mixes": found.mixes,
            "factor": found.factor,
            "interval_percent": 100 * math.expm1(found.half_width),
        }
        for workload, found in blocks.compositions
    ]
    return {"blocks": len(blocks.times), "adding_up": adding_up}


def _print_blocks(blocks: BlockTable | None, *, to: Console) -> None:
    if blocks is None:
        return
    to.print(
        f"blocks measured whole: {len(blocks.times)}, kept as they are; models are predicted by their sum"
    )
    for workload, found in blocks.compositions:
        within = f"90% of models within {math.expm1(found.half_width):.1%}"
        said = f"{found.mixes} mixes of layers take {found.factor:.3f} times their layers' sum"
        if not found.known:
            said = "too few mixes of layers to say how they add up (hwsearch profile --space measures six)"
            within = f"{within}: assumed, or by repeated visits"
        to.print(f"  {workload}: {said}; {within}", highlight=False)


def _took(kind: str, model: CostModel, gates: Mapping[str, Gate], rows: Rows | None) -> dict[str, Any]:
    """What a kind took from the source; its public keys."""
    gate = gates.get(kind)
    measured = 0 if rows is None or kind not in rows.tables else len(rows.tables[kind])
    return {
        "rows": measured,
        "source_weight": gate.source_weight if gate else 0.0 if measured else 1.0,
        "mape": model.held_out[kind].mape if kind in model.held_out else None,
        "mape_alone": gate.alone_mape if gate else None,
    }


def _print_transfer(took: Mapping[str, Mapping[str, Any]], source: CostModel, *, to: Console) -> None:
    shown = table(
        f"From {source.device.name} ({source.runtime})",
        "operator",
        "kept of the source",
        "rows",
        "MAPE",
        "MAPE of the rows alone",
        left=2,
    )
    for kind, found in took.items():
        weight = found["source_weight"]
        if not found["rows"]:
            said = "all, under the new ceilings: unmeasured"
        elif found["mape_alone"] is None:
            said = "nothing: the source has no such operator"
        else:
            said = f"{weight:.0%}" if weight else "nothing: the rows alone do as well"
        figures = (f"{found[key]:.2f}" if found[key] is not None else "" for key in ("mape", "mape_alone"))
        shown.add_row(kind, said, str(found["rows"]), *figures)
    to.print(shown)
