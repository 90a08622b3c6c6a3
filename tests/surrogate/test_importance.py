"""Layer importance: the shipped sweep against the source's own rows, additivity, noise, refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import DataError, InputError
from hwsearch.surrogate.importance import linear_shares, load_sweep


def test_the_shipped_sweeps_equal_the_source(shared_data: Path) -> None:
    source = shared_data / "data" / "importance" / "layer_sweep.csv"
    for name, model, layers in (("qwen3-1.7b-sweep", "Qwen3-1.7B", 28), ("qwen3-4b-sweep", "Qwen3-4B", 36)):
        shipped = load_sweep(name, base=model, num_layers=layers)
        original = load_sweep(str(source), base=model, num_layers=layers)
        assert shipped.tasks == original.tasks
        np.testing.assert_array_equal(shipped.drops, original.drops)
        np.testing.assert_array_equal(shipped.layer_error, original.layer_error)
        with source.open() as file:
            fda = {int(r["layer"]): float(r["value"]) for r in csv.DictReader(file)
                   if (r["model"], r["task"]) == (model, "fda")}  # fmt: skip
        assert shipped.drops[3, shipped.tasks.index("fda")] == pytest.approx(100 * (fda[-1] - fda[3]))


def test_losses_add_up_over_layers_and_scale_with_the_share() -> None:
    sweep = load_sweep("qwen3-1.7b-sweep", base="Qwen3-1.7B", num_layers=28)
    table = sweep.table([0.0, 1.0, 0.5])
    assert table.shape == (28, 3)
    np.testing.assert_allclose(table[:, 2], table[:, 1] / 2)
    shares = np.zeros(28)
    assert sweep.loss(shares).points == 0
    assert sweep.loss(shares).low == sweep.loss(shares).high == 0
    shares[[4, 9]] = 1
    loss = sweep.loss(shares)
    assert loss.points == pytest.approx(table[4, 1] + table[9, 1])
    assert loss.points == pytest.approx(np.mean(list(loss.tasks.values())))
    assert loss.low < loss.points < loss.high
    wider = sweep.loss(np.ones(28))
    assert wider.high - wider.low > loss.high - loss.low


def test_one_task_alone() -> None:
    sweep = load_sweep("qwen3-1.7b-sweep", base="Qwen3-1.7B", num_layers=28)
    fda = sweep.only(["fda"])
    shares = np.eye(28)[21]
    assert fda.loss(shares).points == pytest.approx(sweep.loss(shares).tasks["fda"])
    with pytest.raises(InputError, match="unknown task 'mmlu'"):
        sweep.only(["mmlu"])


def test_kinds_without_data_are_named_and_assumptions_checked() -> None:
    kinds = ["full_attention", "jet_block", "sliding_window_attention", "none"]
    assert linear_shares(kinds, {}) == (
        {"full_attention": 0.0, "jet_block": 1.0},
        ["sliding_window_attention", "none"],
    )
    shares, missing = linear_shares(kinds, {"sliding_window_attention": 0.5})
    assert shares["sliding_window_attention"] == 0.5
    assert missing == ["none"]
    for wrong in ({"jet_block": 0.5}, {"none": -1.0}, {"nonne": 1.0}, {"none": float("nan")}):
        with pytest.raises(InputError):
            linear_shares(kinds, wrong)


HEADER = "model,layer,task,metric,value,stderr\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "column 'model' is missing"),
        ("model,layer\nx,1\n", "column 'task' is missing"),
        (HEADER, "no rows"),
        (HEADER + "m,-1,t,acc,0.5,0.01\nm,1,t,acc,0.5,0.01\n", "no score for layer 0"),
        (HEADER + "m,-1,t,acc,0.5,0.01\nm,0,t,acc,50,0.01\n", "must lie in 0..1"),
        (HEADER + "m,-1,t,acc,abc,0.01\n", "row 1 is not numeric"),
        (HEADER + "m,-1,t,acc,0.5,0.01\nm,-1,t,acc,0.5,0.01\n", "repeats layer -1"),
    ],
)
def test_bad_sweeps_are_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "sweep.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        load_sweep(str(path), base="m", num_layers=1)


def test_a_sweep_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="28 layers; Qwen3-4B has 36"):
        load_sweep("qwen3-1.7b-sweep", base="Qwen3-4B", num_layers=36)
    with pytest.raises(InputError, match=r"did you mean qwen3-1\.7b-sweep"):
        load_sweep("qwen3-1.7-sweep", base="Qwen3-1.7B", num_layers=28)
