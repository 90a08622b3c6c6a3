"""supernet, importance, proxy and build --supernet on a tiny checkpoint, from the command line."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hwsearch.models.checkpoint import Checkpoint
from hwsearch.searchspace.architecture import Architecture
from hwsearch.surrogate.supernet_folder import SupernetFolder
from hwsearch.surrogate.teacher_data import train_tokenizer
from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented
from tests.models.tiny import tokens
from tests.surrogate.tiny_supernet import DELTA, FULL, MIXERS, WINDOW, teacher, write_task_items, write_text

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.py"


@pytest.fixture
def inputs(tmp_path: Path) -> list[object]:
    """Everything a supernet is made from, as arguments."""
    (tmp_path / "space.json").write_text(json.dumps({"mixers": MIXERS}))
    return [
        "--data", write_text(tmp_path / "text.jsonl"), "--tasks", write_task_items(tmp_path / "items.jsonl"),
        "--space", tmp_path / "space.json", "--steps-a", 3, "--steps-b", 3, "--batch", 4, "--length", 24,
    ]  # fmt: skip


def _architecture(folder: Path, genome: list[int], name: str) -> Path:
    path = folder.parent / f"{name}.json"
    path.write_text(SupernetFolder(folder).space.decode(genome, name=name).to_json())
    return path


def test_from_a_checkpoint_to_a_trained_model(
    hwsearch: Call, tmp_path: Path, inputs: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher(tmp_path / "teacher")
    folder = tmp_path / "supernet"
    made = hwsearch("supernet", tmp_path / "teacher", *inputs, "-o", folder, "--json").json
    _assert_documented(made, "supernet")
    for score in made["paths"].values():
        _assert_documented(score, "supernet: each of paths")
        assert {key for task in score["tasks"].values() for key in task} == {
            "accuracy", "accuracy_stderr", "loss_nats", "items",
        }  # fmt: skip
    assert made["paths"]["teacher"]["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert made["tokens"] == 6 * 4 * 24
    shown = hwsearch("supernet", tmp_path / "teacher", *inputs, "-o", folder)
    assert "gated_delta_net" in shown.out, shown.err
    complaint = hwsearch("supernet", tmp_path / "teacher", *inputs, "-o", folder, "--seed", 1).complaint
    assert "another settings" in complaint

    csv, plot = tmp_path / "sweep.csv", tmp_path / "heat.png"
    pytest.importorskip("matplotlib")
    found = hwsearch("importance", folder, "-o", csv, "--plot", plot, "--json").json
    _assert_documented(found, "importance")
    assert len(found["kept"]) == len(found["replaced"]) == 3
    assert plot.stat().st_size > 5000
    assert csv.read_text().startswith("model,layer,task,metric,value,stderr\nteacher,-1,pairs,acc,")
    assert "by KL, most important first" in hwsearch("importance", folder).out

    arches = [
        _architecture(folder, [DELTA, FULL, WINDOW], "one"),
        _architecture(folder, [FULL, DELTA, DELTA], "two"),
    ]
    ranked = hwsearch(
        "proxy", *arches, "--supernet", folder, "--tokens", 500, "--halving", 2, "--metric", "kl",
        "-o", tmp_path / "proxies", "--json",
    ).json  # fmt: skip
    _assert_documented(ranked, "proxy")
    for candidate in ranked["candidates"]:
        _assert_documented(candidate, "proxy: each of candidates")
    assert [candidate["tokens"] for candidate in ranked["candidates"]] == [6 * 96, 3 * 96]

    for source in (folder, Path(ranked["candidates"][0]["folder"])):
        arch = Path(ranked["candidates"][0]["architecture"])
        out = tmp_path / f"model of {source.name}"
        built = hwsearch("build", arch, "--supernet", source, "-o", out, "--json").json
        _assert_documented(built, "build")
        model = AutoModelForCausalLM.from_pretrained(out)
        own = SupernetFolder(source)
        genome = own.genome_of(Architecture.load(arch))
        with torch.no_grad():
            ids = tokens(2, 20)
            assert torch.equal(model(ids).logits, own.supernet()(ids, genome=genome))
        assert model.generate(ids, max_new_tokens=3).shape == (2, 23)
        trained = [bool(layer["trained"]) for layer in built["layers"]]
        assert trained == [choice != FULL for choice in genome]

    arguments = [out, tmp_path / "text.jsonl", "-o", tmp_path / "trained", "--steps", 4, "--train", "mixers"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "trained").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(after[name], tensor) == (".mixer." not in name), name


def test_a_qwen2_5_of_real_depth_in_shards_goes_through(
    hwsearch: Call, tmp_path: Path, inputs: list[object]
) -> None:
    checkpoint = teacher(tmp_path / "teacher", "qwen2", num_hidden_layers=28, vocab_size=300, shards=True)
    words = train_tokenizer(["t3 t4 t5"], vocabulary=300)  # bytes and merges, as the family's tokenizers have
    words.save_pretrained(checkpoint.folder)
    assert len(list(checkpoint.folder.glob("model-*.safetensors"))) > 3
    folder = tmp_path / "supernet"
    made = hwsearch(
        "supernet", checkpoint.folder, *inputs, "--limit", "full_attention<=4", "-o", folder, "--json"
    ).json
    assert made["paths"]["teacher"]["kl_nats"] == pytest.approx(0, abs=1e-6)
    found = hwsearch("importance", folder, "--items", 2, "--text-rows", 2, "--json").json
    assert len(found["kept"]) == 28
    genome = [FULL if i in (13, 20) else DELTA for i in range(28)]
    arch = _architecture(folder, genome, "hybrid")
    ranked = hwsearch(
        "proxy", arch, "--supernet", folder, "--tokens", 100, "-o", tmp_path / "proxies", "--json"
    ).json
    source = ranked["candidates"][0]["folder"]
    built = hwsearch("build", arch, "--supernet", source, "-o", tmp_path / "model", "--json").json
    assert sum(bool(layer["trained"]) for layer in built["layers"]) == 26
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.generate(tokens(1, 5), max_new_tokens=2).shape == (1, 7)
    original = Checkpoint(checkpoint.folder)
    for index in (0, 13, 27):
        name = f"model.layers.{index}.mlp.up_proj.weight"
        assert torch.equal(model.state_dict()[name], original.tensor(name))
    bias = "model.layers.13.self_attn.q_proj.bias"
    assert torch.equal(model.model.layers[13].mixer.q_proj.bias, original.tensor(bias))


def test_wrong_input_is_refused_in_one_line(hwsearch: Call, tmp_path: Path, inputs: list[object]) -> None:
    teacher(tmp_path / "teacher")
    start = ["supernet", tmp_path / "teacher", "-o", tmp_path / "out"]
    assert "--data and --tasks" in hwsearch(*start).complaint
    assert "bounds a number of layers" in hwsearch(*start, *inputs, "--limit", "latency<=3ms").complaint
    assert "takes 2 to 256" in hwsearch(*start, *inputs[:-1], 4000).complaint
    assert "did you mean feature" in hwsearch(*start, *inputs, "--loss", "features=1").complaint
    assert "no supernet" in hwsearch("importance", tmp_path / "nothing").complaint
    assert not (tmp_path / "out").exists()


def test_the_example_says_that_lm_eval_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else found(name, *rest)
    )
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "model", "text", "-o", "out", "--tasks", "items"])
    with pytest.raises(SystemExit, match=r"pip install 'hwsearch\[eval\]'"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
