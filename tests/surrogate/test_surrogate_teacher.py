"""Training a teacher: its data, going on after an interruption, what it writes; and the teacher that ships."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hwsearch.errors import InputError, OutputError
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.surrogate import teacher, teacher_training
from hwsearch.surrogate.corpus import PackedCorpus, pack
from hwsearch.surrogate.documentation import python_documentation
from hwsearch.surrogate.model_scores import ModelScores, load_model, score_tasks, text_loss, token_scores
from hwsearch.surrogate.synthetic import ABILITIES, WORDS
from hwsearch.surrogate.tasks import EncodedTasks, Task, read_tasks
from hwsearch.surrogate.teacher_data import TeacherData
from hwsearch.surrogate.teacher_recipe import TeacherRecipe
from hwsearch.surrogate.teacher_training import Progress

RECIPE = TeacherRecipe(
    layers=1, hidden_size=64, vocabulary=400, steps=6, batch=4, length=48, warmup=2, ramp=4
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(teacher.teacher_folder())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> PackedCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text(" ".join(f"word {i} of the text" for i in range(2000)))
    return pack(
        [folder / "text.txt"],
        tokenizer=tokenizer,
        folder=folder / "packed",
        length=RECIPE.length,
        validation_share=0.1,
        seed=0,
    )


def _ignore(progress: Progress) -> None:
    """No report."""


def test_documentation_is_text_in_a_fixed_order() -> None:
    first = [text for _, text in zip(range(90), python_documentation(), strict=False)]
    again = [text for _, text in zip(range(90), python_documentation(), strict=False)]
    assert first == again
    assert len(set(first)) > 80
    assert first[0].startswith('The "assert" statement')
    assert any("docstring" not in text and "Return" in text for text in first[-5:])


def test_a_batch_depends_on_seed_and_step_only(corpus: PackedCorpus, tokenizer: Any) -> None:
    data = TeacherData(corpus, recipe=RECIPE, tokenizer=tokenizer)
    again = TeacherData(corpus, recipe=RECIPE, tokenizer=tokenizer)
    data(0)
    for left, right in zip(data(3), again(3), strict=True):
        assert left.equal(right)
    other = TeacherData(corpus, recipe=dataclasses.replace(RECIPE, seed=1), tokenizer=tokenizer)
    assert not other(3)[0].equal(data(3)[0])


def _samples(ids: list[int], heavy: list[bool], *, end: int) -> Iterator[list[tuple[int, bool]]]:
    """The samples of a row, token by token with whether it is an answer."""
    start = 0
    for position, token in enumerate(ids):
        if token == end:
            yield list(zip(ids[start:position], heavy[start:position], strict=True))
            start = position + 1


def test_answers_carry_the_weight(corpus: PackedCorpus, tokenizer: Any) -> None:
    recipe = dataclasses.replace(
        RECIPE, text_share=0.25, batch=8, ramp=100
    )  # short samples: whole ones in a row
    copies = 0
    for tokens_BT, weights_BT in map(TeacherData(corpus, recipe=recipe, tokenizer=tokenizer), range(4)):
        assert (weights_BT[:2] == 1).all()
        assert set(weights_BT[2:].flatten().tolist()) == {
            np.float32(recipe.plain_weight),
            recipe.answer_weight,
        }
        for ids, heavy in zip(tokens_BT[2:].tolist(), (weights_BT[2:] > 1).tolist(), strict=True):
            for sample in _samples(ids, heavy, end=tokenizer.eos_token_id):
                if "|" in (text := tokenizer.decode([token for token, _ in sample])):
                    answer = tokenizer.decode([token for token, is_answer in sample if is_answer])
                    assert text == f"{text.split(' |')[0]} |{answer}"
                    copies += 1
    assert copies > 2


def test_training_that_was_interrupted_ends_with_the_same_weights(
    corpus: PackedCorpus, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_training, "_SAVE_EVERY", 2)
    data = TeacherData(corpus, recipe=RECIPE, tokenizer=tokenizer)
    whole = teacher.new_teacher(RECIPE, tokenizer)
    teacher_training.train(whole, data, RECIPE, state=tmp_path / "whole", report=_ignore)

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    broken = teacher.new_teacher(RECIPE, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        teacher_training.train(broken, data, RECIPE, state=tmp_path / "broken", report=interrupt)
    steps: list[int] = []
    resumed = teacher.new_teacher(dataclasses.replace(RECIPE, seed=9), tokenizer)  # every weight must be read
    teacher_training.train(
        resumed, data, RECIPE, state=tmp_path / "broken", report=lambda progress: steps.append(progress.step)
    )
    assert steps == [5, 6]
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(resumed.state_dict()[name]), name
    assert not whole.state_dict()["model.norm.weight"].equal(torch.ones(64))


def test_a_state_of_another_recipe_is_refused(corpus: PackedCorpus, tokenizer: Any, tmp_path: Path) -> None:
    data = TeacherData(corpus, recipe=RECIPE, tokenizer=tokenizer)
    model = teacher.new_teacher(RECIPE, tokenizer)
    teacher_training.train(model, data, RECIPE, state=tmp_path / "state", report=_ignore)
    other = dataclasses.replace(RECIPE, steps=7)
    with pytest.raises(InputError, match="other settings"):
        teacher_training.train(model, data, other, state=tmp_path / "state", report=_ignore)


def test_the_rate_rises_stays_and_falls() -> None:
    recipe = TeacherRecipe(steps=1000, warmup=10, decay=0.2)
    rates = np.array([recipe.rate(step) for step in range(1000)])
    assert (np.diff(rates[:10]) > 0).all()
    assert (rates[10:800] == 1).all()
    assert (np.diff(rates[800:]) < 0).all()
    assert 0 < rates[-1] < 0.01


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little text, few items: a whole teacher in a second or two."""
    monkeypatch.setattr(
        teacher, "python_documentation", lambda: iter([f"text number {i} " * 9 for i in range(90)])
    )
    for name, value in (("_ITEMS", 4), ("_WATCHED_ITEMS", 2), ("_SAMPLES", 2), ("_WATCH_EVERY", 3)):
        monkeypatch.setattr(teacher, name, value)


@pytest.mark.usefixtures("small")
def test_a_trained_folder_is_a_checkpoint_and_is_not_trained_again(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    seen: list[tuple[int, ModelScores | None]] = []
    scores = teacher.train_teacher(
        folder, RECIPE, device="cpu", report=lambda progress, scores: seen.append((progress.step, scores))
    )
    assert [step for step, found in seen if found is not None] == [3, 6]
    assert set(scores.tasks) == set(ABILITIES)
    checkpoint = Checkpoint(folder)
    assert checkpoint.base.num_layers == 1
    assert checkpoint.dtype == torch.bfloat16
    assert not (folder / "training").exists()
    assert json.loads((folder / "recipe.json").read_text()) == dataclasses.asdict(RECIPE)
    assert f"Perplexity {scores.perplexity:.2f}" in (folder / "README.md").read_text()

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, _ = load_model(folder)
    encoded = EncodedTasks.of(read_tasks(folder / teacher.TASKS), tokenizer, max_length=512)
    assert score_tasks(model, encoded) == scores.tasks
    held_out = teacher.validation_text(folder, tokenizer)
    assert held_out is not None
    assert text_loss(model, held_out) == pytest.approx(scores.text_loss)
    with pytest.raises(OutputError, match="already"):
        teacher.train_teacher(folder, RECIPE, device="cpu", report=lambda progress, scores: None)


@pytest.mark.usefixtures("small")
def test_a_teacher_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_training, "_SAVE_EVERY", 2)

    def interrupt(progress: Progress, scores: ModelScores | None) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    def nothing(progress: Progress, scores: ModelScores | None) -> None:
        pass

    with pytest.raises(KeyboardInterrupt):
        teacher.train_teacher(tmp_path / "a", RECIPE, device="cpu", report=interrupt)
    assert not (tmp_path / "a" / "config.json").exists()
    other = dataclasses.replace(RECIPE, vocabulary=410)
    with pytest.raises(InputError, match="other settings"):
        teacher.train_teacher(tmp_path / "a", other, device="cpu", report=nothing)
    teacher.train_teacher(tmp_path / "a", RECIPE, device="cpu", report=nothing)
    teacher.train_teacher(tmp_path / "b", RECIPE, device="cpu", report=nothing)
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)


@pytest.mark.usefixtures("small")
def test_data_is_written_once(tmp_path: Path) -> None:
    lines = teacher.write_data(tmp_path / "data", seed=0, samples=3)
    assert lines == {"text.jsonl": 90, "samples.jsonl": 3 * len(ABILITIES), "tasks.jsonl": 4 * len(ABILITIES)}
    with pytest.raises(OutputError, match="already"):
        teacher.write_data(tmp_path / "data", seed=0, samples=3)


def test_token_scores_are_those_of_the_softmax() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    tokens = logits.argmax(dim=-1).roll(1, dims=1)  # row 0: every following token is the most probable
    tokens[1, 3] = (tokens[1, 3] + 1) % 7
    log_probs, hits = token_scores(logits, tokens)
    assert hits.tolist() == [[True] * 5, [True, True, True, False, True]]
    expected = logits.log_softmax(dim=-1)[1, 2, tokens[1, 3]]
    assert log_probs[1, 3] == pytest.approx(float(expected), abs=1e-6)
    assert (log_probs[:, 0] == 0).all()


def test_the_shipped_teacher_solves_every_task(tokenizer: Any) -> None:
    folder = teacher.teacher_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tasks = [Task(task.name, task.items[:48]) for task in read_tasks(folder / teacher.TASKS)]
    scores = score_tasks(model, EncodedTasks.of(tasks, tokenizer, max_length=512))
    least = {"recall": 0.8, "needle": 0.8, "facts": 0.7, "sums": 0.4, "copy": 0.8}
    assert {name: scores[name].accuracy >= bar for name, bar in least.items()} == dict.fromkeys(least, True)


def test_the_shipped_teacher_is_an_ordinary_checkpoint(tokenizer: Any) -> None:
    folder = teacher.teacher_folder()
    base = Checkpoint(folder).base
    assert (base.num_layers, base.hidden_size, base.vocab_size) == (8, 128, len(tokenizer))
    assert dataclasses.asdict(TeacherRecipe()) == json.loads((folder / "recipe.json").read_text())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6e6
    assert all(len(tokenizer(f" {word}")["input_ids"]) == 1 for word in WORDS)
    assert tokenizer.decode(tokenizer("37+58=95 é\n")["input_ids"]) == "37+58=95 é\n"
    assert len(tokenizer("37+58")["input_ids"]) == 5
