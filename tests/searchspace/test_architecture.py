"""Architecture JSON: round trips, refusals that name the path, the published schema, Hugging Face configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hwsearch.errors import DataError, HwsearchError, InputError
from hwsearch.searchspace.architecture import Architecture, LayerSpec, architecture_schema
from hwsearch.searchspace.bases import BASES, base_named
from hwsearch.searchspace.mixers import GatedDeltaNet, NoMixer, SlidingWindowAttention
from hwsearch.searchspace.references import REFERENCES, architecture_named

NAMES = [*REFERENCES, "Qwen3-1.7B", "Llama-3.1-8B"]


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip_is_exact_and_fits_the_schema(name: str) -> None:
    architecture = architecture_named(name)
    text = architecture.to_json()
    assert Architecture.from_json(text, source="text") == architecture
    schema = architecture_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(text), schema)


def _edited(**changes: Any) -> str:
    data = json.loads(architecture_named("jet-nemotron-2b").to_json())
    for path, value in changes.items():
        *parents, last = path.split("__")
        at = data
        for key in parents:
            at = at[int(key) if key.isdigit() else key]
        at[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a valid architecture"),
        (_edited(extra=1), "extra: unknown key"),
        (_edited(layers__3__mixer__heads=2), r"layers\[3\]\.mixer.*heads: unknown key"),
        (
            _edited(layers__0__ffn__intermediate_size=-5),
            r"layers\[0\]\.ffn\.intermediate_size.*greater than or equal",
        ),
        (_edited(layers__0__mixer__kind="mamba9"), r"layers\[0\]\.mixer.*mamba9"),
        (_edited(layers=[]), "layers has 0 entries and the base Qwen2.5-1.5B 28 layers"),
        (_edited(layer_types=["full_attention"] * 28), "layer_types does not follow from the layers"),
        (_edited(schema_version=2), "schema_version 2 is newer than 1"),
        (_edited(base__mixer__num_kv_heads=5), "not a multiple of num_kv_heads 5"),
    ],
)
def test_malformed_json_is_refused_with_its_path(text: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        Architecture.from_json(text, source="arch.json")
    assert "arch.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_derived_keys_may_be_left_out() -> None:
    architecture = architecture_named("jet-nemotron-4b")
    data = json.loads(architecture.to_json())
    del data["layer_types"], data["targets"]
    assert Architecture.from_json(json.dumps(data), source="text") == architecture


def _hybrid(base_name: str, *mixers: Any) -> Architecture:
    base = BASES[base_name]
    chosen = [mixers[i % len(mixers)] for i in range(base.num_layers)]
    layers = tuple(LayerSpec(mixer=mixer, ffn=base.ffn) for mixer in chosen)
    return Architecture(name="hybrid", base=base, layers=layers)


def test_targets_name_native_classes_only_where_one_can_hold_every_layer() -> None:
    qwen3, llama = BASES["Qwen3-1.7B"].mixer, BASES["Llama-3.2-1B"].mixer
    delta = GatedDeltaNet(num_k_heads=16, num_v_heads=32, head_k_dim=128, head_v_dim=128)

    def window(mixer: Any, size: int) -> SlidingWindowAttention:
        return SlidingWindowAttention(window=size, **mixer.model_dump(exclude={"kind"}))

    assert _hybrid("Qwen3-1.7B", qwen3).targets == ("Qwen3ForCausalLM",)
    assert _hybrid("Qwen3-1.7B", qwen3, delta).targets == ("Qwen3_5ForCausalLM",)
    assert _hybrid("Llama-3.2-1B", llama, window(llama, 512)).targets == ("MinistralForCausalLM",)
    assert _hybrid("Qwen3-1.7B", window(qwen3, 512), window(qwen3, 1024)).targets == ()
    assert _hybrid("Qwen3-1.7B", qwen3, NoMixer()).targets == ()
    assert architecture_named("jet-nemotron-2b").targets == ()


def _config(tmp_path: Path, **changes: Any) -> Path:
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": 28,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_theta": 1000000,
        "rms_norm_eps": 1e-06,
        "max_position_embeddings": 32768,
        "_name_or_path": "Qwen3-1.7B",
    }
    config |= changes
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


def test_a_config_file_gives_the_built_in_base(tmp_path: Path) -> None:
    path = _config(tmp_path)
    assert base_named(str(path)) == BASES["Qwen3-1.7B"]
    assert base_named(str(tmp_path)) == BASES["Qwen3-1.7B"]
    assert architecture_named(str(path)) == Architecture.of_base(BASES["Qwen3-1.7B"])


def test_a_config_with_transformers_5_rope_parameters(tmp_path: Path) -> None:
    rope = {
        "rope_theta": 500000.0,
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    base = base_named(
        str(_config(tmp_path, model_type="llama", rope_theta=None, rope_parameters=rope, head_dim=None))
    )
    assert base.rope_scaling == BASES["Llama-3.2-1B"].rope_scaling
    assert base.rope_theta == 500000.0
    assert base.mixer.head_dim == 128
    assert not base.mixer.qk_norm


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt2"}, "model_type must be one of qwen2, qwen3, llama; got 'gpt2'"),
        ({"hidden_size": None}, "the key 'hidden_size' is missing"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_attention_heads": "many"}, "num_heads"),
        ({"use_sliding_window": True}, "must use full attention in every layer"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention layers"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "only SwiGLU"),
    ],
)
def test_unsupported_configs_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        base_named(str(_config(tmp_path, **changes)))
    assert "config.json" in str(caught.value)


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean Qwen3-1\.7B"):
        base_named("qwen3-1.7")
    with pytest.raises(InputError, match="did you mean jet-nemotron-2b"):
        architecture_named("jet-nemotron2b")


def test_files_that_cannot_be_read_are_errors_of_ours(tmp_path: Path) -> None:
    broken = tmp_path / "arch.json"
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HwsearchError, match=r"arch\.json"):
        architecture_named(str(broken))
