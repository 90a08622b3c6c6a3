"""hwsearch proxy: train candidates for a short while from their supernet weights, and rank them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from hwsearch.cli.options import seed_option
from hwsearch.cli.output import console, emit_json, json_option, progress, quiet_transformers
from hwsearch.cli.scores import score_json, score_table
from hwsearch.errors import InputError
from hwsearch.models import require_transformers
from hwsearch.search.executors import ProcessExecutor, visible_devices
from hwsearch.searchspace.references import architecture_named

__all__ = ["command"]


@click.command("proxy")
@click.argument("arch", nargs=-1, required=True)
@click.option(
    "--supernet", required=True, type=click.Path(path_type=Path), help="Folder of `hwsearch supernet`."
)
@click.option("--tokens", required=True, type=click.IntRange(min=1), help="Of the longest training.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak; default: that of the paths.")
@click.option(
    "--halving",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="One in so many goes on; 1: all.",
)
@click.option("--metric", default="mean_loss", show_default=True, help="TASK.accuracy, TASK.loss, kl, ...")
@click.option("--items", type=click.IntRange(min=1), help="Of each task; default: all.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; one by default.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="The teacher, if it has moved.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("cpu",),
    show_default=True,
    help="cpu, or a CUDA device such as cuda:0; repeat it for a process on each of several.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the candidates."
)
@seed_option
@json_option
def command(
    *,
    arch: tuple[str, ...],
    supernet: Path,
    tokens: int,
    lr: float | None,
    halving: int,
    metric: str,
    items: int | None,
    workers: int | None,
    source: Path | None,
    devices: tuple[str, ...],
    output: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Train each ARCH (architecture JSON, or a name from `hwsearch bases`) and score it; the best first.

    Feed-forward networks, norms, embeddings and head stay frozen. Interrupted, the same command goes on. Each candidate
    keeps a folder that `hwsearch build ARCH --supernet FOLDER` takes.
    """
    require_transformers(purpose="hwsearch proxy")
    quiet_transformers()
    import torch

    from hwsearch.surrogate.candidate import CandidateTraining
    from hwsearch.surrogate.processes import device_named
    from hwsearch.surrogate.proxy import ProxyJob, ProxyResult, proxy_recipe, proxy_training
    from hwsearch.surrogate.supernet_folder import SupernetFolder

    placed = [str(device_named(device)) for device in devices]
    if len(devices) > 1:
        if workers:
            raise InputError(
                f"--workers {workers} and several --device: each has one process, leave --workers out"
            )
        placed = ["cuda"]  # the only one that a process sees
    folder = SupernetFolder(supernet, checkpoint=source)
    settings = folder.settings
    per_step = settings.batch * settings.length * settings.recipe.accumulate
    recipe = proxy_recipe(settings.recipe, steps=-(-tokens // per_step), learning_rate=lr, seed=seed)
    names: dict[tuple[int, ...], str] = {}
    for text in arch:
        architecture = architecture_named(text)
        genome = tuple(folder.genome_of(architecture).tolist())
        if genome in names:
            raise InputError(f"{text} and {names[genome]} are the same architecture: leave one of them out")
        names[genome] = text
    own = visible_devices(devices) if len(devices) > 1 else ()
    processes = len(own) or workers or 1
    training = CandidateTraining(
        supernet=supernet,
        recipe=recipe,
        items=items,
        device=placed[0],
        checkpoint=source,
        threads=max(torch.get_num_threads() // processes, 1),
    )
    jobs = [
        ProxyJob(training=training, genome=genome, steps=recipe.b.steps, output=output) for genome in names
    ]
    pool = ProcessExecutor(processes, devices=own) if processes > 1 else nullcontext()
    with pool as executor, progress() as bar:
        row = bar.add_task("training candidates", total=None, status="")

        def advance(result: ProxyResult) -> None:
            status = f"{names[result.genome]}: {metric} {result.score.value(metric):.4f} at {result.tokens:,} tokens"
            bar.update(row, advance=1, status=status)

        found = proxy_training(jobs, executor=executor, metric=metric, halving=halving, on_result=advance)
    ranked = sorted(found.values(), key=lambda result: (-result.steps, result.score.cost(metric)))
    if as_json:
        content = [
            {
                "architecture": names[result.genome],
                "folder": str(result.folder),
                "tokens": result.tokens,
                "train_seconds": result.seconds,
                "score": score_json(result.score),
            }
            for result in ranked
        ]
        emit_json({"supernet": str(supernet), "metric": metric, "candidates": content})
        return
    to = console()
    titles = {f"{names[r.genome]} ({r.tokens:,} tokens)": r.score for r in ranked}
    to.print(score_table(f"Candidates by {metric}, those trained longest first", titles))
    for result in ranked:
        to.print(
            f"{names[result.genome]}: {result.folder}, trained in {result.seconds:.0f} s, "
            f"scored in {result.score.seconds:.1f} s",
            markup=False,
            soft_wrap=True,
        )
