"""hwsearch study: what a run has found and how it got there, while it runs or afterwards."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hwsearch.cli.output import console, emit_json, json_option, table
from hwsearch.errors import DependencyError, InputError, OutputError
from hwsearch.search.journal import Journal, Step, read_journal

__all__ = ["command"]

_ROWS = 12  # of each table

_run = click.argument("run", type=click.Path(path_type=Path))


@click.group("study")
def command() -> None:
    """Look into the run directory of a search; a search that still runs is not disturbed."""


@command.command("show")
@_run
@json_option
def show(*, run: Path, as_json: bool) -> None:
    """The front so far, and how best and hypervolume grew."""
    journal = read_journal(run)
    front, steps, exact = journal.front(), journal.convergence(), _exact(journal)
    if as_json:
        emit_json(
            {
                "run": str(run),
                "evaluations": len(journal),
                "by_fidelity": {str(f): n for f, n in sorted(Counter(journal.rows["fidelity"]).items())},
                "failed": journal.rows["status"].count("failed"),
                "evaluation_seconds": sum(journal.rows["seconds"]),
                "objectives": list(journal.names[: journal.num_objectives]),
                "exact": exact,
                "front": [
                    {"genome": genome, "objectives": values}
                    for genome, values in zip(front.genomes.tolist(), front.objectives.tolist(), strict=True)
                ],
                "convergence": [
                    {"evaluations": step.evaluations, "best": step.best, "hypervolume": step.hypervolume}
                    for step in steps
                ],
            }
        )
        return
    to = console()
    names = [
        f"{name}, {unit}" if unit else name for name, unit in zip(journal.names, journal.units, strict=True)
    ][: journal.num_objectives]
    shown = table(f"Front: {len(front)} trade-offs within the budgets", "genome", *names)
    for i in _spread(len(front)):
        genome = "".join(f"{gene:x}" if gene < 16 else f"({gene})" for gene in front.genomes[i].tolist())
        shown.add_row(genome, *(f"{value:.6g}" for value in front.objectives[i]))
    to.print(shown)
    shown = table("Convergence", "evaluations", "best", "hypervolume", left=0)
    for i in _spread(len(steps)):
        shown.add_row(str(steps[i].evaluations), _best(steps[i]), f"{steps[i].hypervolume:.6g}")
    to.print(shown)
    failed = journal.rows["status"].count("failed")
    fidelities = ", ".join(f"{n} at {f:g}" for f, n in sorted(Counter(journal.rows["fidelity"]).items()))
    lines = {
        "evaluations": f"{len(journal)} ({fidelities} of the full fidelity), {failed} failed",
        "time in evaluations": f"{sum(journal.rows['seconds']):.3g} s",
        "exact optimum": "not known" if exact is None else f"{exact:.6g}",
        "engine": ", ".join(f"{key} {value}" for key, value in journal.meta.get("engine", {}).items()),
    }
    for name, text in lines.items():
        to.print(f"{name:<22}{text}", markup=False, soft_wrap=True)


@command.command("plot")
@_run
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help=".png, .svg or .pdf")
def plot(*, run: Path, output: Path) -> None:
    """Draw the trade-offs, and best and hypervolume over evaluations (extra `report`)."""
    from hwsearch.cli.plots import plot_run

    journal = read_journal(run)
    plot_run(
        journal, path=output, exact=_exact(journal), title=f"{run.resolve().name}: {len(journal)} evaluations"
    )
    console().print(f"written to {output}", markup=False, soft_wrap=True)


@command.command("export")
@_run
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help=".csv, .parquet or .log")
@json_option
def export(*, run: Path, output: Path, as_json: bool) -> None:
    """Write every evaluation: a table as CSV or parquet (extra `parquet`), or a journal for optuna-dashboard as .log
    (extra `optuna`)."""
    journal = read_journal(run)
    columns = _columns(journal)
    written = len(journal)
    try:
        if output.suffix == ".csv":
            with output.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
        elif output.suffix == ".parquet":
            _write_parquet(columns, output)
        elif output.suffix == ".log":
            from hwsearch.cli.optuna_export import write_optuna

            written = write_optuna(journal, output, name=run.resolve().name)
        else:
            raise InputError(f"cannot write {output}: end the file in .csv, .parquet or .log")
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from None
    if as_json:
        emit_json({"output": str(output), "evaluations": written, "columns": list(columns)})
    else:
        console().print(f"{written} evaluations written to {output}", markup=False, soft_wrap=True)


def _columns(journal: Journal) -> dict[str, list[Any]]:
    """The journal's columns, each cost by its name, the genome as indices of choices divided by blanks."""
    failed = [status == "failed" for status in journal.rows["status"]]
    costs = {
        name: [None if bad else value for bad, value in zip(failed, values, strict=True)]
        for name, values in zip(journal.names, journal.costs.T.tolist(), strict=True)
    }
    genomes = [" ".join(map(str, genome)) for genome in journal.genomes.tolist()]
    return {**journal.rows, **costs, "genome": genomes}


def _write_parquet(columns: Mapping[str, list[Any]], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise DependencyError(
            "pyarrow", extra="parquet", purpose="writing parquet (CSV needs nothing)"
        ) from None
    parquet.write_table(pyarrow.table(dict(columns)), path)


def _exact(journal: Journal) -> float | None:
    """The proven least first objective, where the engine has it."""
    exact = journal.meta.get("exact")
    value = exact["value"] if exact and exact["proven"] else None
    return None if value is None else float(value)


def _best(step: Step) -> str:
    return "none within the budgets" if step.best is None else f"{step.best:.6g}"


def _spread(count: int) -> list[int]:
    """At most so many rows, evenly, the ends among them."""
    return (
        sorted({round(i * (count - 1) / (_ROWS - 1)) for i in range(_ROWS)})
        if count > _ROWS
        else list(range(count))
    )
