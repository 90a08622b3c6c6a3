"""The whole of PostNAS on a tiny random teacher: what it writes, kills at every step, budgets that cannot be met."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.errors import InfeasibleError, InputError
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.pipeline.postnas import Postnas
from hwsearch.pipeline.postnas_plan import Plan
from hwsearch.pipeline.postnas_report import write_report
from hwsearch.search.executors import InlineExecutor
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.budget import parse_budget
from hwsearch.searchspace.workload import Workload
from hwsearch.surrogate.importance import load_sweep
from hwsearch.surrogate.supernet import Supernet
from hwsearch.surrogate.supernet_settings import SupernetSettings
from hwsearch.surrogate.training import Recipe, Stage
from tests.surrogate.tiny_supernet import teacher, write_task_items, write_text

STEPS = ("supernet", "importance", "placement", "windows", "blocks", "grid", "export")
RECIPE = Recipe(a=Stage(steps=1, learning_rate=1e-3), b=Stage(steps=2, learning_rate=1e-3))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """A folder with a teacher, and a plan over its text and tasks."""
    folder = tmp_path_factory.mktemp("postnas")
    teacher(folder / "teacher")
    plan = Plan(
        sources=(write_text(folder / "text.jsonl"),),
        tasks=write_task_items(folder / "tasks.jsonl"),
        full=1,
        windows=1,
        blocks=("gated_delta_net", "gla"),
        objective="pairs.loss",
        window_objective="mean_loss",
        guarded=True,
        metric="mean_loss",
        width=2,
        supernet=SupernetSettings(recipe=RECIPE, batch=4, length=16),
        candidate=RECIPE,
        items=4,
        text_rows=4,
        budgets=(parse_budget("latency<=10ms"),),
        seed=0,
    )
    return folder, plan


def _run(folder: Path, plan: Plan, run: Path, **changes: Any) -> Postnas:
    return Postnas(
        run,
        plan,
        checkpoint=Checkpoint(folder / "teacher"),
        model=load_builtin("h100-sxm"),
        workload=Workload.from_text("decode:batch=1,context=4k"),
        **{"executor": InlineExecutor, **changes},
    )


@pytest.fixture(scope="module")
def whole(made: tuple[Path, Plan]) -> tuple[Postnas, dict[str, Any]]:
    """A run that nothing interrupted."""
    folder, plan = made
    postnas = _run(folder, plan, folder / "whole")
    return postnas, postnas.go()


def test_the_run_ends_in_a_model_of_its_architecture(whole: tuple[Postnas, dict[str, Any]]) -> None:
    postnas, found = whole
    architecture = Architecture.load(postnas.run / "arch.json")
    kinds = architecture.count()
    assert kinds["full_attention"] == kinds["sliding_window_attention"] == 1
    assert kinds[found["blocks"]["best"]] == architecture.base.num_layers - 2
    model = HybridForCausalLM.from_pretrained(postnas.run / "model")
    assert Architecture.from_content(model.config.architecture, source="config.json") == architecture
    teacher = postnas.checkpoint
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        assert torch.equal(model.state_dict()[name].float(), teacher.tensor(name).float())
    assert (postnas.run / "model" / "tokenizer.json").is_file()


def test_the_steps_find_what_they_say(whole: tuple[Postnas, dict[str, Any]]) -> None:
    postnas, found = whole
    layers = postnas.space.num_layers
    assert len(found["importance"]["kept"]) == len(found["importance"]["replaced"]) == layers
    assert found["importance"]["teacher"]["kl"] == pytest.approx(0, abs=1e-6)
    full = postnas.space.kinds.index("full_attention")
    placed, windowed = (np.array(found[step]["genome"]) for step in ("placement", "windows"))
    assert (placed == full).sum() == 1
    assert windowed[placed == full].tolist() == [full]
    compared = found["windows"]["compared"]
    assert set(compared) == {"searched", "uniform", "first", "last", "guarded"}
    assert compared["guarded"]["genome"] == windowed.tolist()
    for rival in compared.values():
        assert sorted(rival["genome"]) == sorted(windowed.tolist())
    assert [row["block"] for row in found["blocks"]["rows"]] == ["gated_delta_net", "gla"]
    rows = found["grid"]["rows"]
    assert len({row["cache_bytes_per_sequence"] for row in rows}) == 1
    trained = [row for row in rows if row["values"]["1.0"] is not None]
    assert all(row["values"]["0.25"] is not None for row in rows)
    assert len(trained) == -(-len(rows) // 3)
    best = min(trained, key=lambda row: float(row["values"]["1.0"]))
    assert best["genome"] == found["grid"]["best"]


def test_the_report_shows_every_step_and_its_sweep_can_be_searched_with(
    whole: tuple[Postnas, dict[str, Any]],
) -> None:
    postnas, found = whole
    text = write_report(postnas, found, heatmap=None).read_text()
    for title in (
        "## Result",
        "## Importance",
        "## Placement",
        "## Sliding windows",
        "## Blocks",
        "## Shapes of equal cache",
    ):
        assert title in text
    assert "(chosen)" in text
    base = postnas.checkpoint.base
    sweep = load_sweep(str(postnas.run / "importance.csv"), base=base.name, num_layers=base.num_layers)
    assert sweep.tasks == ("pairs", "choice")


class _Killed(InlineExecutor):
    """Dies at the second task."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = 0

    def submit(self, fn: Any, /, *args: Any) -> Future[Any]:
        self.tasks += 1
        if self.tasks == 2:
            raise KeyboardInterrupt
        done: Future[Any] = super().submit(fn, *args)
        done.exception()  # wait for it, so that the kill comes between two tasks
        return done


def test_a_run_that_is_killed_at_every_step_ends_as_one_that_is_not(
    made: tuple[Path, Plan], whole: tuple[Postnas, dict[str, Any]], tmp_path: Path
) -> None:
    folder, plan = made
    run = tmp_path / "killed"

    def at(name: str) -> Any:
        def tell(step: str) -> None:
            if step == name:
                raise KeyboardInterrupt

        return tell

    def early(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(folder, plan, run, on_step=early).go()
    for step in STEPS[1:]:
        with pytest.raises(KeyboardInterrupt):
            _run(folder, plan, run, tell=at(step)).go()
        assert not (run / "steps" / f"{step}.json").exists()
        if step in ("blocks", "grid"):
            with pytest.raises(KeyboardInterrupt):
                _run(folder, plan, run, executor=_Killed).go()
    assert _run(folder, plan, run).go() == whole[1]
    assert (run / "arch.json").read_text() == (whole[0].run / "arch.json").read_text()


def test_a_finished_run_is_read_and_other_settings_are_refused(
    made: tuple[Path, Plan], whole: tuple[Postnas, dict[str, Any]]
) -> None:
    folder, plan = made
    before = (whole[0].run / "steps" / "grid.json").stat().st_mtime_ns
    assert _run(folder, plan, whole[0].run).go() == whole[1]
    assert (whole[0].run / "steps" / "grid.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="was started with plan"):
        _run(folder, replace(plan, seed=1), whole[0].run).go()


def test_everything_is_trained_and_scored_on_the_device_asked_for(
    made: tuple[Path, Plan],
    whole: tuple[Postnas, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, plan = made
    asked = set()
    to = Supernet.to

    def recorded(net: Supernet, device: Any) -> Supernet:
        asked.add(device)
        return to(net, device)

    monkeypatch.setattr(Supernet, "to", recorded)
    assert _run(folder, plan, tmp_path / "run", train_device="cpu:0").go() == whole[1]
    assert asked == {"cpu:0"}


def test_budgets_out_of_reach_are_named_before_anything_is_trained(
    made: tuple[Path, Plan], tmp_path: Path
) -> None:
    folder, plan = made
    tight = replace(plan, budgets=(parse_budget("latency<=1us"),))
    with pytest.raises(InfeasibleError, match=r"gated_delta_net reaches .* ms at best for latency<=1us"):
        _run(folder, tight, tmp_path / "tight").go()
    with pytest.raises(InputError, match="do not fit into"):
        _run(folder, replace(plan, full=9), tmp_path / "many").go()
    assert not list(tmp_path.iterdir())


def test_results_hold_no_clock(whole: tuple[Postnas, dict[str, Any]]) -> None:
    assert "seconds" not in json.dumps(whole[1])
