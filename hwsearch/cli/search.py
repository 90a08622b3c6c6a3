"""hwsearch search: architectures that lose least quality within budgets, with the exact optimum beside them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

from hwsearch.cli.options import device_option, seed_option, workload_option
from hwsearch.cli.output import console, emit_json, json_option, milliseconds, note, progress, size, table
from hwsearch.cli.report import model_cost_json, print_model_cost
from hwsearch.cli.search_supernet import search_supernet
from hwsearch.errors import InfeasibleError, InputError
from hwsearch.pipeline.models import cost_model_named
from hwsearch.pipeline.search_task import SearchTask, Verdict, search_task
from hwsearch.search.engine import GENERATIONS, POPULATION, Progress, SearchResult, Solver, search
from hwsearch.search.study import Study
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.budget import parse_budget
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload
from hwsearch.surrogate.importance import LayerSweep, QualityLoss, load_sweep

__all__ = ["command"]

_ROWS = 12  # of the front, in the table; the run's result.json has all


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
    help="Layer importance: qwen3-1.7b-sweep, qwen3-4b-sweep, or a CSV with model,layer,task,metric,value,stderr. "
    "Or the folder of a supernet, whose base and space are then searched.",
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
@click.option("--population", default=POPULATION, show_default=True, type=click.IntRange(min=4))
@click.option("--generations", default=GENERATIONS, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--metric",
    default="mean_loss",
    show_default=True,
    help="With a supernet: TASK.loss, TASK.accuracy, mean_loss, mean_accuracy, kl or perplexity.",
)
@click.option(
    "--items", default=100, show_default=True, type=click.IntRange(min=1), help="The same: of each task."
)
@click.option(
    "--evaluations",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="The same: scores to ask for.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="The same: processes that score.",
)
@seed_option
@json_option
def command(
    *,
    base: str | None,
    preset: str,
    placement: str | None,
    device: str,
    quality: str,
    tasks: tuple[str, ...],
    assume: tuple[str, ...],
    workload: str,
    budgets: tuple[str, ...],
    output: Path,
    resume: bool,
    solver: Solver,
    population: int,
    generations: int,
    metric: str,
    items: int,
    evaluations: int,
    workers: int,
    seed: int,
    as_json: bool,
) -> None:
    """Trade predicted quality loss against predicted latency, within every budget.

    Bi-objective evolution; since quality loss, latency and memory add up over layers, the exact optimum is found
    too and the gap to it is printed. The run directory keeps every evaluation: after a kill, the same command
    with --resume gives the result that the first would have given.

    With a supernet as --quality its scores take the place of the sum: each costs a forward pass over the tasks, so a
    predictor fitted to those so far chooses what to score next.
    """
    model = cost_model_named(device)
    if (Path(quality) / "supernet.json").is_file():
        given = {"--base": base, "--placement": placement, "--assume": assume, "--task": tasks}
        for option, value in given.items():
            if value:
                raise InputError(
                    f"{option} does not go with a supernet, which has its own base, space and tasks"
                )
        search_supernet(
            Path(quality),
            model=model,
            workload=workload,
            budgets=budgets,
            metric=metric,
            items=items,
            evaluations=evaluations,
            workers=workers,
            output=output,
            resume=resume,
            seed=seed,
            as_json=as_json,
        )
        return
    if base is None:
        raise InputError(
            "a search by layer importance needs --base: a name from `hwsearch bases`, or a checkpoint folder"
        )
    chosen = base_named(base)
    sweep = load_sweep(quality, base=chosen.name, num_layers=chosen.num_layers)
    if sweep.model != chosen.name:
        note(f"the importance of {chosen.name}'s layers is taken from a sweep of {sweep.model}")
    task = search_task(
        chosen,
        preset=preset,
        model=model,
        workload=Workload.from_text(workload, dtype=model.dtype),
        sweep=sweep.only(tasks) if tasks else sweep,
        assumptions=_assumptions(assume),
        budgets=[parse_budget(text) for text in budgets],
        placement=architecture_named(placement) if placement else None,
    )
    for text in task.notes:
        note(text)
    settings = {**task.identity, "quality": quality, "preset": preset, "budgets": list(budgets)}
    with Study.open(output, settings=settings, resume=resume) as study:
        try:
            result = _run(
                task, study, solver=solver, population=population, generations=generations, seed=seed
            )
        except InfeasibleError:
            study.discard()
            raise
    found = _Found(task, result)
    if as_json:
        emit_json({"run": str(output), **found.json()})
    else:
        found.show(output, to=console())


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


def _run(
    task: SearchTask, study: Study, *, solver: Solver, population: int, generations: int, seed: int
) -> SearchResult:
    with progress() as bar:
        row = bar.add_task("searching", total=generations, status="")

        started = time.perf_counter()
        before: list[int] = []

        def advance(at: Progress) -> None:
            before.append(at.evaluations)
            rate = (at.evaluations - before[0]) / (time.perf_counter() - started)
            parts = ["none within the budgets yet" if at.best is None else f"best {at.best:.3f} points"]
            if at.gap is not None:
                parts.append(f"gap {at.gap:.2%}")
            parts.append(f"hypervolume {at.hypervolume:.4g}")
            parts.append(f"{at.evaluations} evaluated" + (f", {rate:,.0f}/s" if rate else ""))
            bar.update(row, completed=at.generation, status=", ".join(parts))

        return search(
            task.problem,
            seed=seed,
            solver=solver,
            population=population,
            generations=generations,
            study=study,
            on_generation=advance,
        )


class _Found:
    """A finished search, ready to be shown."""

    def __init__(self, task: SearchTask, result: SearchResult) -> None:
        self.task = task
        self.result = result
        self.best = task.verdict(result.genomes[result.best].tolist(), name=f"{task.space.base.name}-best")
        self.exact: Verdict | None = None
        if result.exact is not None and result.exact.genome is not None:
            self.exact = task.verdict(result.exact.genome, name=f"{task.space.base.name}-exact")

    def json(self) -> dict[str, Any]:
        """The public keys of a search; docs/json.md describes them."""
        task, result = self.task, self.result
        exact = None
        if result.exact is not None and self.exact is not None:
            exact = {"proven": result.exact.proven, **_verdict_json(self.exact)}
        return {
            "base": task.space.base.name,
            "device": task.model.device.name,
            "runtime": task.model.runtime,
            "workload": str(task.workload),
            "budgets": [budget.text for budget in task.problem.budgets],
            "space_size": str(task.space.size),
            "evaluations": result.evaluations,
            "gap": result.gap,
            "exact": exact,
            "best": {**_verdict_json(self.best), "prediction": model_cost_json(self.best.cost, task.model)},
            "knee": result.knee,
            "front": [
                {
                    "pick": i,
                    "quality_loss": float(values[0]),
                    "latency_ms": float(values[1]),
                    "mixers": dict(Counter(task.space.kinds[choice] for choice in genome)),
                }
                for i, (genome, values) in enumerate(zip(result.genomes, result.objectives, strict=True))
            ],
            "notes": list(task.notes),
        }

    def show(self, run: Path, *, to: Console) -> None:
        task, result = self.task, self.result
        shown = table(
            f"Trade-offs within the budgets: {len(result.genomes)} of {task.space.size:.3g} architectures",
            "pick",
            "mixers",
            "quality loss, points",
            "latency ms",
            left=2,
        )
        for i in _spread(len(result.genomes), keep=(result.best, result.knee)):
            kinds = Counter(task.space.kinds[choice] for choice in result.genomes[i])
            loss, latency = result.objectives[i]
            names = [name for name, row in (("best", result.best), ("knee", result.knee)) if row == i]
            shown.add_row(
                " ".join([str(i), *names]),
                ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
                f"{loss:.2f}",
                milliseconds(latency),
            )
        to.print(shown)
        print_model_cost(self.best.cost, task.model, to=to)
        to.print(
            f"{'quality loss':<20}{_loss(self.best.quality)}; {_basis(task.sweep)}",
            markup=False,
            soft_wrap=True,
        )
        tasks = ", ".join(f"{name} {points:+.2f}" for name, points in self.best.quality.tasks.items())
        to.print(f"{'by task':<20}{tasks}", markup=False, soft_wrap=True)
        to.print(f"{'exact optimum':<20}{self._exact_text()}", markup=False, soft_wrap=True)
        to.print(f"{'run':<20}{run}: {result.evaluations} evaluations", markup=False, soft_wrap=True)

    def _exact_text(self) -> str:
        exact, verdict = self.result.exact, self.exact
        if exact is None or verdict is None or self.result.gap is None:
            return "not known: not asked for, not a sum over layers, or the solver ran out of time"
        latency, memory = verdict.cost.latency, verdict.cost.memory
        return (
            f"{_loss(verdict.quality)} at "
            f"{milliseconds(latency.median_ms, latency.low_ms, latency.high_ms)} ms and {size(memory.total_bytes)}, "
            f"{'proven' if exact.proven else 'not proven'}; the search is {self.result.gap:.2%} above it"
        )


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "quality_loss": verdict.quality.points,
        "quality_loss_low": verdict.quality.low,
        "quality_loss_high": verdict.quality.high,
        "quality_loss_by_task": dict(verdict.quality.tasks),
        "latency_ms": verdict.cost.latency.median_ms,
        "memory_bytes": verdict.cost.memory.total_bytes,
        "mixers": dict(verdict.architecture.count()),
        "layer_types": list(verdict.architecture.layer_types),
    }


def _loss(quality: QualityLoss) -> str:
    return f"{quality.points:.2f} points ({quality.low:.2f} to {quality.high:.2f}, 90% interval)"


def _basis(sweep: LayerSweep) -> str:
    return f"sum of measured single-layer drops of {sweep.model}, mean of {len(sweep.tasks)} tasks"


def _spread(count: int, *, keep: Sequence[int]) -> list[int]:
    """Rows of the front to show: evenly spread, the ends and `keep` among them."""
    evenly = (
        {round(i * (count - 1) / (_ROWS - 1)) for i in range(_ROWS)} if count > _ROWS else set(range(count))
    )
    return sorted(evenly | set(keep))
