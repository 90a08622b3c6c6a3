"""hwsearch build: a Hugging Face model folder from an architecture and, where there is one, a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwsearch.cli.options import seed_option
from hwsearch.cli.output import console, emit_json, json_option, quiet_transformers, size, table, working
from hwsearch.models import require_transformers
from hwsearch.operators import DTYPE_BYTES
from hwsearch.searchspace.references import architecture_named

if TYPE_CHECKING:
    from hwsearch.models.convert import LayerOrigin

__all__ = ["command"]

_REPORT, _RECIPE = "hwsearch_build.json", "training_recipe.json"


@click.command("build")
@click.argument("arch")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Folder of the Qwen2, Qwen3 or Llama checkpoint to inherit from; without it the weights are random.",
)
@click.option(
    "--supernet",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Take the trained mixers of this supernet, or proxy candidate, and the rest from its teacher.",
)
@click.option(
    "--dtype", type=click.Choice(list(DTYPE_BYTES)), help="Of the weights; default: the checkpoint's."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@seed_option
@json_option
def command(
    *,
    arch: str,
    source: Path | None,
    supernet: Path | None,
    dtype: str | None,
    output: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Make a model folder of ARCH: an architecture JSON, or a name from `hwsearch bases`.

    The folder works with AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True) wherever hwsearch is
    installed. Its hwsearch_build.json tells where each layer's parameters come from. With --supernet a
    training_recipe.json lies beside it, which examples/finetune.py reads.
    """
    require_transformers(purpose="hwsearch build")
    import torch

    from hwsearch.models.checkpoint import Checkpoint
    from hwsearch.models.convert import build_model
    from hwsearch.models.folder import check_absent, new_folder

    quiet_transformers()
    check_absent(output)
    architecture = architecture_named(arch)
    checkpoint = None if source is None else Checkpoint(source)
    wanted = None if dtype is None else getattr(torch, dtype)
    recipe = None
    with working("building the model"):
        if supernet is None:
            model, origins = build_model(architecture, checkpoint=checkpoint, dtype=wanted, seed=seed)
        else:
            from hwsearch.surrogate.export import path_model, training_recipe
            from hwsearch.surrogate.supernet_folder import SupernetFolder

            folder_of = SupernetFolder(supernet, checkpoint=source)
            model, origins = path_model(folder_of, architecture, dtype=wanted)
            checkpoint, recipe = folder_of.checkpoint, training_recipe(folder_of, architecture)
        report = {
            "architecture": architecture.name,
            "checkpoint": None if checkpoint is None else str(checkpoint.folder),
            "supernet": None if supernet is None else str(supernet),
            "dtype": str(model.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "layers": [asdict(origin) for origin in origins],
        }
        with new_folder(output) as folder:
            model.save_pretrained(folder, max_shard_size="5GB")
            copied = () if checkpoint is None else checkpoint.extra_files
            for file in copied:
                (folder / file.name).write_bytes(file.read_bytes())
            if recipe is not None:
                (folder / _RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
            (folder / _REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if as_json:
        emit_json({"output": str(output), **report})
        return
    _show(output, report, origins, copied=[file.name for file in copied])


def _show(output: Path, report: dict[str, Any], origins: Sequence[LayerOrigin], *, copied: list[str]) -> None:
    to = console()
    shown = table(
        f"Where the parameters of {report['architecture']} come from",
        "layers",
        "mixer",
        "mapped from attention",
        "trained in the supernet",
        "new",
        left=5,
    )
    for _, group in groupby(
        origins, key=lambda origin: (origin.mixer, origin.mapped, origin.trained, origin.new)
    ):
        same = list(group)
        first, last = same[0], same[-1]
        shown.add_row(
            str(first.index) if first is last else f"{first.index}-{last.index}",
            first.mixer,
            _short(first.mapped),
            _short(first.trained),
            _short(first.new) if first.inherited or first.mapped else "everything",
        )
    to.print(shown)
    if report["checkpoint"] is not None:
        to.print(f"everything else inherited from {report['checkpoint']}", markup=False, soft_wrap=True)
        to.print(f"copied: {', '.join(copied) or 'no tokenizer files there'}", markup=False, soft_wrap=True)
    bytes_each = DTYPE_BYTES[report["dtype"]]
    to.print(
        f"written to {output}: {report['parameters'] / 1e9:.3f} B parameters, {report['dtype']}, "
        f"{size(report['parameters'] * bytes_each)}",
        markup=False,
        soft_wrap=True,
    )


def _short(names: Sequence[str]) -> str:
    return ", ".join(name.removeprefix("mixer.").removesuffix(".weight") for name in names)
