"""hwsearch profile: measure operators on this machine, resumably."""

from __future__ import annotations

from pathlib import Path

import click

from hwsearch.cli.measuring import Measuring, measuring_options
from hwsearch.cli.options import seed_option
from hwsearch.cli.output import console, emit_json, json_option, milliseconds, note, progress, table
from hwsearch.errors import InputError
from hwsearch.operators import KINDS, Operator
from hwsearch.pipeline.blocks import asked_blocks
from hwsearch.pipeline.demand import operators_of
from hwsearch.profilers.environment import default_dtype, torch_device
from hwsearch.profilers.plan import default_plan
from hwsearch.profilers.rows import subject_of
from hwsearch.profilers.run import Progress, profile
from hwsearch.profilers.store import Store
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.block import Block
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.workload import Workload

__all__ = ["command"]


@click.command("profile")
@click.option("--device", default="cpu", show_default=True, help="cpu, or a CUDA device such as cuda:0.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The store to add to.")
@click.option(
    "--points",
    default=160,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many operators of the default plan, a spread over every kind.",
)
@click.option(
    "--space",
    help="Measure instead what this search space asks for: a name from `hwsearch spaces`, or a file.",
)
@click.option("--base", help="The base model of --space.")
@click.option("--workload", "workloads", multiple=True, help="A workload of --space; may be repeated.")
@click.option("--dtype", help="float32 by default on a CPU, bfloat16 on CUDA.")
@click.option(
    "--blocks/--no-blocks",
    default=True,
    show_default=True,
    help="With --space: also measure its layers whole, each as it runs inside a model.",
)
@measuring_options
@seed_option
@json_option
def command(
    *,
    measuring: Measuring,
    blocks: bool,
    device: str,
    output: Path,
    points: int,
    space: str | None,
    base: str | None,
    workloads: tuple[str, ...],
    dtype: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure operators with PyTorch on this machine and keep every sample.

    What the store already holds is not measured again: interrupt it and call it again to go on.
    """
    operators = _operators(device, points, space, base, workloads, seed)
    target = torch_device(device)  # refuses a device that is not there before a store is made
    precision = dtype or default_dtype(target.type)
    layers = _layers(space, base, workloads, precision) if blocks else {}
    with Store.open(output, create=True) as store, progress() as bar:
        task = bar.add_task("measuring", total=None, status="")

        def advance(done: Progress) -> None:
            bar.update(task, completed=done.done, total=done.total, status=str(subject_of(done.measurement)))

        summary = profile(
            store,
            operators,
            blocks=layers,
            device=device,
            dtype=dtype,
            seed=seed,
            visits=measuring.visits,
            backend=measuring.backend,
            execution=measuring.execution,
            energy=measuring.energy,
            timeout_s=measuring.timeout_s,
            on_progress=advance,
        )
        measurements = store.measurements()
        whole = store.blocks()
    if as_json:
        emit_json(
            {
                "store": str(output),
                "measured": summary.measured,
                "skipped": summary.skipped,
                "not_ok": summary.not_ok,
                "measurements": len(measurements),
                "blocks": len(whole),
                "warning": summary.warning,
            }
        )
        return
    shown = table(f"{output}", "operator", "rows", "not ok", "fastest ms", "slowest ms")
    for kind in KINDS:
        own = [m for m in measurements if m.operator.kind == kind]
        times = [m.median_ms for m in own if m.status == "ok"]
        if own:
            shown.add_row(
                kind,
                str(len(own)),
                str(len(own) - len(times)),
                milliseconds(min(times)) if times else "-",
                milliseconds(max(times)) if times else "-",
            )
    if whole:
        times = [row.median_ms for row in whole if row.status == "ok"]
        shown.add_row(
            "blocks",
            str(len(whole)),
            str(len(whole) - len(times)),
            milliseconds(min(times)) if times else "-",
            milliseconds(max(times)) if times else "-",
        )
    console().print(shown)
    if summary.warning:
        note(f"warning: {summary.warning}")
    note(
        f"{summary.measured} measured now, {summary.skipped} were there already, {summary.not_ok} could not run"
    )


def _operators(
    device: str, points: int, space: str | None, base: str | None, workloads: tuple[str, ...], seed: int
) -> list[Operator]:
    if space is None:
        if base is not None or workloads:
            raise InputError("--base and --workload belong to a search space: add --space postnas")
        return list(default_plan(device.partition(":")[0], points=points, seed=seed))
    if base is None or not workloads:
        raise InputError(
            "--space needs --base and at least one --workload, for example decode:batch=16,context=4096"
        )
    chosen = space_named(space, base_named(base))
    return operators_of(chosen, [Workload.from_text(text) for text in workloads])


def _layers(space: str | None, base: str | None, workloads: tuple[str, ...], dtype: str) -> dict[Block, int]:
    """The blocks of a space, with the memory that its models go through; none without a space."""
    if space is None or base is None:
        return {}
    asked = [Workload.from_text(text, dtype=dtype) for text in workloads]
    return asked_blocks(space_named(space, base_named(base)), asked)
