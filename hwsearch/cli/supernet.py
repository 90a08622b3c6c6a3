"""hwsearch supernet: train further mixers beside the frozen attention of a checkpoint."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click
import numpy as np

from hwsearch.cli.options import seed_option
from hwsearch.cli.output import (
    console,
    emit_json,
    json_option,
    note,
    progress,
    quiet_transformers,
    size,
    working,
)
from hwsearch.cli.scores import score_json, score_table
from hwsearch.errors import InputError, unknown_name
from hwsearch.models import require_transformers
from hwsearch.searchspace.budget import COUNTED_KINDS, parse_budget
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.space import CountLimit, SearchSpace

if TYPE_CHECKING:
    import torch

    from hwsearch.surrogate.distil import LossWeights
    from hwsearch.surrogate.supernet_folder import SupernetFolder
    from hwsearch.surrogate.training import Progress, Trained

__all__ = ["command"]

_SAMPLINGS = ("uniform", "balanced", "feasible")
TINY_TEACHER = "tiny-teacher"
_SAMPLES = 5000  # of each ability, beside the documentation of Python
_SAY_EVERY_S = 60  # where there is no terminal
_ITEMS = 50  # of each task, in the table at the end


@click.command("supernet")
@click.argument("checkpoint", default=TINY_TEACHER)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Text: .txt, .md, .jsonl, .parquet, or the folder of a packed corpus; may be repeated.",
)
@click.option("--tasks", type=click.Path(path_type=Path, exists=True), help="Task items, jsonl.")
@click.option(
    "--space", "preset", default="postnas-placement", show_default=True, help="A name or a space file."
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="KIND<=N",
    help="Train paths with so many layers of a kind only, as a search under that limit will; may be repeated.",
)
@click.option("--steps-a", default=100, show_default=True, type=click.IntRange(min=0), help="Local steps.")
@click.option("--steps-b", default=200, show_default=True, type=click.IntRange(min=0), help="Path steps.")
@click.option("--lr-a", default=2e-3, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--lr-b", default=1e-3, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--batch", default=8, show_default=True, type=click.IntRange(min=1), help="Rows.")
@click.option("--length", type=click.IntRange(min=2), help="Tokens of a row; default: 1024 or what fits.")
@click.option(
    "--accumulate", default=1, show_default=True, type=click.IntRange(min=1), help="Batches of a step."
)
@click.option("--paths", default=1, show_default=True, type=click.IntRange(min=1), help="Paths of a step.")
@click.option("--sampling", default="feasible", show_default=True, type=click.Choice(_SAMPLINGS))
@click.option(
    "--loss",
    "losses",
    multiple=True,
    metavar="NAME=WEIGHT",
    help="Of feature, kl and task in path steps, default 1, 1, 0; may be repeated.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the weights; default: the checkpoint's on a GPU, float32.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1; torchrun sets its own.")
@click.option(
    "--train-attention", is_flag=True, help="Train a copy of the softmax path too, as the paper does."
)
@click.option("--recompute", is_flag=True, help="Save memory by computing layers twice.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the supernet."
)
@seed_option
@json_option
def command(
    *,
    checkpoint: str,
    data: tuple[Path, ...],
    tasks: Path | None,
    preset: str,
    limits: tuple[str, ...],
    steps_a: int,
    steps_b: int,
    lr_a: float,
    lr_b: float,
    batch: int,
    length: int | None,
    accumulate: int,
    paths: int,
    sampling: str,
    losses: tuple[str, ...],
    dtype: str | None,
    device: str,
    train_attention: bool,
    recompute: bool,
    output: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Train a supernet of CHECKPOINT: a Qwen2, Qwen3 or Llama folder, or the tiny teacher that ships with hwsearch,
    for which text and tasks ship too.

    Feed-forward networks, norms, embeddings, head and attention stay as they are. Interrupted, the same command goes on
    where it was. Started by torchrun, each process trains on its own rows.
    """
    require_transformers(purpose="hwsearch supernet")
    quiet_transformers()
    from hwsearch.models.checkpoint import Checkpoint
    from hwsearch.surrogate.processes import device_named, is_first, joined, wait
    from hwsearch.surrogate.supernet_folder import SupernetFolder
    from hwsearch.surrogate.supernet_settings import SupernetSettings
    from hwsearch.surrogate.teacher import TASKS, teacher_folder
    from hwsearch.surrogate.teacher_recipe import TeacherRecipe
    from hwsearch.surrogate.training import Recipe, Stage

    tiny = checkpoint == TINY_TEACHER
    source = Checkpoint(teacher_folder() if tiny else Path(checkpoint))
    base = source.base
    settings = SupernetSettings(
        recipe=Recipe(
            a=Stage(steps=steps_a, learning_rate=lr_a),
            b=Stage(steps=steps_b, learning_rate=lr_b),
            losses=_losses(losses),
            sampling=sampling,  # type: ignore[arg-type]
            paths=paths,
            accumulate=accumulate,
            recompute=recompute,
            seed=seed,
        ),
        batch=batch,
        length=length or (TeacherRecipe().length if tiny else min(1024, base.max_position_embeddings)),
        dtype=dtype or ("float32" if device_named(device).type == "cpu" else None),
        train_attention=train_attention,
    )
    if not tiny and (not data or tasks is None):
        raise InputError(f"a supernet of {checkpoint} needs text and tasks: give --data and --tasks")
    space = _limited(space_named(preset, base), limits)
    folder = SupernetFolder(output)
    with joined(device) as place:
        if is_first():
            with tempfile.TemporaryDirectory() as made:
                sources = data or _teacher_text(Path(made), written=folder.exists)
                items = tasks or source.folder / TASKS
                folder.create(checkpoint=source, space=space, sources=sources, tasks=items, settings=settings)
        wait()
        trained = _train(folder, place, shown=is_first())
        wait()
        if is_first():
            _report(folder, trained, place, as_json=as_json)


def _teacher_text(place: Path, *, written: bool) -> list[Path]:
    """What the tiny teacher was trained on, made in a folder unless it was packed before."""
    from hwsearch.surrogate.teacher import write_data

    if not written:
        write_data(place, seed=0, samples=_SAMPLES)
    return [place / "text.jsonl", place / "samples.jsonl"]


def _losses(texts: Sequence[str]) -> LossWeights:
    from hwsearch.surrogate.distil import LossWeights

    found: dict[str, float] = {}
    for text in texts:
        name, _, weight = text.partition("=")
        if name not in ("feature", "kl", "task"):
            raise unknown_name(f"loss in {text!r}", name, ["feature", "kl", "task"])
        try:
            found[name] = float(weight)
        except ValueError:
            raise InputError(f"--loss {text}: write NAME=WEIGHT, for example kl=0.5") from None
    return LossWeights(**found)


def _limited(space: SearchSpace, limits: Sequence[str]) -> SearchSpace:
    for text in limits:
        budget = parse_budget(text)
        if budget.metric not in COUNTED_KINDS:
            raise InputError(f"--limit {text}: it bounds a number of layers, for example full_attention<=2")
        value = int(budget.value)
        space = space.limit(
            budget.metric,
            CountLimit(at_most=value) if budget.sense == "<=" else CountLimit(at_least=value),
        )
    return space


def _train(folder: SupernetFolder, device: torch.device, *, shown: bool) -> Trained:
    """Train with a bar; Ctrl-C ends the step, keeps the state and only then the command."""
    recipe, said = folder.settings.recipe, [time.monotonic()]
    with progress() as bar, _asked_to_stop() as asked:
        rows = {
            name: bar.add_task(text, total=stage.steps, status="", visible=shown)
            for name, text, stage in (("a", "local", recipe.a), ("b", "paths", recipe.b))
        }

        def advance(at: Progress) -> None:
            status = ", ".join(f"{name} {value:.3f}" for name, value in at.losses.items())
            status += f", {at.tokens_per_s:,.0f} tokens/s, {size(at.memory_bytes)}"
            bar.update(rows[at.stage], completed=at.step, status=status)
            if shown and bar.disable and time.monotonic() - said[0] > _SAY_EVERY_S:
                said[0] = time.monotonic()
                note(
                    f"stage {at.stage}, step {at.step} of {at.steps}: {status}, {at.eta_s / 60:.0f} min left"
                )

        return folder.train(device=device, on_step=advance, stop=asked)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or a termination signal came; a second one acts at once."""
    asked: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(folder: SupernetFolder, trained: Trained, device: torch.device, *, as_json: bool) -> None:
    """The teacher beside the paths that use one kind of mixer wherever they can."""
    supernet = folder.supernet(device=device)
    scorer = folder.scorer(supernet, items=_ITEMS)
    paths = {"teacher": supernet.teacher_genome.tolist()}
    for choice, layer in enumerate(supernet.space.choices):
        genome = [choice if choice in options else options[0] for options in supernet.space.allowed]
        paths.setdefault(f"all {layer.mixer.kind} {layer.mixer.label}".strip(), genome)
    with working("scoring"):
        scores = dict(zip(paths, scorer.scores(np.array(list(paths.values()))), strict=True))
    last = trained.history[-1] if trained.history else {}
    if as_json:
        emit_json(
            {
                "supernet": str(folder.folder),
                "trainable_parameters": sum(p.numel() for p in supernet.trainable.values()),
                "frozen_parameters": sum(p.numel() for p in supernet.teacher.parameters()),
                "tokens": trained.tokens,
                "seconds": trained.seconds,
                "memory_bytes": trained.memory_bytes,
                "last_step": dict(last),
                "paths": {name: score_json(score) for name, score in scores.items()},
            }
        )
        return
    to = console()
    to.print(score_table("Paths of the supernet", scores))
    each = np.mean([score.seconds for score in scores.values()])
    to.print(
        f"{folder.folder}: {trained.tokens:,} tokens in {trained.seconds:.0f} s (of this run), "
        f"{size(trained.memory_bytes)} at most; {each:.2f} s to score a candidate",
        markup=False,
        soft_wrap=True,
    )
