"""A search that asks a supernet: what it asks, what it finds against all of the space, a kill in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.errors import DataError, InputError
from hwsearch.pipeline.supernet_search import SupernetSearch, supernet_search
from hwsearch.search.executors import InlineExecutor
from hwsearch.search.fidelity import FidelityResult, Round
from hwsearch.search.study import Study, read_result
from hwsearch.searchspace.budget import parse_budget
from hwsearch.searchspace.workload import Workload
from hwsearch.surrogate.supernet_folder import SupernetFolder
from hwsearch.surrogate.supernet_settings import SupernetSettings
from hwsearch.surrogate.training import Recipe, Stage
from tests.surrogate.tiny_supernet import space, teacher, write_task_items, write_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet of four choices over a tiny random teacher."""
    made = tmp_path_factory.mktemp("supernet-search")
    checkpoint = teacher(made / "teacher")
    opened = SupernetFolder(made / "supernet")
    opened.create(
        checkpoint=checkpoint,
        space=space(checkpoint),
        sources=[write_text(made / "text.jsonl")],
        tasks=write_task_items(made / "tasks.jsonl"),
        settings=SupernetSettings(
            recipe=Recipe(a=Stage(steps=2, learning_rate=1e-3), b=Stage(steps=2, learning_rate=1e-3)),
            batch=4,
            length=16,
        ),
    )
    opened.train()
    return opened.folder


def _task(folder: Path, *, budgets: tuple[str, ...] = (), metric: str = "kl") -> SupernetSearch:
    return supernet_search(
        folder,
        model=load_builtin("h100-sxm"),
        workload=Workload.from_text("decode:batch=64,context=32k"),
        budgets=[parse_budget(text) for text in budgets],
        metric=metric,
        items=4,
    )


def _go(task: SupernetSearch, run: Path, *, stop_after: int | None = None) -> FidelityResult:
    def stop(at: Round) -> None:
        if at.number == stop_after:
            raise KeyboardInterrupt

    resume = (run / "journal.sqlite").exists()
    with Study.open(run, settings=task.identity, resume=resume) as study, InlineExecutor() as executor:
        found = task.go(study=study, executor=executor, evaluations=24, batch=8, seed=0, on_round=stop)
        assert (task.predictor(study) is not None) == (found.full >= 10)
        return found


def test_the_search_keeps_budgets_and_ends_the_same_after_a_kill(folder: Path, tmp_path: Path) -> None:
    task = _task(folder, budgets=("full_attention<=1", "latency<=1ms"))
    found = _go(task, tmp_path / "whole")
    assert found.full <= 24
    assert (task.problem.budgets[0].cost(found.genomes) <= 1.0).all()
    full = task.space.kinds.index("full_attention")
    assert ((found.genomes == full).sum(axis=1) <= 1).all()
    with pytest.raises(KeyboardInterrupt):
        _go(task, tmp_path / "killed", stop_after=1)
    again = _go(task, tmp_path / "killed")
    np.testing.assert_array_equal(again.genomes, found.genomes)
    np.testing.assert_array_equal(again.objectives, found.objectives)
    result = read_result(tmp_path / "killed")
    assert result["front"][result["best"]]["genome"] == found.genomes[0].tolist()
    assert result["settings"]["supernet"] == task.fingerprint


def test_values_are_those_of_the_supernet_and_the_best_is_near_the_best_there_is(
    folder: Path, tmp_path: Path
) -> None:
    task = _task(folder, metric="choice.accuracy")
    found = _go(task, tmp_path / "run")
    score = task.loss.score(found.genomes[0].tolist())
    assert found.objectives[0, 0] == pytest.approx(-score.tasks["choice"].accuracy)
    everyone = np.array([task.space.paths.unrank(i) for i in range(task.space.size)])
    scorer = SupernetFolder(folder).scorer(SupernetFolder(folder).supernet(), items=4)
    best = scorer.objective(everyone, metric="choice.accuracy").min()
    assert found.objectives[0, 0] <= best + 0.5


def test_mistakes_are_told_before_the_run_begins(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="metric"):
        _task(folder, metric="pears.loss")
    with pytest.raises(InputError, match="has only"):
        _task(folder, budgets=("jet_block>=1",))
    with pytest.raises(DataError, match="no supernet"):
        _task(tmp_path)
