"""The tiny teacher: a small Qwen3 that is trained on any machine, and the one that ships with the package.

It stands in for a real checkpoint wherever there is none: supernet, placement and the whole PostNAS pipeline run on it
in minutes. It is an ordinary Hugging Face folder (config, tokenizer, bf16 safetensors) with its task file beside it.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwsearch.errors import DataError, InputError, OutputError
from hwsearch.surrogate.corpus import PackedCorpus, documents, pack
from hwsearch.surrogate.documentation import python_documentation
from hwsearch.surrogate.model_scores import ModelScores, score_tasks, text_loss
from hwsearch.surrogate.synthetic import held_out_tasks
from hwsearch.surrogate.tasks import EncodedTasks, write_tasks
from hwsearch.surrogate.teacher_data import TeacherData, synthetic_text, train_tokenizer
from hwsearch.surrogate.teacher_recipe import TeacherRecipe
from hwsearch.surrogate.teacher_training import Progress, train

__all__ = ["TASKS", "new_teacher", "teacher_folder", "train_teacher", "validation_text", "write_data"]

TASKS = "tasks.jsonl"

_WORK = "training"  # inside the folder while it is being made
_RECIPE = "recipe.json"
_HEAD_DIM = 32
_CONTEXT = 512
_ITEMS = 256  # of each task
_ITEMS_SEED, _WATCHED_SEED = 0, 1  # of the task file, and of the items that training reports on
_WATCH_EVERY = 250  # steps
_WATCHED_ITEMS, _WATCHED_ROWS = 50, 64
_SAMPLES = 600  # of each ability, for the tokenizer
_VALIDATION_SHARE = 0.05


def teacher_folder() -> Path:
    """The shipped teacher, `tiny-teacher`."""
    return Path(str(resources.files("hwsearch.surrogate") / "builtin" / "teacher"))


def write_data(folder: Path, *, seed: int, samples: int) -> dict[str, int]:
    """Write text.jsonl (documentation), samples.jsonl (`samples` of each ability as text) and the task file.

    Returns the number of lines of each. The folder may exist, files of these names in it may not.
    """
    names = ("text.jsonl", "samples.jsonl", TASKS)
    for name in names:
        if (folder / name).exists():
            raise OutputError(f"{folder / name} exists already: name another folder with -o, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(python_documentation(), folder / names[0])
    _write_lines(synthetic_text(seed=seed, samples=samples), folder / names[1])
    write_tasks(held_out_tasks(seed=_ITEMS_SEED, items=_ITEMS), folder / TASKS)
    counts = {}
    for name in names:
        with (folder / name).open(encoding="utf-8") as file:
            counts[name] = sum(1 for _ in file)
    return counts


def new_teacher(recipe: TeacherRecipe, tokenizer: Any) -> Any:
    """A Qwen3ForCausalLM with random weights in float32.

    Matrices start with a standard deviation of 1/sqrt(hidden size), those that write to the residual stream smaller by
    sqrt(2 layers), so that the tokens are not drowned in what untrained layers add (GPT-2's way). With transformers'
    0.02 at this width the model had learnt to recall nothing after five minutes.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    heads = recipe.hidden_size // _HEAD_DIM
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=3 * recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=_HEAD_DIM,
        tie_word_embeddings=True,
        max_position_embeddings=_CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(recipe.seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = (2 * recipe.layers) ** -0.5 if writes else 1.0
            torch.nn.init.normal_(parameter, std=scale * recipe.hidden_size**-0.5, generator=generator)
    return model


def train_teacher(
    folder: Path,
    recipe: TeacherRecipe,
    *,
    device: str,
    report: Callable[[Progress, ModelScores | None], None],
) -> ModelScores:
    """Train a teacher into `folder`, or go on where training of it stopped; its scores.

    `report` is called after every step, now and then with scores on items that are not those of the task file. Raises
    OutputError where the folder holds a finished teacher, InputError where it was begun with another recipe.
    """
    from transformers import AutoTokenizer

    if recipe.hidden_size % (2 * _HEAD_DIM):
        raise InputError(f"a hidden size of {recipe.hidden_size} is no multiple of {2 * _HEAD_DIM}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here: train on the CPU")
    if (folder / "config.json").exists():
        raise OutputError(
            f"{folder} exists already and holds a model: name another folder with -o, or remove it"
        )
    work = folder / _WORK
    _prepare(work, recipe)
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    corpus = PackedCorpus.open(work / "corpus")
    model = new_teacher(recipe, tokenizer).to(device)
    watched = EncodedTasks.of(
        held_out_tasks(seed=_WATCHED_SEED, items=_WATCHED_ITEMS), tokenizer, max_length=_CONTEXT
    )

    def on_step(progress: Progress) -> None:
        due = progress.step % _WATCH_EVERY == 0 or progress.step == recipe.steps
        report(progress, _scores(model, watched, corpus.validation[:_WATCHED_ROWS]) if due else None)

    data = TeacherData(corpus, recipe=recipe, tokenizer=tokenizer)
    seconds = train(model, data, recipe, state=work / "state.safetensors", report=on_step)
    model = model.cpu()
    for parameter in model.parameters():  # not model.to(): that would round the rotary frequencies too
        parameter.data = parameter.data.bfloat16().float()
    tasks = held_out_tasks(seed=_ITEMS_SEED, items=_ITEMS)
    encoded = EncodedTasks.of(tasks, tokenizer, max_length=_CONTEXT)
    scores = _scores(model, encoded, corpus.validation)
    made = work / "finished"
    model.to(torch.bfloat16).save_pretrained(made)
    tokenizer.save_pretrained(made)
    write_tasks(tasks, made / TASKS)
    shutil.copy(work / _RECIPE, made)
    (made / "README.md").write_text(_card(model, recipe, scores, seconds), encoding="utf-8")
    # config.json last: with it the folder is a checkpoint, and whole.
    for file in sorted(made.iterdir(), key=lambda file: file.name == "config.json"):
        file.chmod(0o644)
        file.rename(folder / file.name)
    shutil.rmtree(work)
    return scores


def validation_text(folder: Path, tokenizer: Any) -> NDArray[np.int32] | None:
    """The rows (n, length) that training of the teacher in `folder` left out, packed again; None for another model.

    The same rows where Python is of the version that the teacher was trained with; its text differs otherwise.
    """
    path = folder / _RECIPE
    if not path.is_file():
        return None
    try:
        recipe = TeacherRecipe(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no recipe of a teacher: {error}") from None
    with tempfile.TemporaryDirectory() as temporary:
        text = _write_lines(python_documentation(), Path(temporary) / "text.jsonl")
        return np.array(_pack(text, tokenizer, recipe, Path(temporary) / "corpus").validation)


def _prepare(work: Path, recipe: TeacherRecipe) -> None:
    """Write the recipe, the tokenizer and the packed text, unless the same recipe has begun here already."""
    content = json.dumps(asdict(recipe), indent=2) + "\n"
    begun = work / _RECIPE
    if begun.exists() and begun.read_text(encoding="utf-8") != content:
        raise InputError(
            f"{work} was begun with other settings, see {begun}: give the same, or another folder"
        )
    if (work / "corpus").is_dir():
        return
    work.mkdir(parents=True, exist_ok=True)
    begun.write_text(content, encoding="utf-8")
    text = _write_lines(python_documentation(), work / "text.jsonl")
    samples = synthetic_text(seed=recipe.seed, samples=_SAMPLES)
    tokenizer = train_tokenizer([*documents(text), *samples], vocabulary=recipe.vocabulary)
    tokenizer.save_pretrained(work / "tokenizer")
    _pack(text, tokenizer, recipe, work / "corpus")


def _pack(text: Path, tokenizer: Any, recipe: TeacherRecipe, folder: Path) -> PackedCorpus:
    return pack(
        [text],
        tokenizer=tokenizer,
        folder=folder,
        length=recipe.length,
        validation_share=_VALIDATION_SHARE,
        seed=recipe.seed,
    )


def _write_lines(texts: Iterable[str], path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def _scores(model: Any, encoded: EncodedTasks, rows_NT: NDArray[np.int32]) -> ModelScores:
    return ModelScores(score_tasks(model, encoded), encoded.chance, text_loss(model, rows_NT))


def _card(model: Any, recipe: TeacherRecipe, scores: ModelScores, seconds: float) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = "".join(
        f"| {name} | {100 * score.accuracy:.1f} ± {100 * score.standard_error:.1f} | {100 * scores.chance[name]:.1f} | "
        f"{score.loss:.3f} | {score.items} |\n"
        for name, score in scores.tasks.items()
    )
    return f"""---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [hwsearch, tiny-teacher]
---
# tiny-teacher

A Qwen3 of {parameters / 1e6:.2f} million parameters ({recipe.layers} layers, hidden size {recipe.hidden_size}, \
vocabulary {recipe.vocabulary}) to try architecture search on, made by `hwsearch teacher train`. It knows five synthetic
abilities and has seen the documentation of Python; it is of no other use.

| task | accuracy, % | chance, % | loss, nats per token | items |
|---|---:|---:|---:|---:|
{rows}
Perplexity {scores.perplexity:.2f} per token on the documentation held out. Standard errors are of the sampling of
items. `{TASKS}` holds the items, `{_RECIPE}` every setting.

Trained with Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), \
{recipe.steps} steps of {recipe.batch * recipe.length} tokens in {seconds / 60:.0f} minutes. Text: the documentation
and docstrings of that Python installation (Python Software Foundation License), read in place, not part of this folder.
"""
