"""Checkpoints in: logits equal to transformers' own, and files that do not hold what they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hwsearch.errors import DataError, InputError
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.convert import build_model
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.mixers import NoMixer, SlidingWindowAttention
from tests.models import tiny


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_logits_equal_those_of_transformers(tmp_path: Path, family: str, tied: bool, shards: bool) -> None:
    theirs = tiny.save_checkpoint(tmp_path, family, shards=shards, tie_word_embeddings=tied)
    assert (tmp_path / "model.safetensors.index.json").is_file() == shards
    checkpoint = Checkpoint(tmp_path)
    ours, origins = build_model(Architecture.of_base(checkpoint.base), checkpoint=checkpoint)
    ids = tiny.tokens(2, 60)
    expected = tiny.logits(theirs, ids)
    assert tiny.largest_difference(tiny.logits(ours, ids), expected) < 1e-5
    assert expected.std() > 0.1
    assert not any(origin.new or origin.mapped for origin in origins)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    generated = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False}
    assert torch.equal(ours.generate(ids, **generated), theirs.generate(ids, **generated))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_is_the_checkpoints_or_the_one_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny.save_checkpoint(tmp_path, "qwen3").to(torch.bfloat16).save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    kept, _ = build_model(Architecture.of_base(checkpoint.base), checkpoint=checkpoint)
    assert kept.dtype == torch.bfloat16
    ids = tiny.tokens(2, 30)
    assert torch.equal(tiny.logits(kept, ids), tiny.logits(theirs, ids)), (
        "rounded elsewhere than transformers"
    )
    asked, _ = build_model(Architecture.of_base(checkpoint.base), checkpoint=checkpoint, dtype=dtype)
    assert {parameter.dtype for parameter in asked.parameters()} == {dtype}


def test_windows_and_dropped_mixers_inherit_the_rest(tmp_path: Path) -> None:
    theirs = tiny.save_checkpoint(tmp_path, "qwen3")
    checkpoint = Checkpoint(tmp_path)
    base = checkpoint.base
    wide = SlidingWindowAttention(window=200, **base.mixer.model_dump(exclude={"kind"}))
    mixers = (wide, base.mixer, NoMixer())
    layers = tuple(LayerSpec(mixer=mixer, ffn=base.ffn) for mixer in mixers)
    ours, origins = build_model(Architecture(name="a", base=base, layers=layers), checkpoint=checkpoint)
    assert [origin.new for origin in origins] == [(), (), ()]
    theirs.model.layers[2].self_attn.forward = lambda hidden_states, **_: (
        torch.zeros_like(hidden_states),
        None,
    )
    ids = tiny.tokens(2, 60)
    # Nothing of the sequence lies outside the window of the first layer.
    assert tiny.largest_difference(tiny.logits(ours, ids), tiny.logits(theirs, ids)) < 1e-5


def test_fewer_key_value_heads_are_means(tmp_path: Path) -> None:
    theirs = tiny.save_checkpoint(tmp_path, "qwen2", num_key_value_heads=4)
    checkpoint = Checkpoint(tmp_path)
    base = checkpoint.base
    grouped = LayerSpec(mixer=base.mixer.replace(num_kv_heads=2), ffn=base.ffn)
    architecture = Architecture(name="a", base=base, layers=(grouped,) * 3)
    ours, origins = build_model(architecture, checkpoint=checkpoint)
    before = {k.removeprefix("model.layers.0.self_attn."): v for k, v in theirs.state_dict().items()}
    after = {k.removeprefix("model.layers.0.mixer."): v for k, v in ours.state_dict().items()}
    torch.testing.assert_close(
        after["k_proj.weight"], before["k_proj.weight"].reshape(2, 2, 8, 32).mean(1).flatten(0, 1)
    )
    torch.testing.assert_close(after["v_proj.bias"], before["v_proj.bias"].reshape(2, 2, 8).mean(1).flatten())
    torch.testing.assert_close(after["q_proj.weight"], before["q_proj.weight"])
    assert origins[0].new == ()
    assert "mixer.k_proj.weight" in origins[0].mapped


def test_a_folder_is_a_base(tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, "llama")
    base = base_named(str(tmp_path))
    assert (base.family, base.num_layers, base.mixer.head_dim) == ("llama", 3, 8)
    assert base.rope_scaling is not None
    assert base.rope_scaling.factor == 8.0
    assert base == Checkpoint(tmp_path).base


def test_a_name_from_the_built_ins_is_kept_and_its_rope_is_the_checkpoints(tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, "qwen3")
    checkpoint = Checkpoint(tmp_path)
    other = checkpoint.base.replace(name="mine", rope_theta=3.0, vocab_size=5)
    model, _ = build_model(Architecture.of_base(other), checkpoint=checkpoint)
    assert model.config.spec.base == checkpoint.base.replace(name="mine")


def _break(folder: Path, how: str) -> None:
    config = folder / "config.json"
    weights = folder / "model.safetensors"
    match how:
        case "no config":
            config.unlink()
        case "no weights":
            weights.unlink()
        case "pickled":
            weights.rename(folder / "pytorch_model.bin")
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "more layers":
            config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
            content = json.loads(config.read_text())
            content["layer_types"] = ["full_attention"] * 4
            config.write_text(json.dumps(content))
        case "quantised":
            content = json.loads(config.read_text())
            content["quantization_config"] = {"quant_method": "gptq"}
            config.write_text(json.dumps(content))
        case "output bias":
            content = json.loads(config.read_text())
            content["attention_bias"] = True
            config.write_text(json.dumps(content))
        case "lost shard":
            index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("no config", "has no config.json"),
        ("no weights", "has neither model.safetensors nor"),
        ("pickled", "save it again as safetensors"),
        ("truncated", "cannot read .*model.safetensors"),
        (
            "more layers",
            "lacks the tensor model.layers.3.*config.json and the weights do not belong together",
        ),
        ("quantised", "quantised weights"),
        ("output bias", "attention_bias"),
        ("lost shard", "names model-00001-of-00002.safetensors, which is not there"),
    ],
)
def test_broken_checkpoints_are_refused(tmp_path: Path, how: str, told: str) -> None:
    tiny.save_checkpoint(tmp_path, "qwen3")
    _break(tmp_path, how)
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(DataError, match=told):
        build_model(Architecture.of_base(checkpoint.base), checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 2}, "num_layers 3 against 2"),
        ({"hidden_size": 64}, "hidden_size 32 against 64"),
        ({"num_key_value_heads": 4}, "4/2 heads x 16, qk_norm against 4/4 heads x 16, qk_norm"),
    ],
)
def test_an_architecture_for_another_model_is_refused(tmp_path: Path, changes: Any, told: str) -> None:
    tiny.save_checkpoint(tmp_path, "qwen3", **changes)
    with pytest.raises(InputError, match=f"does not fit the architecture's base tiny.*{told}.*--base"):
        build_model(tiny.architecture(tiny.FULL, tiny.FULL, tiny.FULL), checkpoint=Checkpoint(tmp_path))


def test_random_models_depend_on_the_seed_only() -> None:
    architecture = tiny.architecture(tiny.FULL, NoMixer())
    state = torch.random.get_rng_state()
    one, same, other = (build_model(architecture, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers were touched"


def test_sinks_start_without_effect_and_sigmoid_scores_inherit_the_projections(tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path, "qwen3")
    checkpoint = Checkpoint(tmp_path)
    base = checkpoint.base
    sunk = LayerSpec(mixer=base.mixer.replace(sinks=True), ffn=base.ffn)
    ours, origins = build_model(Architecture(name="a", base=base, layers=(sunk,) * 3), checkpoint=checkpoint)
    assert origins[0].mapped == ("mixer.sinks",)
    plain, _ = build_model(Architecture.of_base(base), checkpoint=checkpoint)
    ids = tiny.tokens(2, 40)
    assert 0 < tiny.largest_difference(tiny.logits(ours, ids), tiny.logits(plain, ids)) < 5e-3
    sigmoid = LayerSpec(mixer=base.mixer.replace(scores="sigmoid"), ffn=base.ffn)
    _, origins = build_model(Architecture(name="a", base=base, layers=(sigmoid,) * 3), checkpoint=checkpoint)
    assert origins[0].new == ()
