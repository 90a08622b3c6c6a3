"""hwsearch postnas: from a checkpoint and budgets to a hybrid architecture with weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from hwsearch.cli.importance import plot_importance
from hwsearch.cli.options import device_option, seed_option, workload_option
from hwsearch.cli.output import (
    console,
    emit_json,
    json_option,
    milliseconds,
    note,
    progress,
    quiet_transformers,
    table,
)
from hwsearch.errors import DependencyError, InputError
from hwsearch.models import require_transformers
from hwsearch.operators import DTYPE_BYTES
from hwsearch.searchspace.budget import COUNTED_KINDS, parse_budget
from hwsearch.searchspace.workload import Workload

if TYPE_CHECKING:
    from hwsearch.pipeline.postnas import Postnas
    from hwsearch.surrogate.training import Progress

__all__ = ["command"]

_BLOCKS = "gated_delta_net,jet_block,gla"


@click.command("postnas")
@click.argument("checkpoint")
@device_option
@workload_option
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    help='For example "latency<=6ms", "memory<=70GiB", "throughput>=5000"; may be repeated.',
)
@click.option(
    "--data",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="Text: .txt, .md, .jsonl, .parquet, or the folder of a packed corpus; may be repeated.",
)
@click.option(
    "--tasks",
    type=click.Path(path_type=Path, exists=True),
    help="Task items, jsonl; default: tasks.jsonl in the checkpoint's folder.",
)
@click.option(
    "--full",
    type=click.IntRange(min=1),
    help="Layers with full attention; default: one in twelve, at least 2.",
)
@click.option(
    "--windows", type=click.IntRange(min=0), help="Layers with sliding window attention; default: as many."
)
@click.option("--blocks", default=_BLOCKS, show_default=True, help="Linear blocks to choose from, by commas.")
@click.option(
    "--objective", default="mean_loss", show_default=True,
    help="Metric that places full attention: TASK.loss, TASK.accuracy, mean_loss, mean_accuracy, kl.",
)  # fmt: skip
@click.option("--window-objective", help="Metric that places sliding windows; default: the same.")
@click.option(
    "--guard/--no-guard", default=True, show_default=True,
    help="Place windows so that no task falls behind uniform, first or last full attention, where that can be.",
)  # fmt: skip
@click.option(
    "--metric", default="mean_loss", show_default=True, help="Metric that compares blocks and shapes."
)
@click.option("--width", default=4, show_default=True, type=click.IntRange(min=1), help="Of the beam.")
@click.option("--steps-a", default=100, show_default=True, type=click.IntRange(min=0), help="Local steps.")
@click.option("--steps-b", default=200, show_default=True, type=click.IntRange(min=0), help="Path steps.")
@click.option("--proxy-steps", default=100, show_default=True, type=click.IntRange(min=1),
              help="Steps of a block or shape trained alone, behind half as many local ones.")  # fmt: skip
@click.option("--batch", default=16, show_default=True, type=click.IntRange(min=1), help="Rows of a step.")
@click.option("--length", type=click.IntRange(min=2), help="Tokens of a row; default: 1024 or what fits.")
@click.option("--items", default=100, show_default=True, type=click.IntRange(min=1),
              help="Items of each task that choose; the others judge the result.")  # fmt: skip
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPE_BYTES)),
    help="Of the weights; default: the checkpoint's on a GPU, float32.",
)
@click.option("--train-device", default="cpu", show_default=True, help="Where to train: cpu, cuda, cuda:1.")
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Candidates trained at a time.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Run directory.")
@seed_option
@json_option
def command(
    *,
    checkpoint: str,
    device: str,
    workload: str,
    budgets: tuple[str, ...],
    data: tuple[Path, ...],
    tasks: Path | None,
    full: int | None,
    windows: int | None,
    blocks: str,
    objective: str,
    window_objective: str | None,
    guard: bool,
    metric: str,
    width: int,
    steps_a: int,
    steps_b: int,
    proxy_steps: int,
    batch: int,
    length: int | None,
    items: int,
    dtype: str | None,
    train_device: str,
    workers: int,
    output: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Find where CHECKPOINT needs full attention, which linear block it takes, and in which shape, within budgets.

    CHECKPOINT is a Qwen2, Qwen3 or Llama folder, or tiny-teacher, which ships with hwsearch. Supernet, importance,
    placement of full attention and of sliding windows, choice of the block, hardware-aware grid, export: each step is
    kept in the run directory, and after a kill the same command goes on. docs/postnas.md explains the steps.
    """
    require_transformers(purpose="hwsearch postnas")
    import torch

    from hwsearch.models.checkpoint import Checkpoint
    from hwsearch.pipeline.blocks import load_blocks
    from hwsearch.pipeline.models import cost_model_named
    from hwsearch.pipeline.postnas import Postnas
    from hwsearch.pipeline.postnas_plan import Plan
    from hwsearch.pipeline.postnas_report import write_report
    from hwsearch.search.executors import ProcessExecutor
    from hwsearch.surrogate.processes import device_named
    from hwsearch.surrogate.supernet_settings import SupernetSettings
    from hwsearch.surrogate.teacher import TASKS, teacher_folder
    from hwsearch.surrogate.training import Recipe, Stage

    quiet_transformers()
    place = device_named(train_device)
    bounds = tuple(parse_budget(text) for text in budgets)
    for bound in bounds:
        if bound.metric in COUNTED_KINDS:
            raise InputError(
                f"budget {bound.text!r}: say how many layers of which kind by --full and --windows"
            )
    source = Checkpoint(teacher_folder() if checkpoint == "tiny-teacher" else Path(checkpoint))
    base = source.base
    asked = tasks or source.folder / TASKS
    if not asked.is_file():
        raise InputError(f"{source.folder} has no {TASKS} beside it: name a file of task items by --tasks")
    model = cost_model_named(device)
    count = full or max(base.num_layers // 12, 2)
    plan = Plan(
        sources=data,
        tasks=asked,
        full=count,
        windows=count if windows is None else windows,
        blocks=tuple(name.strip() for name in blocks.split(",")),
        objective=objective,
        window_objective=window_objective or objective,
        guarded=guard,
        metric=metric,
        width=width,
        supernet=SupernetSettings(
            recipe=Recipe(
                a=Stage(steps=steps_a, learning_rate=2e-3),
                b=Stage(steps=steps_b, learning_rate=1e-3),
                seed=seed,
            ),
            batch=batch,
            length=length or min(1024, base.max_position_embeddings),
            dtype=dtype or ("float32" if place.type == "cpu" else None),
        ),
        candidate=Recipe(
            a=Stage(steps=proxy_steps // 2, learning_rate=2e-3),
            b=Stage(steps=proxy_steps, learning_rate=1e-3),
            seed=seed,
        ),
        items=items,
        text_rows=16,
        budgets=bounds,
        seed=seed,
    )
    with progress() as bar:
        row = bar.add_task("postnas", total=None, status="")

        def advance(at: Progress) -> None:
            losses = ", ".join(f"{name} {value:.3f}" for name, value in at.losses.items())
            bar.update(row, completed=at.step, total=at.steps, status=f"stage {at.stage}, {losses}")

        def tell(step: str) -> None:
            bar.update(row, description=step, completed=0, total=None, status="")
            if bar.disable:
                note(step)

        postnas = Postnas(
            output,
            plan,
            checkpoint=source,
            model=model,
            workload=Workload.from_text(workload, dtype=model.dtype),
            blocks=load_blocks(Path(device)),
            executor=lambda: ProcessExecutor(workers),
            threads=max(torch.get_num_threads() // workers, 1),
            train_device=str(place),
            tell=tell,
            on_step=advance,
        )
        found = postnas.go()
    heatmap: str | None = "importance.png"
    try:
        plot_importance(postnas.layer_scores(), path=output / "importance.png")
    except DependencyError as error:
        heatmap = None
        note(f"no heatmap: {error}")
    report = write_report(postnas, found, heatmap=heatmap)
    if as_json:
        emit_json(_json(postnas, found))
    else:
        _show(postnas, found, report, to=console())


def _json(postnas: Postnas, found: Mapping[str, Any]) -> dict[str, Any]:
    end = found["export"]
    return {
        "run": str(postnas.run),
        "base": postnas.checkpoint.base.name,
        "device": postnas.model.device.name,
        "workload": str(postnas.workload),
        "budgets": [budget.text for budget in postnas.plan.budgets],
        "full_attention_layers": [
            i
            for i, choice in enumerate(found["placement"]["genome"])
            if postnas.space.kinds[choice] == "full_attention"
        ],
        "layer_types": found["grid"]["architecture"]["layer_types"],
        "block": found["blocks"]["best"],
        "blocks": found["blocks"]["rows"],
        "grid": found["grid"]["rows"],
        "teacher": end["teacher"],
        "model": end["model"],
        "prediction": end["prediction"],
        "teacher_prediction": end["teacher_prediction"],
    }


def _show(postnas: Postnas, found: Mapping[str, Any], report: Path, *, to: Console) -> None:
    end = found["export"]
    tasks = list(end["teacher"]["tasks"])
    shown = table(
        "On items that chose nothing", "", *(f"{task} %" for task in tasks), "KL nats", "latency ms"
    )
    for name, key, price in (("teacher", "teacher", "teacher_prediction"), ("model", "model", "prediction")):
        score, cost = end[key], end[price]
        shown.add_row(
            name,
            *(f"{100 * score['tasks'][task]['accuracy']:.1f}" for task in tasks),
            f"{score['kl']:.4f}",
            milliseconds(cost["latency_ms"], cost["latency_ms_low"], cost["latency_ms_high"]),
        )
    to.print(shown)
    kinds = found["grid"]["architecture"]["layer_types"]
    to.print(
        f"full attention at {[i for i, kind in enumerate(kinds) if kind == 'full_attention']}, sliding windows at "
        f"{[i for i, kind in enumerate(kinds) if kind == 'sliding_attention']}, {found['blocks']['best']} elsewhere; "
        f"latency predicted for {postnas.model.device.name} at {postnas.workload}",
        markup=False,
        soft_wrap=True,
    )
    to.print(f"{report}, {postnas.run / 'arch.json'}, {postnas.run / 'model'}", markup=False, soft_wrap=True)
