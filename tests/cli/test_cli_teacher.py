"""hwsearch teacher: training, scores and data from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwsearch.surrogate import teacher
from hwsearch.surrogate.synthetic import ABILITIES
from hwsearch.surrogate.tasks import Task, read_tasks, write_tasks
from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented

SMALL = ("--layers", 1, "--hidden-size", 64, "--vocabulary", 400, "--steps", 2, "--batch", 2, "--length", 48)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "python_documentation", lambda: iter([f"text {i} " * 20 for i in range(90)]))
    for name, value in (("_ITEMS", 3), ("_WATCHED_ITEMS", 2), ("_SAMPLES", 2)):
        monkeypatch.setattr(teacher, name, value)


@pytest.mark.usefixtures("little")
def test_train_then_score_give_the_same_figures(hwsearch: Call, tmp_path: Path) -> None:
    trained = hwsearch("teacher", "train", "-o", tmp_path / "made", *SMALL, "--json").json
    scored = hwsearch("teacher", "score", tmp_path / "made", "--json").json
    assert scored == trained
    _assert_documented(scored, "teacher train, teacher score")
    assert set(scored["tasks"]) == set(ABILITIES)
    for task in scored["tasks"].values():
        _assert_documented(task, "teacher score: each of tasks")
    assert "exists" in hwsearch("teacher", "train", "-o", tmp_path / "made", *SMALL).complaint


@pytest.mark.usefixtures("little")
def test_the_shipped_teacher_is_scored_on_other_tasks(hwsearch: Call, tmp_path: Path) -> None:
    tasks = read_tasks(teacher.teacher_folder() / teacher.TASKS)
    write_tasks([Task("mine", tasks[0].items[:8])], tmp_path / "tasks.jsonl")
    (tmp_path / "model").symlink_to(teacher.teacher_folder())
    out = hwsearch("teacher", "score", tmp_path / "model", "--tasks", tmp_path / "tasks.jsonl").out
    assert "mine" in out
    assert "perplexity on held-out text" in out


@pytest.mark.usefixtures("little")
def test_data_prints_the_documented_keys(hwsearch: Call, tmp_path: Path) -> None:
    found = hwsearch("teacher", "data", "-o", tmp_path, "--samples", 2, "--json").json
    _assert_documented(found, "teacher data")
    assert found["lines"] == {"text.jsonl": 90, "samples.jsonl": 10, "tasks.jsonl": 15}
    assert {path.name for path in tmp_path.iterdir()} == set(found["lines"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("score", "nowhere"), "nowhere"),
        (("train", "-o", "x", "--hidden-size", "100"), "no multiple of 64"),
    ],
)
def test_wrong_input_is_one_line(hwsearch: Call, arguments: tuple[str, ...], told: str) -> None:
    assert told in hwsearch("teacher", *arguments).complaint
