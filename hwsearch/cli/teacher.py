"""hwsearch teacher: train a tiny teacher, score it, write the data it is made from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwsearch.cli.options import seed_option
from hwsearch.cli.output import (
    console,
    emit_json,
    json_option,
    note,
    progress,
    quiet_transformers,
    table,
    working,
)
from hwsearch.models import require_transformers
from hwsearch.surrogate.teacher_recipe import TeacherRecipe

if TYPE_CHECKING:
    from hwsearch.surrogate.model_scores import ModelScores
    from hwsearch.surrogate.teacher_training import Progress

__all__ = ["command"]

_DEFAULTS = {field.name: field.default for field in fields(TeacherRecipe)}
_SAY_EVERY = 60  # seconds between lines where there is no terminal


def _size(name: str, *flags: str, help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        *flags, name, type=click.IntRange(min=1), default=_DEFAULTS[name], show_default=True, help=help
    )


@click.group("teacher")
def command() -> None:
    """A tiny pretrained model to try everything on; one ships with the package."""


@command.command("train")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@_size("layers", "--layers", help="Decoder layers.")
@_size("hidden_size", "--hidden-size", help="A multiple of 64: an even number of heads.")
@_size("vocabulary", "--vocabulary", help="Tokens of the tokenizer.")
@_size("length", "--length", help="Tokens of a row.")
@_size("batch", "--batch", help="Rows of a step.")
@_size("steps", "--steps", help="Steps.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where.")
@seed_option
@json_option
def train(
    *,
    output: Path,
    layers: int,
    hidden_size: int,
    vocabulary: int,
    length: int,
    batch: int,
    steps: int,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Train a teacher on Python's documentation and on synthetic tasks, from the seed.

    The defaults make the teacher that ships with the package. The folder keeps the state of training until it is done:
    after an interruption the same command goes on from there, and ends with the same weights.
    """
    require_transformers(purpose="hwsearch teacher")
    recipe = TeacherRecipe(
        layers=layers,
        hidden_size=hidden_size,
        vocabulary=vocabulary,
        length=length,
        batch=batch,
        steps=steps,
        seed=seed,
    )
    quiet_transformers()
    from hwsearch.surrogate.teacher import train_teacher

    with progress() as bar:
        task = bar.add_task("training", total=steps, status="")
        said = time.monotonic()

        def report(now: Progress, scores: ModelScores | None) -> None:
            nonlocal said
            bar.update(
                task, completed=now.step, status=f"loss {now.loss:.3f}  {now.tokens_per_s:.0f} tokens/s"
            )
            if scores is not None or (bar.disable and time.monotonic() - said > _SAY_EVERY):
                said = time.monotonic()
                bar.console.print(_line(now, scores), markup=False, soft_wrap=True)

        try:
            scores = train_teacher(output, recipe, device=device, report=report)
        except KeyboardInterrupt:
            note(f"the same command goes on from the last state in {output}")
            raise
    _show(output, scores, as_json=as_json)


@command.command("score")
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--tasks", type=click.Path(path_type=Path), help="A task file; default: the one in the model's folder."
)
@json_option
def score(*, model: Path | None, tasks: Path | None, as_json: bool) -> None:
    """Score a causal language model of Hugging Face format on tasks; without MODEL the shipped teacher.

    A teacher is also scored on the text that its training held out: perplexity. That text is Python's documentation,
    so the figure is the one of training only under the same version of Python.
    """
    require_transformers(purpose="hwsearch teacher")
    quiet_transformers()
    from hwsearch.surrogate.model_scores import ModelScores, load_model, score_tasks, text_loss
    from hwsearch.surrogate.tasks import EncodedTasks, read_tasks
    from hwsearch.surrogate.teacher import TASKS, teacher_folder, validation_text

    folder = model or teacher_folder()
    wanted = read_tasks(tasks or folder / TASKS)
    with working("scoring"):
        loaded, tokenizer = load_model(folder)
        encoded = EncodedTasks.of(wanted, tokenizer, max_length=loaded.config.max_position_embeddings)
        held_out = validation_text(folder, tokenizer)
        loss = None if held_out is None else text_loss(loaded, held_out)
        scores = ModelScores(score_tasks(loaded, encoded), encoded.chance, loss)
    _show(folder, scores, as_json=as_json)


@command.command("data")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write to."
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=5000,
    show_default=True,
    help="Training samples of each synthetic ability.",
)
@seed_option
@json_option
def data(*, output: Path, samples: int, seed: int, as_json: bool) -> None:
    """Write what a teacher is made from: text.jsonl, samples.jsonl (synthetic text) and the task file."""
    require_transformers(purpose="hwsearch teacher")
    from hwsearch.surrogate.teacher import write_data

    with working("reading Python's documentation"):
        lines = write_data(output, seed=seed, samples=samples)
    if as_json:
        emit_json({"output": str(output), "lines": lines})
        return
    for name, count in lines.items():
        console().print(f"{output / name}: {count} lines", markup=False, soft_wrap=True)


def _line(now: Progress, scores: ModelScores | None) -> str:
    text = (
        f"step {now.step}/{now.steps}  loss {now.loss:.3f}  {now.tokens_per_s:.0f} tokens/s  "
        f"{now.seconds_left / 60:.0f} min left"
    )
    if scores is None:
        return text
    tasks = "  ".join(f"{name} {100 * task.accuracy:.0f}%" for name, task in scores.tasks.items())
    return f"{text}  {tasks}  text {scores.text_loss:.3f} nats"


def _show(folder: Path, scores: ModelScores, *, as_json: bool) -> None:
    if as_json:
        emit_json(
            {
                "model": str(folder),
                "tasks": {
                    name: {
                        "accuracy": task.accuracy,
                        "accuracy_stderr": task.standard_error,
                        "chance": scores.chance[name],
                        "loss": task.loss,
                        "items": task.items,
                    }
                    for name, task in scores.tasks.items()
                },
                "perplexity": scores.perplexity,
            }
        )
        return
    shown = table(
        str(folder), "task", "accuracy, %", "standard error", "chance, %", "loss, nats per token", "items"
    )
    for name, task in scores.tasks.items():
        shown.add_row(
            name,
            f"{100 * task.accuracy:.1f}",
            f"{100 * task.standard_error:.1f}",
            f"{100 * scores.chance[name]:.1f}",
            f"{task.loss:.3f}",
            str(task.items),
        )
    console().print(shown)
    if scores.perplexity is None:
        note("no held-out text: the folder was not made by `hwsearch teacher train`")
    else:
        console().print(f"perplexity on held-out text {scores.perplexity:.2f} per token", soft_wrap=True)
