"""hwsearch bench: whole architectures measured on this machine, beside what is predicted of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hwsearch.cli.measuring import backend_option, execution_option, visits_option
from hwsearch.cli.options import seed_option
from hwsearch.cli.output import console, emit_json, json_option, milliseconds, note, progress, size, table
from hwsearch.costmodel.model import CostModel
from hwsearch.errors import InputError
from hwsearch.pipeline.bench import BenchRow, LargestBatch, bench_architectures, bench_largest_batch
from hwsearch.pipeline.blocks import BlockTable, load_blocks
from hwsearch.pipeline.models import cost_model_named
from hwsearch.profilers.environment import default_dtype, torch_device
from hwsearch.records import Execution
from hwsearch.searchspace.budget import parse_budget
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import read_workload

__all__ = ["command"]


@click.command("bench")
@click.argument("archs", metavar="ARCH...", nargs=-1, required=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, or a CUDA device such as cuda:0.")
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    required=True,
    help="prefill:batch=N,context=N or decode:batch=N,context=N; may be repeated. batch=max: find the largest.",
)
@click.option(
    "--cost-model",
    help="What to compare with: a folder that `hwsearch fit` wrote, a store with measured blocks, a built-in name.",
)
@click.option("--memory", help="The most that batch=max may take, for example 4GiB; a CPU needs it.")
@click.option("--dtype", help="float32 by default on a CPU, bfloat16 on CUDA.")
@backend_option
@execution_option
@visits_option
@seed_option
@json_option
def command(
    *,
    archs: tuple[str, ...],
    device: str,
    workloads: tuple[str, ...],
    cost_model: str | None,
    memory: str | None,
    dtype: str | None,
    backend: str,
    execution: Execution,
    visits: int,
    seed: int,
    as_json: bool,
) -> None:
    """Build ARCH with random weights, measure it, and print measured against predicted with the error.

    ARCH is a name from `hwsearch bases`, an architecture JSON, or a Hugging Face config.json. Several are measured in
    turn, round by round, so that they can be compared. A prefill starts from an empty cache, a decode step from one
    that is filled to the workload's context.
    """
    architectures = [architecture_named(arch) for arch in archs]
    precision = dtype or default_dtype(torch_device(device).type)
    asked = [read_workload(text, dtype=precision) for text in workloads]
    timed = [workload for workload, largest in asked if not largest]
    model, blocks = _predictors(cost_model)
    rows: list[list[BenchRow]] = [[] for _ in architectures]
    with progress() as bar:
        task = bar.add_task("measuring", total=visits * len(timed) * len(architectures), status="")
        if timed:
            rows = bench_architectures(
                architectures,
                timed,
                device=device,
                model=model,
                blocks=blocks,
                backend=backend,
                execution=execution,
                visits=visits,
                seed=seed,
                on_visit=lambda architecture, workload: bar.update(
                    task, advance=1, status=f"{architecture.name}, {workload}"
                ),
            )
        batches = [
            [
                bench_largest_batch(
                    architecture,
                    workload,
                    device=device,
                    memory_bytes=None if memory is None else int(parse_budget(f"memory<={memory}").value),
                    backend=backend,
                    seed=seed,
                    on_try=lambda batch, ok: bar.update(
                        task, status=f"batch {batch} {'fits' if ok else 'does not fit'}"
                    ),
                )
                for workload, largest in asked
                if largest
            ]
            for architecture in architectures
        ]
    found = list(zip(architectures, rows, batches, strict=True))
    if as_json:
        emit_json(
            {
                "device": device,
                "dtype": precision,
                "backend": backend,
                "execution": execution,
                "cost_model": cost_model,
                "architectures": [
                    {
                        "architecture": architecture.name,
                        "phases": [_row_json(row) for row in own_rows],
                        "largest_batches": [_batch_json(batch) for batch in own_batches],
                    }
                    for architecture, own_rows, own_batches in found
                ],
            }
        )
        return
    for architecture, own_rows, own_batches in found:
        _print(architecture.name, own_rows, own_batches)
    for text in dict.fromkeys(text for own in rows for row in own for text in row.notes):
        note(f"note: {text}")


def _predictors(cost_model: str | None) -> tuple[CostModel | None, BlockTable | None]:
    """The cost model and the measured blocks that a name or path holds; a store holds blocks alone."""
    if cost_model is None:
        return None, None
    path = Path(cost_model)
    blocks = load_blocks(path) if path.exists() else None
    if path.is_file() and path.suffix == ".db":
        if blocks is None:
            raise InputError(
                f"{path} holds no measured blocks: measure them (hwsearch profile --space), or fit it first"
            )
        return None, blocks
    return cost_model_named(cost_model), blocks


def _row_json(row: BenchRow) -> dict[str, Any]:
    predicted, blocks, operators = row.predicted, row.from_blocks, row.from_operators
    return {
        "workload": str(row.workload),
        "phase": row.workload.phase,
        "measured_ms": row.measured_ms,
        "measured_ms_low": row.low_ms,
        "measured_ms_high": row.high_ms,
        "predicted_ms": predicted and predicted.median_ms,
        "predicted_ms_low": predicted and predicted.low_ms,
        "predicted_ms_high": predicted and predicted.high_ms,
        "predicted_from": row.predicted_from,
        "predicted_ms_from_blocks": blocks and blocks.median_ms,
        "predicted_ms_from_operators": operators and operators.median_ms,
        "error_percent": row.error_percent,
        "within_interval": row.within_interval,
        "state_bytes": row.state_bytes,
        "peak_memory_bytes": row.peak_memory_bytes,
        "kernel": row.kernel,
        "marks": list(row.marks),
        "reference_ms": row.reference_ms,
        "machine_percent": None if row.machine is None else 100 * (row.machine - 1),
        "notes": list(row.notes),
    }


def _batch_json(found: LargestBatch) -> dict[str, Any]:
    return {
        "workload": str(found.workload),
        "memory_bytes": found.memory_bytes,
        "measured": found.measured,
        "predicted": found.predicted,
    }


def _print(name: str, rows: list[BenchRow], batches: list[LargestBatch]) -> None:
    to = console()
    if rows:
        shown = table(
            name,
            "workload",
            "predicted from",
            "measured ms",
            "predicted ms (90%)",
            "error %",
            "marks",
            left=2,
        )
        for row in rows:
            predicted = row.predicted
            shown.add_row(
                str(row.workload),
                row.predicted_from or "nothing: no --cost-model",
                milliseconds(row.measured_ms, row.low_ms, row.high_ms),
                "-"
                if predicted is None
                else milliseconds(predicted.median_ms, predicted.low_ms, predicted.high_ms),
                "-" if row.error_percent is None else f"{row.error_percent:+.1f}",
                ", ".join(row.marks) or "-",
            )
        to.print(shown)
    for found in batches:
        to.print(
            f"largest batch of {found.workload.phase} at {found.workload.context} in {size(found.memory_bytes)}: "
            f"measured {found.measured}, predicted {found.predicted}",
            markup=False,
        )
