"""Tasks that a language model is scored on: jsonl files, encoded once for a tokenizer, scored from log-probabilities.

A line is either a completion, {"task": name, "prompt": text, "completion": text}, right when every token of the
completion is the model's first choice given what stands before it; or a multiple choice, {"task": name, "question":
text, "choices": [text, ...], "answer": index}, right when the sum of the log-probabilities of the right choice is the
largest, as lm-evaluation-harness counts its `acc`. A completion follows its prompt as it is, a choice follows its
question after one blank.

Tokens of the completion are those behind the longest common beginning of the encoded prompt and the encoded whole, so
a tokenizer may merge across the border between them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import DataError, InputError, OutputError, plainly

__all__ = ["EncodedTasks", "Task", "TaskItem", "TaskScore", "read_tasks", "write_tasks"]

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

_STRETCH, _FEW = (
    1.25,
    8,
)  # rows of a batch are at most so many times, or so many tokens, longer than its shortest
_KEYS = ({"task", "prompt", "completion"}, {"task", "question", "choices", "answer"})


@dataclass(frozen=True)
class TaskItem:
    """One question: what may follow `prompt`, and the index of what should. With one choice it is a completion."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Task:
    """Items of one ability."""

    name: str
    items: tuple[TaskItem, ...]

    @property
    def chance(self) -> float:
        """The accuracy of knowing nothing: one of the choices at random, or always the most common completion."""
        common = Counter(item.choices[0] for item in self.items if len(item.choices) == 1)
        guessed = sum(1 / len(item.choices) for item in self.items if len(item.choices) > 1)
        return (guessed + max(common.values(), default=0)) / len(self.items)


@dataclass(frozen=True)
class TaskScore:
    """accuracy, a share; loss, nats per token of the right answer (its mean, averaged over items); items, how many."""

    accuracy: float
    loss: float
    items: int

    @property
    def standard_error(self) -> float:
        """Of the accuracy, by sampling of items."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / max(self.items - 1, 1)))


@dataclass(frozen=True, kw_only=True)
class EncodedTasks:
    """Tasks as rows of tokens, one row for each choice of each item; items are numbered through all tasks.

    tokens_NT: (n, T), padded on the right. completion_NT: (n, T), true on the tokens that are scored. lengths_N: (n,)
    tokens of each row without padding. item_N and choice_N: (n,) what a row belongs to. answers_I and task_I: (items,)
    the right choice, and the index into `names`. chance: task -> accuracy of knowing nothing.
    """

    names: tuple[str, ...]
    tokens_NT: IntArray
    completion_NT: BoolArray
    lengths_N: IntArray
    item_N: IntArray
    choice_N: IntArray
    answers_I: IntArray
    task_I: IntArray
    chance: Mapping[str, float]

    @classmethod
    def of(cls, tasks: Sequence[Task], tokenizer: Any, *, max_length: int) -> EncodedTasks:
        """Encode with a Hugging Face tokenizer.

        Raises InputError where an item has more than `max_length` tokens: cutting it could remove the answer.
        """
        items = [(t, item) for t, task in enumerate(tasks) for item in task.items]
        if not items:
            raise InputError("no task items to encode: name a task file that has some")
        texts = [item.prompt + choice for _, item in items for choice in item.choices]
        wholes = tokenizer(texts)["input_ids"]
        prompts = tokenizer([item.prompt for _, item in items])["input_ids"]
        longest = max(map(len, wholes))
        item_N = np.repeat(np.arange(len(items)), [len(item.choices) for _, item in items])
        if longest > max_length:
            name = tasks[items[item_N[[len(whole) for whole in wholes].index(longest)]][0]].name
            raise InputError(
                f"an item of the task {name!r} has {longest} tokens, the limit is {max_length}: "
                "raise the limit or leave out long items"
            )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        tokens_NT = np.full((len(wholes), longest), pad, dtype=np.int64)
        completion_NT = np.zeros((len(wholes), longest), dtype=np.bool_)
        for row, whole in enumerate(wholes):
            tokens_NT[row, : len(whole)] = whole
            start = _common(prompts[item_N[row]], whole)
            if not 0 < start < len(whole):
                raise InputError(
                    f"a prompt or an answer of the task {tasks[items[item_N[row]][0]].name!r} is empty"
                )
            completion_NT[row, start : len(whole)] = True
        return cls(
            names=tuple(task.name for task in tasks),
            tokens_NT=tokens_NT,
            completion_NT=completion_NT,
            lengths_N=np.array([len(whole) for whole in wholes]),
            item_N=item_N,
            choice_N=np.concatenate([np.arange(len(item.choices)) for _, item in items]),
            answers_I=np.array([item.answer for _, item in items]),
            task_I=np.array([t for t, _ in items]),
            chance={task.name: task.chance for task in tasks},
        )

    def __len__(self) -> int:
        return len(self.tokens_NT)

    def batches(self, rows: int) -> Iterator[tuple[IntArray, IntArray]]:
        """(indices (b,), tokens (b, longest of them)) with b <= `rows`, rows of like length together.

        A batch ends where a row is so much longer than its first that most of what is computed would be padding.
        """
        order = np.argsort(self.lengths_N, kind="stable")
        lengths_N = self.lengths_N[order]
        start = 0
        while start < len(order):
            longest = max(_STRETCH * lengths_N[start], lengths_N[start] + _FEW)
            like = int(np.searchsorted(lengths_N, longest, side="right"))
            index = order[start : min(like, start + rows)]
            yield index, self.tokens_NT[index, : self.lengths_N[index[-1]]]
            start += len(index)

    def item_scores(self, log_probs_NT: FloatArray, hits_NT: BoolArray) -> tuple[BoolArray, FloatArray]:
        """Per item whether it is right (items,), and the mean nats per token of the right answer (items,).

        log_probs_NT: (n, T) log-probability of each token given those before it. hits_NT: (n, T) whether it was the
        most probable one. Both are read where completion_NT is true; anything may stand elsewhere.
        """
        sums_N = np.where(self.completion_NT, log_probs_NT, 0.0).sum(axis=1)
        exact_N: BoolArray = np.asarray((hits_NT | ~self.completion_NT).all(axis=1))
        counts_I = np.bincount(self.item_N)
        first_I: IntArray = np.cumsum(counts_I) - counts_I
        sums_IC = np.full((len(counts_I), counts_I.max()), -np.inf)
        sums_IC[self.item_N, self.choice_N] = sums_N
        chosen_I: BoolArray = sums_IC.argmax(axis=1) == self.answers_I
        right_I: BoolArray = np.where(counts_I == 1, exact_N[first_I], chosen_I)
        row_I: IntArray = first_I + self.answers_I
        loss_I: FloatArray = -sums_N[row_I] / self.completion_NT[row_I].sum(axis=1)
        return right_I, loss_I

    def score(self, log_probs_NT: FloatArray, hits_NT: BoolArray) -> dict[str, TaskScore]:
        """Task -> score, from what `item_scores` takes."""
        right_I, loss_I = self.item_scores(log_probs_NT, hits_NT)
        scores = {}
        for t, name in enumerate(self.names):
            of_task = self.task_I == t
            scores[name] = TaskScore(
                float(right_I[of_task].mean()), float(loss_I[of_task].mean()), int(of_task.sum())
            )
        return scores


def read_tasks(path: Path) -> tuple[Task, ...]:
    """The tasks of a jsonl file in the order of their first items. Raises DataError with the line that is wrong."""
    items: dict[str, list[TaskItem]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the task file {path}: {plainly(error)}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name, item = _item(line, where=f"{path}, line {number}")
            items.setdefault(name, []).append(item)
    if not items:
        raise DataError(f"{path} holds no task items")
    return tuple(Task(name, tuple(found)) for name, found in items.items())


def write_tasks(tasks: Iterable[Task], path: Path) -> None:
    """Write a task file that `read_tasks` reads back equal."""
    lines = []
    for task in tasks:
        for item in task.items:
            content: dict[str, Any] = {"task": task.name}
            if len(item.choices) == 1:
                content |= {"prompt": item.prompt, "completion": item.choices[0]}
            else:
                choices = [choice.removeprefix(" ") for choice in item.choices]
                content |= {"question": item.prompt, "choices": choices, "answer": item.answer}
            lines.append(json.dumps(content) + "\n")
    try:
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def _item(line: str, *, where: str) -> tuple[str, TaskItem]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    if not isinstance(content, dict) or set(content) not in _KEYS:
        raise DataError(
            f"{where}: a line has the keys task, prompt, completion or task, question, choices, answer; got "
            f"{', '.join(map(str, content)) if isinstance(content, dict) else type(content).__name__}"
        )
    texts = [content[key] for key in ("task", "prompt", "completion", "question") if key in content]
    choices, answer = content.get("choices", [""]), content.get("answer", 0)
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in [*texts, *choices]):
        raise DataError(f"{where}: task, prompt, completion, question and every choice must be text")
    if "completion" in content:
        return content["task"], TaskItem(content["prompt"], (content["completion"],), 0)
    if len(choices) < 2 or type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(
            f"{where}: a question has two or more choices and the index of one as answer; got {answer!r}"
        )
    return content["task"], TaskItem(content["question"], tuple(" " + choice for choice in choices), answer)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
