"""hwsearch profile: measure operators on this machine by a plan, resumably."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import click

from hwsearch.cli.measuring import Measuring, measuring_options
from hwsearch.cli.options import seed_option
from hwsearch.cli.output import emit_json, json_option, progress
from hwsearch.cli.profile_report import estimate_json, print_estimate, print_profiled, profiled_json
from hwsearch.errors import InputError
from hwsearch.operators import dtype_bytes
from hwsearch.pipeline.active import PLANS, CurvePoint, Plan, Stop
from hwsearch.pipeline.models import cost_model_named
from hwsearch.pipeline.profile_estimate import estimate
from hwsearch.pipeline.profiling import DEFAULT_POINTS, Profile
from hwsearch.profilers.bench import BenchSetup
from hwsearch.profilers.environment import default_dtype, torch_device
from hwsearch.profilers.rows import subject_of
from hwsearch.profilers.run import Progress
from hwsearch.profilers.store import Store
from hwsearch.search.executors import Executor, RayExecutor

__all__ = ["command"]

_SECONDS = {"s": 1, "m": 60, "h": 3600}


@click.command("profile")
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("cpu",),
    show_default="cpu",
    help="cpu, or a CUDA device such as cuda:0; repeat it for several of one model.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The store to add to; a dry run needs none."
)
@click.option(
    "--plan",
    type=click.Choice(PLANS),
    default="grid",
    show_default=True,
    help="All that is asked for; drawn at random; or chosen by the cost model, batch by batch.",
)
@click.option(
    "--points",
    type=click.IntRange(min=1),
    help=f"Stop at so many operators in the store; {DEFAULT_POINTS} for a grid without --space.",
)
@click.option("--target-error", metavar="PERCENT", help="Stop at this cross-validated error, such as 5%.")
@click.option("--time", "duration", metavar="DURATION", help="Stop after this long, such as 90s, 10m or 1h.")
@click.option(
    "--space", help="Measure what this search space asks for: a name from `hwsearch spaces`, or a file."
)
@click.option("--base", "bases", multiple=True, help="A base model of --space; may be repeated.")
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    help="A workload of --space, or a range, doubled: decode:batch=1..256,context=1k..128k; may be repeated.",
)
@click.option("--from", "start", metavar="MODEL", help="Start from another device's cost model (active).")
@click.option(
    "--blocks/--no-blocks",
    default=True,
    show_default=True,
    help="With --space and a grid: also measure its layers whole, each as it runs inside a model.",
)
@click.option("--dtype", help="float32 by default on a CPU, bfloat16 on CUDA.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Who shares the operators: the devices of this machine, or workers of one such device each on the Ray cluster "
    "at RAY_ADDRESS.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="How many Ray workers, where RAY_ADDRESS names no cluster."
)
@click.option("--dry-run", is_flag=True, help="Say what would be measured and how long it would take.")
@measuring_options
@seed_option
@json_option
def command(
    *,
    measuring: Measuring,
    blocks: bool,
    devices: tuple[str, ...],
    output: Path | None,
    plan: Plan,
    points: int | None,
    target_error: str | None,
    duration: str | None,
    space: str | None,
    bases: tuple[str, ...],
    workloads: tuple[str, ...],
    start: str | None,
    dtype: str | None,
    executor: str,
    workers: int | None,
    dry_run: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Measure operators with PyTorch on this machine and keep every sample.

    Without --space, what is asked for is a spread over every kind of operator. The rules that stop a plan combine:
    the first that is met ends it. What the store already holds is not measured again: interrupt it and call it
    again to go on.
    """
    if output is None and not dry_run:
        raise InputError("nothing says where to keep what is measured: give -o gpu.db, or --dry-run")
    for device in devices:
        torch_device(device)  # refuses a device that is not there before a store is made
    dtype = dtype or default_dtype(devices[0].partition(":")[0])
    dtype_bytes(dtype)
    task = Profile(
        devices=devices,
        setup=BenchSetup(
            device=devices[0],
            dtype=dtype,
            seed=seed,
            backend=measuring.backend,
            execution=measuring.execution,
            energy=measuring.energy,
        ),
        visits=measuring.visits,
        timeout_s=measuring.timeout_s,
        blocks=blocks,
        plan=plan,
        stop=Stop(
            points=points,
            error=None if target_error is None else read_percent(target_error),
            seconds=None if duration is None else read_duration(duration),
        ),
        space=space,
        bases=bases,
        workloads=workloads,
        source=None if start is None else cost_model_named(start),
        workers=_workers(executor, workers, gpus=0 if devices[0] == "cpu" else 1),
    )
    task.check()
    if dry_run:
        expected = estimate(task, output)
        if as_json:
            emit_json(estimate_json(expected, output))
        else:
            print_estimate(expected, task)
        return
    assert output is not None
    with Store.open(output, create=True) as store, progress() as bar:
        shown = bar.add_task("measuring", total=None, status="")
        error = ""

        def advance(done: Progress) -> None:
            status = f"{error}{subject_of(done.measurement)}"
            bar.update(shown, completed=done.done, total=done.total, status=status)

        def judge(point: CurvePoint) -> None:
            nonlocal error
            error = "" if point.error is None else f"error {100 * point.error:.1f}%  "

        profiled = task.run(store, on_progress=advance, on_curve=judge)
        measurements, whole = store.measurements(), store.blocks()
    if as_json:
        emit_json(profiled_json(profiled, measurements, whole, plan, output))
    else:
        print_profiled(profiled, measurements, whole, task, output)


def _workers(executor: str, workers: int | None, *, gpus: int) -> Callable[[], Executor] | None:
    """What opens the workers; None where the devices of this machine are enough. InputError for a contradiction."""
    if executor == "local":
        if workers is not None:
            raise InputError(
                "--workers belongs to --executor ray; on this machine --device is repeated instead"
            )
        return None
    return lambda: RayExecutor(workers or 1, address=os.environ.get("RAY_ADDRESS"), gpus=gpus)


def read_percent(text: str) -> float:
    """A share from a text such as 5%. InputError for anything else, and outside of 0 to 100."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if found is None or not 0 < float(found[1]) < 100:
        raise InputError(f"--target-error {text!r}: write a percentage above 0 and below 100, for example 5%")
    return float(found[1]) / 100


def read_duration(text: str) -> float:
    """Seconds from a text such as 90s, 10m or 1h. InputError for anything else, and for no time at all."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*", text)
    if found is None or not float(found[1]) > 0:
        raise InputError(f"--time {text!r}: write a number with s, m or h, for example 10m")
    return float(found[1]) * _SECONDS[found[2]]
