"""hwsearch export: an architecture as JSON, or as a model folder that another runtime reads."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hwsearch.cli.output import console, emit_json, json_option, quiet_transformers, working
from hwsearch.errors import DataError, InputError, OutputError
from hwsearch.models import require_transformers
from hwsearch.search.study import read_result
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.references import architecture_named

__all__ = ["command"]

_FORMATS = ("json", "hf", "native", "fla", "jet-nemotron")


@click.command("export")
@click.argument("source")
@click.option(
    "--to",
    "form",
    default="json",
    show_default=True,
    type=click.Choice(_FORMATS),
    help="json: architecture JSON. The others write a model folder: hf our own classes, native a class of "
    "transformers, fla flash-linear-attention, jet-nemotron NVIDIA's code.",
)
@click.option(
    "--pick",
    help="Of a search: best (least quality loss, the default), knee, exact (the optimum), or a number of the front.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The file, or the folder, to write.",
)
@json_option
def command(*, source: str, form: str, pick: str | None, output: Path, as_json: bool) -> None:
    """Write an architecture for another tool. SOURCE: the run of a search, an architecture, or a built model.

    A folder for another runtime holds its config.json; --to native converts the weights too where SOURCE is a folder
    that `hwsearch build` made. Native and fla configs are built without memory first, and every layer is checked;
    what a runtime cannot hold is refused, layer by layer.
    """
    run = Path(source)
    if run.is_dir() and not (run / "config.json").is_file():
        architecture = _architecture(read_result(run), pick or "best", run)
    elif pick is not None:
        raise InputError(f"--pick {pick} chooses from the run of a search; {source} is none: leave it out")
    else:
        architecture = architecture_named(source)
    written: dict[str, Any] = {"class": None, "built": False, "weights": False}
    if form == "json":
        _write(output, architecture.to_json())
    else:
        require_transformers(purpose=f"hwsearch export --to {form}")
        with working("writing"):
            written = _write_folder(output, architecture, form, source=run)
    report = {
        "output": str(output),
        "name": architecture.name,
        "mixers": dict(architecture.count()),
        "targets": list(architecture.targets),
        "to": form,
        **written,
    }
    if as_json:
        emit_json(report)
        return
    targets = ", ".join(architecture.targets) or "none: no class of transformers holds these layers"
    lines = [f"{architecture.name}: {', '.join(f'{n} {kind}' for kind, n in architecture.count().items())}"]
    if form == "json":
        lines.append(f"native classes that can hold it: {targets}")
    else:
        how = (
            "built without memory, every layer checked"
            if report["built"]
            else "by its published rules, not built here"
        )
        lines.append(f"{report['class']}: {how}; {'with' if report['weights'] else 'without'} weights")
    for line in (*lines, f"written to {output}"):
        console().print(line, markup=False, soft_wrap=True)


def _write_folder(output: Path, architecture: Architecture, form: str, *, source: Path) -> dict[str, Any]:
    """Write a model folder; the class it is for, whether that was built to check it, and whether it has weights."""
    from hwsearch.models import native, runtimes
    from hwsearch.models.configuration import SHIM, SHIM_TEXT
    from hwsearch.models.folder import check_absent, new_folder
    from hwsearch.models.hybrid import hybrid_config

    quiet_transformers()
    check_absent(output)
    built_here = (source / "config.json").is_file() and any(source.glob("*.safetensors"))
    if form == "native" and built_here:
        return _convert(output, source)
    config: Any
    if form == "hf":
        name, built, config = "HybridForCausalLM", True, hybrid_config(architecture)
    elif form == "native":
        name, built = native.native_name(architecture), True
        config = native.native_config(architecture, name)
        native.check_layers(config, architecture)
    else:
        made = (runtimes.fla_config if form == "fla" else runtimes.jet_nemotron_config)(architecture)
        name, built, config = made.class_name, made.built, None
        text = json.dumps(made.content, indent=2) + "\n"
    with new_folder(output) as folder:
        if config is not None:
            config.save_pretrained(folder)
        else:
            (folder / "config.json").write_text(text, encoding="utf-8")
        if form == "hf":
            (folder / f"{SHIM}.py").write_text(SHIM_TEXT, encoding="utf-8")
    return {"class": name, "built": built, "weights": False}


def _convert(output: Path, source: Path) -> dict[str, Any]:
    """A built model as a native one, with its weights and tokenizer files."""
    from hwsearch.models.checkpoint import TOKENIZER_FILES
    from hwsearch.models.folder import new_folder
    from hwsearch.models.hybrid import HybridForCausalLM
    from hwsearch.models.native import native_model

    made = native_model(HybridForCausalLM.from_pretrained(source, dtype="auto"))
    with new_folder(output) as folder:
        made.save_pretrained(folder, max_shard_size="5GB")
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                (folder / name).write_bytes((source / name).read_bytes())
    return {"class": type(made).__name__, "built": True, "weights": True}


def _architecture(result: Mapping[str, Any], pick: str, run: Path) -> Architecture:
    try:
        base, choices = result["settings"]["base"], result["settings"]["choices"]
        genome = _genome(result, pick)
        content = {
            "schema_version": 1,
            "name": f"{base['name']}-{run.resolve().name}-{pick}",
            "base": base,
            "layers": [choices[choice] for choice in genome],
        }
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{run} was not written by `hwsearch search` ({error!r} is missing)") from None
    return Architecture.from_content(content, source=str(run))


def _genome(result: Mapping[str, Any], pick: str) -> list[int]:
    front = result["front"]
    if pick == "exact":
        exact = result["exact"]
        if exact is None or exact["genome"] is None:
            raise InputError("--pick exact: this search has no exact optimum; pick best, knee or a number")
        genome: list[int] = exact["genome"]
        return genome
    row = result[pick] if pick in ("best", "knee") else int(pick) if pick.isdecimal() else -1
    if not 0 <= row < len(front):
        raise InputError(f"--pick {pick}: write best, knee, exact, or a number from 0 to {len(front) - 1}")
    chosen: list[int] = front[row]["genome"]
    return chosen


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, so that a failure leaves what was there."""
    if path.is_dir():
        raise OutputError(
            f"cannot write {path}: it is a folder; name a file in it, for example {path / 'arch.json'}"
        )
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place with -o") from None
