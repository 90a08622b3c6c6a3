"""hwsearch build and export: model folders that load, reports, and refusals that leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: pip install 'hwsearch[hf]'")

from transformers import AutoModelForCausalLM

from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.mixers import NoMixer
from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented
from tests.models import tiny


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny Qwen3 with two tokenizer files."""
    folder = tmp_path / "checkpoint"
    tiny.save_checkpoint(folder, "qwen3")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture
def arch(tmp_path: Path, checkpoint: Path) -> Path:
    path = tmp_path / "arch.json"
    path.write_text(tiny.architecture(tiny.FULL, tiny.WINDOW, NoMixer()).to_json())
    return path


def test_build_inherits_and_reports(hwsearch: Call, tmp_path: Path, checkpoint: Path, arch: Path) -> None:
    out = tmp_path / "model"
    found = hwsearch("build", arch, "--from", checkpoint, "-o", out, "--json").json
    _assert_documented(found, "build")
    for layer in found["layers"]:
        _assert_documented(layer, "build: each of layers")
    assert json.loads((out / "hwsearch_build.json").read_text()) == {
        key: value for key, value in found.items() if key != "output"
    }
    assert (out / "tokenizer.json").is_file()
    assert (out / "tokenizer_config.json").is_file()
    assert [layer["new"] for layer in found["layers"]] == [[], [], []]
    assert "mixer.q_proj.weight" in found["layers"][1]["inherited"]
    model = AutoModelForCausalLM.from_pretrained(out)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert torch.equal(
        model.model.layers[1].mixer.q_proj.weight, theirs.model.layers[1].self_attn.q_proj.weight
    )
    assert sum(p.numel() for p in model.parameters()) == found["parameters"]
    assert model.generate(tiny.tokens(1, 4), max_new_tokens=3).shape == (1, 7)


def test_build_without_a_checkpoint_is_random_and_reproducible(
    hwsearch: Call, tmp_path: Path, arch: Path
) -> None:
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made = hwsearch("build", arch, "-o", tmp_path / name, "--seed", seed, "--dtype", "bfloat16")
        assert made.status == 0, made.err
        assert "everything" in made.out
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto")
        assert model.dtype == torch.bfloat16
        states.append(model.model.layers[0].mixer.q_proj.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_built_folder_is_an_architecture_everywhere(
    hwsearch: Call, tmp_path: Path, checkpoint: Path, arch: Path
) -> None:
    model, copy = tmp_path / "model", tmp_path / "copy.json"
    hwsearch("build", arch, "--from", checkpoint, "-o", model)
    hwsearch("export", model, "-o", copy)
    built = Architecture.load(copy)
    assert built.layers == Architecture.load(arch).layers
    predicted = hwsearch(
        "predict",
        "--arch",
        model,
        "--device",
        "h100-sxm",
        "--workload",
        "decode:batch=1,context=1k",
        "--json",
    ).json
    assert predicted["parameters"] == built.parameters


def test_a_checkpoint_folder_is_a_base_of_a_search(hwsearch: Call, tmp_path: Path, checkpoint: Path) -> None:
    sweep = tmp_path / "sweep.csv"
    rows = [f"checkpoint,{layer},task,acc,{0.5 - 0.1 * (layer == 1)},0.01" for layer in (-1, 0, 1, 2)]
    sweep.write_text("\n".join(["model,layer,task,metric,value,stderr", *rows]) + "\n")
    found = hwsearch(
        "search", "--base", checkpoint, "--device", "h100-sxm", "--quality", sweep, "--workload",
        "decode:batch=1,context=4k", "-o", tmp_path / "run", "--generations", 2, "--json",
    )  # fmt: skip
    assert found.json["base"] == "checkpoint"
    written = hwsearch("export", tmp_path / "run", "-o", tmp_path / "found.json")
    assert written.status == 0, written.err
    assert Architecture.load(tmp_path / "found.json").base.hidden_size == 32


def test_native_export_of_a_built_model_keeps_its_logits(
    hwsearch: Call, tmp_path: Path, checkpoint: Path
) -> None:
    arch, model, native = tmp_path / "a.json", tmp_path / "model", tmp_path / "native"
    arch.write_text(tiny.architecture(tiny.FULL, tiny.WINDOW, tiny.WINDOW).to_json())
    hwsearch("build", arch, "--from", checkpoint, "-o", model)
    found = hwsearch("export", model, "--to", "native", "-o", native, "--json").json
    _assert_documented(found, "export")
    assert (found["class"], found["built"], found["weights"]) == ("Qwen3ForCausalLM", True, True)
    assert (native / "tokenizer.json").is_file()
    ids = tiny.tokens(1, 30)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model, native))
    assert tiny.largest_difference(tiny.logits(ours, ids), tiny.logits(theirs, ids)) < 1e-5


@pytest.mark.parametrize(
    ("form", "name", "class_name", "built"),
    [
        ("native", "Llama-3.2-1B", "LlamaForCausalLM", True),
        ("hf", "Llama-3.2-1B", "HybridForCausalLM", True),
        ("jet-nemotron", "jet-nemotron-2b", "JetNemotronForCausalLM", False),
    ],
)
def test_configs_for_other_runtimes(
    hwsearch: Call, tmp_path: Path, form: str, name: str, class_name: str, built: bool
) -> None:
    found = hwsearch("export", name, "--to", form, "-o", tmp_path / "out", "--json").json
    assert (found["class"], found["built"], found["weights"]) == (class_name, built, False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [class_name]


def test_refusals_leave_nothing_behind(hwsearch: Call, tmp_path: Path, checkpoint: Path, arch: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    out = tmp_path / "out"
    assert "has no config.json" in hwsearch("build", arch, "--from", tmp_path / "none", "-o", out).complaint
    assert "exists already" in hwsearch("build", arch, "--from", checkpoint, "-o", checkpoint).complaint
    assert "is no folder" in hwsearch("build", arch, "-o", tmp_path / "none" / "out").complaint
    refused = hwsearch("build", "Qwen3-0.6B", "--from", checkpoint, "-o", out).complaint
    assert "does not fit the architecture's base Qwen3-0.6B: num_layers 28 against 3" in refused
    assert f"--base {checkpoint}" in refused
    refused = hwsearch("export", arch, "--to", "native", "-o", out).complaint
    assert "the nearest is Qwen3ForCausalLM: layer 2 (none): it has no such mixer" in refused
    assert (
        "--pick best chooses from the run of a search"
        in hwsearch("export", arch, "--pick", "best", "-o", out).complaint
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_build_that_fails_half_way_leaves_nothing(
    hwsearch: Call, tmp_path: Path, checkpoint: Path, arch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwsearch.models.hybrid import HybridForCausalLM

    def full_disk(self: object, folder: Path, **options: object) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HybridForCausalLM, "save_pretrained", full_disk)
    before = sorted(path.name for path in tmp_path.iterdir())
    out = tmp_path / "out"
    assert "No space left on device" in hwsearch("build", arch, "--from", checkpoint, "-o", out).complaint
    assert sorted(path.name for path in tmp_path.iterdir()) == before
