"""hwsearch fit: measurements in, a cost model out, with its errors on rows it was not fitted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from hwsearch.cli.evaluate import evaluation_json, print_evaluation
from hwsearch.cli.options import seed_option, unit_option
from hwsearch.cli.output import console, emit_json, json_option, working
from hwsearch.costmodel.evaluate import evaluate
from hwsearch.pipeline import fit_rows, load_rows

__all__ = ["command"]


@click.command("fit")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the cost model."
)
@unit_option
@seed_option
@json_option
def command(*, file: Path, output: Path, unit: str, seed: int, as_json: bool) -> None:
    """Fit a cost model to FILE and save it.

    FILE is a store that `hwsearch profile` or `hwsearch import` wrote, or a table or folder of AIConfigurator
    or Vidur. The errors shown come from a second fit on 80% of the rows, judged on the other 20%; the saved model uses
    all.
    """
    rows = load_rows(file, unit=unit)
    with working("fitting"):
        model = fit_rows(rows, seed=seed)
    with working("judging the recipe on held-out rows"):
        judged = evaluate(model, rows.tables, as_is=False, seed=seed)
    model = replace(model, held_out=judged.operators)
    model.save(output)
    if as_json:
        emit_json({"model": str(output), **evaluation_json(judged, model, rows)})
        return
    print_evaluation(judged, rows, to=console())
    console().print(f"model: {output}", markup=False)
