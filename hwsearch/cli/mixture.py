"""hwsearch mixture: which mixture of data sources to train on, from the scores of many small runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from hwsearch.cli.options import seed_option
from hwsearch.cli.output import console, emit_json, json_option, table

__all__ = ["command"]


@click.command("mixture")
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--score", default="loss", show_default=True, help="Column with the score of each run.")
@click.option("--maximise", is_flag=True, help="A higher score is better; losses are minimised.")
@seed_option
@json_option
def command(*, runs: Path, score: str, maximise: bool, seed: int, as_json: bool) -> None:
    """Propose a mixture from RUNS, a CSV with the weight of every data source and the score of every small run.

    One row for each run; every column but --score is a source. The weights need not sum to 1.
    """
    from hwsearch.surrogate.mixture import propose_mixture, read_runs

    known = read_runs(runs, score=score)
    found = propose_mixture(known, maximise=maximise, seed=seed)
    if as_json:
        emit_json({"runs": len(known.scores), "score_column": score, **asdict(found)})
        return
    to = console()
    shown = table(f"From {len(known.scores)} runs", "source", "proposed", "best run")
    for source, weight in found.weights.items():
        shown.add_row(source, f"{weight:.1%}", f"{found.best_run[source]:.1%}")
    shown.add_row(f"{score}", f"{found.score:.4g} predicted", f"{found.best_score:.4g}")
    to.print(shown)
    to.print(
        f"regression on {found.form} weights: error {found.error:.3g} and rank correlation "
        f"{found.rank_correlation:.2f}, each run predicted from the others",
        markup=False,
        soft_wrap=True,
    )
