"""hwsearch search: architectures that lose least quality within budgets, with the exact optimum beside them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import click
from rich.progress import Progress as Bar

from hwsearch.cli.options import device_option, seed_option, workload_option
from hwsearch.cli.output import console, emit_json, json_option, note, progress
from hwsearch.cli.search_report import Found
from hwsearch.cli.search_supernet import search_supernet
from hwsearch.cli.workers import executor_of, worker_options
from hwsearch.errors import HwsearchError, InputError
from hwsearch.pipeline.blocks import load_blocks
from hwsearch.pipeline.measured import MeasuredQuality, measured_quality
from hwsearch.pipeline.models import cost_model_named
from hwsearch.pipeline.search_task import search_task
from hwsearch.search.engine import GENERATIONS, POPULATION, Progress, Solver, search
from hwsearch.search.evaluation import Evaluator
from hwsearch.search.study import Evaluation, Study
from hwsearch.searchspace.bases import Base, base_named
from hwsearch.searchspace.budget import parse_budget
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload
from hwsearch.surrogate.importance import LayerSweep, load_sweep

__all__ = ["command"]

_MEASURED = 200  # evaluations of a measured quality where nothing else is asked for
_SCORED = 64  # the same of a supernet, where a predictor chooses them


@click.command("search")
@click.option("--base", help="A name from `hwsearch bases`, a config.json, or a checkpoint folder.")
@click.option(
    "--space",
    "preset",
    default="postnas",
    show_default=True,
    help="A name from `hwsearch spaces`, or a YAML, TOML or JSON file.",
)
@click.option(
    "--placement",
    help="Keep softmax attention where this architecture has it: a JSON file, or a name from `hwsearch bases`.",
)
@device_option
@click.option(
    "--quality",
    required=True,
    help="Layer importance: qwen3-1.7b-sweep, qwen3-4b-sweep, or a CSV with model,layer,task,metric,value,stderr; "
    "or MODULE:FUNCTION, which evaluates one architecture (docs/studies.md); or the folder of a supernet, whose base "
    "and space are then searched.",
)
@click.option(
    "--metric",
    default="mean_loss",
    show_default=True,
    help="Of a supernet: TASK.loss, TASK.accuracy, mean_loss, mean_accuracy, kl or perplexity.",
)
@click.option(
    "--items", default=100, show_default=True, type=click.IntRange(min=1), help="Of a supernet: of each task."
)
@click.option("--task", "tasks", multiple=True, help="Use only this task of --quality; may be repeated.")
@click.option(
    "--assume",
    multiple=True,
    metavar="KIND=SHARE",
    help="Quality loss of a mixer without data, as a share of the linear drop; may be repeated.",
)
@workload_option
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    help='For example "latency<=6ms", "memory<=70GiB", "throughput>=5000", "full_attention<=4"; may be repeated.',
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Run directory.")
@click.option("--resume", is_flag=True, help="Go on with the run in the directory.")
@click.option(
    "--solver",
    default="auto",
    show_default=True,
    type=click.Choice(get_args(Solver)),
    help="auto: evolution, with the exact optimum beside it; exact: the whole exact front. See docs/solvers.md.",
)
@click.option(
    "--population",
    type=click.IntRange(min=4),
    help=f"{POPULATION} by default; with --evaluations a fortieth of these, at least 20.",
)
@click.option("--generations", type=click.IntRange(min=1), help=f"{GENERATIONS} by default.")
@click.option(
    "--evaluations",
    type=click.IntRange(min=1),
    help=f"At most so many, in place of --generations; {_MEASURED} by default where quality is measured, {_SCORED} of "
    "a supernet.",
)
@worker_options
@seed_option
@json_option
def command(
    *,
    base: str | None,
    preset: str,
    placement: str | None,
    device: str,
    quality: str,
    metric: str,
    items: int,
    tasks: tuple[str, ...],
    assume: tuple[str, ...],
    workload: str,
    budgets: tuple[str, ...],
    output: Path,
    resume: bool,
    solver: Solver,
    population: int | None,
    generations: int | None,
    evaluations: int | None,
    workers: int | None,
    worker_devices: tuple[str, ...],
    executor: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Trade quality loss against predicted latency, within every budget.

    Bi-objective evolution; where quality loss adds up over layers, as latency and memory do, the exact optimum is
    found too and the gap to it is printed. The run directory keeps every evaluation: after a kill, the same command
    with --resume, with any number of workers, gives the result that the first would have given.

    Where --device is a cost model that holds the space's layers measured whole at this workload, latency is their sum.
    With a supernet each score takes a pass over its tasks, so a predictor fitted to those so far chooses what to score
    next.
    """
    if generations is not None and evaluations is not None:
        raise InputError(f"--generations {generations} and --evaluations {evaluations}: give one of the two")
    model, blocks = cost_model_named(device), load_blocks(Path(device))
    if (Path(quality) / "supernet.json").is_file():
        given = {"--base": base, "--placement": placement, "--assume": assume, "--task": tasks}
        for option in (option for option, value in given.items() if value):
            raise InputError(f"{option} does not go with a supernet, which has its own base, space and tasks")
        search_supernet(
            Path(quality),
            model=model,
            blocks=blocks,
            workload=workload,
            budgets=budgets,
            metric=metric,
            items=items,
            evaluations=evaluations or _SCORED,
            executor=executor_of(executor, workers=workers, devices=worker_devices),
            worker_device="cuda" if worker_devices else "cpu",
            output=output,
            resume=resume,
            seed=seed,
            as_json=as_json,
        )
        return
    if base is None:
        raise InputError(
            "--base is missing: give a name from `hwsearch bases`, or the folder of a checkpoint"
        )
    chosen = base_named(base)
    task = search_task(
        chosen,
        preset=preset,
        model=model,
        workload=Workload.from_text(workload, dtype=model.dtype),
        quality=_quality(quality, chosen, tasks),
        assumptions=_assumptions(assume),
        budgets=[parse_budget(text) for text in budgets],
        blocks=blocks,
        placement=architecture_named(placement) if placement else None,
    )
    for text in task.notes:
        note(text)
    measured = isinstance(task.quality, MeasuredQuality)
    if measured and generations is None and evaluations is None and solver != "beam":
        evaluations = _MEASURED
        note(f"at most {_MEASURED} architectures are evaluated: more by --evaluations")
    if not measured and (workers or worker_devices or executor):
        note(
            "workers are not started: every cost of this search is a table look-up, which takes less time than to send "
            "it; they serve a quality that is measured (--quality MODULE:FUNCTION)"
        )
    settings = {**task.identity, "quality": quality, "preset": preset, "budgets": list(budgets)}
    pool = executor_of(executor, workers=workers, devices=worker_devices) if measured else None
    with (
        Study.open(output, settings=settings, resume=resume) as study,
        pool or nullcontext(),
        progress() as bar,
    ):
        watch = _Watch(bar, generations=generations or GENERATIONS, evaluations=evaluations)
        try:
            result = search(
                task.problem,
                seed=seed,
                solver=solver,
                population=population,
                generations=generations or GENERATIONS,
                evaluations=evaluations,
                study=study,
                evaluate=Evaluator(
                    task.problem, seed=seed, executor=pool, study=study, on_evaluation=watch.measured
                )
                if measured
                else None,
                on_generation=watch.advance,
            )
        except HwsearchError:  # with nothing evaluated, the directory stays free
            study.discard()
            raise
    found = Found(task, result)
    if as_json:
        emit_json({"run": str(output), **found.json()})
    else:
        found.show(output, to=console())


def _quality(source: str, base: Base, tasks: tuple[str, ...]) -> LayerSweep | MeasuredQuality:
    measured = measured_quality(source)
    if measured:
        if tasks:
            raise InputError(f"--task {tasks[0]} picks tasks of a sweep: leave it out with {source}")
        return measured
    sweep = load_sweep(source, base=base.name, num_layers=base.num_layers)
    if sweep.model != base.name:
        note(f"the importance of {base.name}'s layers is taken from a sweep of {sweep.model}")
    return sweep.only(tasks) if tasks else sweep


def _assumptions(texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        kind, equals, share = text.partition("=")
        try:
            found[kind.strip()] = float(share)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"--assume {text}: write KIND=SHARE, for example sliding_window_attention=0.5")
    return found


class _Watch:
    """A search as its progress bar shows it."""

    def __init__(self, bar: Bar, *, generations: int, evaluations: int | None) -> None:
        self._bar = bar
        self._by_evaluation = evaluations is not None
        self._row = bar.add_task("searching", total=evaluations or generations, status="")
        self._started = time.perf_counter()
        self._first: int | None = None
        self._measured = self._failed = 0

    def advance(self, at: Progress) -> None:
        """After a generation."""
        self._first = at.evaluations if self._first is None else self._first
        rate = (at.evaluations - self._first) / (time.perf_counter() - self._started)
        parts = ["none within the budgets yet" if at.best is None else f"best {at.best:.3f} points"]
        if at.gap is not None:
            parts.append(f"gap {at.gap:.2%}")
        parts.append(f"hypervolume {at.hypervolume:.4g}")
        parts.append(f"{at.evaluations} evaluated" + (f", {rate:,.3g}/s" if rate else ""))
        if self._failed:
            parts.append(f"{self._failed} failed")
        done = at.evaluations if self._by_evaluation else at.generation
        self._bar.update(self._row, completed=done, status=", ".join(parts))

    def measured(self, evaluation: Evaluation) -> None:
        """After one evaluation that an executor ran."""
        self._measured += 1
        self._failed += evaluation.error is not None
        if self._by_evaluation:
            self._bar.advance(self._row)
        elif self._first is None:
            self._bar.update(self._row, status=f"{self._measured} evaluated")
