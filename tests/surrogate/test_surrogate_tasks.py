"""Task files, their encoding, and what a score means."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from hwsearch.errors import DataError, InputError
from hwsearch.surrogate.synthetic import ABILITIES, held_out_tasks
from hwsearch.surrogate.tasks import EncodedTasks, Task, TaskItem, TaskScore, read_tasks, write_tasks
from tests.surrogate.letters import Letters

COMPLETION = TaskItem("ab", ("cd",), 0)
CHOICE = TaskItem("ab", (" c", " dd", " e"), 1)
TASKS = (Task("copy", (COMPLETION, TaskItem("a", ("b",), 0))), Task("facts", (CHOICE,)))


def test_a_task_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    tasks = (*TASKS, *held_out_tasks(seed=3, items=7))
    tasks = (*tasks[:2], *(Task(f"more {task.name}", task.items) for task in tasks[2:]))
    write_tasks(tasks, tmp_path / "tasks.jsonl")
    assert read_tasks(tmp_path / "tasks.jsonl") == tasks


def test_odd_characters_survive_a_task_file(tmp_path: Path) -> None:
    tasks = (Task("odd", (TaskItem("a\u2028b\nc", ("\u00e9 \u4e2d",), 0),)),)
    write_tasks(tasks, tmp_path / "tasks.jsonl")
    assert read_tasks(tmp_path / "tasks.jsonl") == tasks


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ('{"task": "a", "prompt": "b"}', "keys"),
        ('["a"]', "keys"),
        ('{"task": "a", "prompt": "b", "completion": 1}', "text"),
        ('{"task": "a", "question": "b", "choices": ["c"], "answer": 0}', "two or more"),
        ('{"task": "a", "question": "b", "choices": ["c", "d"], "answer": 2}', "got 2"),
        ('{"task": "a", "question": "b", "choices": ["c", "d"], "answer": true}', "got True"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task": "a", "prompt": "b", "completion": "c"}\n' + line + "\n")
    with pytest.raises(DataError, match=f"line 2: .*{said}"):
        read_tasks(path)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for name in ("empty.jsonl", "missing.jsonl"):
        with pytest.raises(DataError, match=name):
            read_tasks(tmp_path / name)


def test_rows_hold_every_choice_with_its_tokens_marked() -> None:
    encoded = EncodedTasks.of(TASKS, Letters(), max_length=6)
    assert len(encoded) == 5
    assert encoded.tokens_NT.shape == (5, 5)  # "ab dd" is the longest
    assert encoded.item_N.tolist() == [0, 1, 2, 2, 2]
    assert encoded.choice_N.tolist() == [0, 0, 0, 1, 2]
    marked = [
        Letters().text(row[mark]) for row, mark in zip(encoded.tokens_NT, encoded.completion_NT, strict=True)
    ]
    assert marked == ["cd", "b", " c", " dd", " e"]
    assert encoded.lengths_N.tolist() == [4, 2, 4, 5, 4]
    assert (encoded.tokens_NT[1, 2:] == Letters.pad_token_id).all()


def test_a_merge_across_the_border_belongs_to_the_completion() -> None:
    letters = Letters(merged="bc")
    encoded = EncodedTasks.of(TASKS[:1], letters, max_length=6)
    assert letters.text(encoded.tokens_NT[0][encoded.completion_NT[0]]) == "bcd"


@pytest.mark.parametrize(
    ("tasks", "limit"), [(TASKS, 4), ((Task("x", (TaskItem("", ("a",), 0),)),), 9), ((), 9)]
)
def test_what_cannot_be_encoded_is_refused(tasks: tuple[Task, ...], limit: int) -> None:
    with pytest.raises(InputError):
        EncodedTasks.of(tasks, Letters(), max_length=limit)


def test_scores_follow_from_log_probabilities_and_hits() -> None:
    encoded = EncodedTasks.of(TASKS, Letters(), max_length=6)
    log_probs = np.full(encoded.tokens_NT.shape, np.nan)  # outside the completions anything may stand
    hits = np.zeros(encoded.tokens_NT.shape, dtype=bool)
    log_probs[encoded.completion_NT] = -1.0
    log_probs[0, 2:4] = -0.5, -1.5
    hits[0, 2:4] = True, False  # one token of two: the item is wrong
    hits[1, 1] = True
    log_probs[3, 2:5] = -0.5  # three tokens, sum -1.5: less than the -2 of the two others
    scores = encoded.score(log_probs, hits)
    assert scores["copy"] == TaskScore(accuracy=0.5, loss=1.0, items=2)
    assert scores["facts"] == TaskScore(accuracy=1.0, loss=0.5, items=1)
    log_probs[3, 2:5] = -0.7  # sum -2.1
    assert encoded.score(log_probs, hits)["facts"].accuracy == 0


def test_batches_cover_every_row_once_and_cut_the_padding() -> None:
    encoded = EncodedTasks.of(held_out_tasks(seed=0, items=6), Letters(), max_length=2000)
    seen: list[int] = []
    for index, tokens in encoded.batches(7):
        assert tokens.shape == (len(index), encoded.lengths_N[index].max())
        np.testing.assert_array_equal(tokens, encoded.tokens_NT[index, : tokens.shape[1]])
        assert 1 <= len(index) <= 7
        assert tokens.shape[1] <= max(
            1.25 * encoded.lengths_N[index].min(), encoded.lengths_N[index].min() + 8
        )
        seen += index.tolist()
    assert sorted(seen) == list(range(len(encoded)))


def test_chance_is_a_choice_at_random_or_the_commonest_completion() -> None:
    yes = TaskItem("a", ("yes",), 0)
    assert Task("x", (yes, yes, TaskItem("a", ("no",), 0))).chance == pytest.approx(2 / 3)
    assert Task("x", (CHOICE, CHOICE)).chance == pytest.approx(1 / 3)


def test_items_depend_on_the_seed_only() -> None:
    assert held_out_tasks(seed=1, items=5) == held_out_tasks(seed=1, items=5)
    assert held_out_tasks(seed=1, items=5) != held_out_tasks(seed=2, items=5)


@pytest.mark.parametrize("name", list(ABILITIES))
def test_items_never_stand_in_training_samples(name: str) -> None:
    ability = ABILITIES[name]
    rng = Random(0)
    text = "\n".join(ability.sample(rng, 1.0).text for _ in range(3000))
    for item in (ability.item(rng) for _ in range(200)):
        assert "\n" + item.prompt not in text


@pytest.mark.parametrize("name", list(ABILITIES))
def test_samples_grow_with_reach(name: str) -> None:
    def mean(reach: float) -> float:
        rng = Random(1)
        return sum(len(ABILITIES[name].sample(rng, reach).text) for _ in range(100)) / 100

    assert mean(0.0) * 1.5 < mean(0.4) < mean(1.0)


@pytest.mark.parametrize("name", list(ABILITIES))
def test_answers_of_samples_are_marked_and_right(name: str) -> None:
    rng = Random(5)
    for _ in range(50):
        sample = ABILITIES[name].sample(rng, 1.0)
        spans = [sample.text[start:stop] for start, stop in sample.answers]
        assert spans
        assert all(spans)
        _CHECKS[name](sample.text, spans)


def _check_recall(text: str, spans: list[str]) -> None:
    told: dict[str, str] = {}
    asked = []
    for pair in text.replace(";", ",").split(","):
        if pair:
            key, value = pair.split()
            if key in told:
                asked.append(value)
            assert told.setdefault(key, value) == value
    assert asked == [span.strip() for span in spans]


def _check_needle(text: str, spans: list[str]) -> None:
    for span in spans:
        assert sum(sentence.endswith(f"is{span}") for sentence in text.split(".")) >= 2


def _check_facts(text: str, spans: list[str]) -> None:
    for line, span in zip(text.splitlines(), spans, strict=True):
        assert line.removesuffix(".").endswith(span)


def _check_sums(text: str, spans: list[str]) -> None:
    for line, span in zip(text.splitlines(), spans, strict=True):
        a, rest = line.split("+")
        b, total = rest.split("=")
        assert int(a) + int(b) == int(total) == int(span)


def _check_copy(text: str, spans: list[str]) -> None:
    first, second = text.split(" |")
    assert first == second == spans[0]


_CHECKS: dict[str, Any] = {
    "recall": _check_recall,
    "needle": _check_needle,
    "facts": _check_facts,
    "sums": _check_sums,
    "copy": _check_copy,
}
