"""hwsearch postnas and a search with a supernet on a tiny random teacher: documented keys, files, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwsearch.models.checkpoint import Checkpoint
from hwsearch.surrogate.teacher_data import train_tokenizer
from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented
from tests.surrogate.tiny_supernet import teacher, write_task_items, write_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli-postnas")
    teacher(made / "teacher")
    write_text(made / "text.jsonl")
    write_task_items(made / "tasks.jsonl")
    return made


def _options(folder: Path, run: Path) -> list[object]:
    return [
        folder / "teacher", "--device", "h100-sxm", "--workload", "decode:batch=1,context=4k",
        "--data", folder / "text.jsonl", "--tasks", folder / "tasks.jsonl", "--full", 1, "--windows", 1,
        "--blocks", "gla,gated_delta_net", "--steps-a", 1, "--steps-b", 2, "--proxy-steps", 2, "--batch", 2,
        "--length", 16, "--items", 3, "--budget", "latency<=9ms", "-o", run,
    ]  # fmt: skip


def test_postnas_then_a_search_with_its_supernet(hwsearch: Call, folder: Path) -> None:
    run = folder / "run"
    found = hwsearch("postnas", *_options(folder, run), "--json").json
    _assert_documented(found, "postnas")
    for row in found["blocks"]:
        _assert_documented(row, "postnas: each of blocks")
    for row in found["grid"]:
        _assert_documented(row, "postnas: each of grid")
    assert len(found["full_attention_layers"]) == found["layer_types"].count("full_attention") == 1
    assert {path.name for path in run.iterdir()} >= {"report.md", "arch.json", "model", "importance.csv"}
    again = hwsearch("postnas", *_options(folder, run))
    assert again.status == 0, again.err
    assert "On items that chose nothing" in again.out
    searched = hwsearch(
        "search", "--quality", run / "supernet", "--device", "h100-sxm", "--workload", "decode:batch=1,context=4k",
        "--metric", "kl", "--items", 2, "--evaluations", 6, "-o", folder / "searched", "--json",
    ).json  # fmt: skip
    _assert_documented(searched, "search with a supernet")
    exported = hwsearch("export", folder / "searched", "-o", folder / "found.json", "--json").json
    assert sum(exported["mixers"].values()) == len(searched["best"]["layer_types"])


def test_a_qwen2_5_of_real_depth_in_shards_goes_through_postnas(
    hwsearch: Call, folder: Path, tmp_path: Path
) -> None:
    checkpoint = teacher(tmp_path / "teacher", "qwen2", num_hidden_layers=28, vocab_size=300, shards=True)
    train_tokenizer(["t3 t4 t5"], vocabulary=300).save_pretrained(checkpoint.folder)
    assert len(list(checkpoint.folder.glob("model-*.safetensors"))) > 3
    _, *options = _options(folder, tmp_path / "run")
    found = hwsearch("postnas", checkpoint.folder, *options, "--blocks", "gla", "--json").json
    assert len(found["layer_types"]) == 28
    assert (
        found["layer_types"].count("full_attention") == found["layer_types"].count("sliding_attention") == 1
    )
    built = Checkpoint(tmp_path / "run" / "model")
    for index in (0, 13, 27):
        name = f"model.layers.{index}.mlp.up_proj.weight"
        assert torch.equal(built.tensor(name), Checkpoint(checkpoint.folder).tensor(name))


def test_what_does_not_go_is_told_in_one_line(hwsearch: Call, folder: Path) -> None:
    options = _options(folder, folder / "other")
    assert "--full and --windows" in hwsearch("postnas", *options, "--budget", "full_attention<=1").complaint
    assert "unknown linear block" in hwsearch("postnas", *options, "--blocks", "gloo").complaint
    assert "latency<=1us" in hwsearch("postnas", *options, "--budget", "latency<=1us").complaint
    assert not (folder / "other").exists()
    (folder / "supernet").mkdir(exist_ok=True)
    (folder / "supernet" / "supernet.json").write_text("{}")
    asked = ["--device", "h100-sxm", "--workload", "decode:batch=1,context=4k", "-o", folder / "s"]
    complaint = hwsearch("search", "--quality", folder / "supernet", *asked, "--base", "Qwen3-1.7B").complaint
    assert "--base does not go with a supernet" in complaint
    assert "--base is missing" in hwsearch("search", "--quality", "qwen3-1.7b-sweep", *asked).complaint
