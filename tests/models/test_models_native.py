"""Native exports: equal logits, and every trap of the target classes that a config alone does not show."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.qwen3_5 import modeling_qwen3_5

from hwsearch.errors import InputError
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.convert import build_model
from hwsearch.models.native import NATIVE, check_layers, misfits, native_config, native_model, native_name
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import GatedDeltaNet, MixerSpec, NoMixer, SlidingWindowAttention
from tests.models import tiny

DELTA = GatedDeltaNet(num_k_heads=2, num_v_heads=4, head_k_dim=12, head_v_dim=20)


def window(base: Base, size: int) -> SlidingWindowAttention:
    return SlidingWindowAttention(window=size, **base.mixer.model_dump(exclude={"kind"}))


def hybrid(base: Base, *mixers: MixerSpec) -> Architecture:
    layers = tuple(LayerSpec(mixer=mixer, ffn=base.ffn) for mixer in mixers)
    return Architecture(name="hybrid", base=base, layers=layers)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("family", "windowed", "name"),
    [
        ("qwen2", (), "Qwen2ForCausalLM"),
        ("qwen2", (0, 2), "Qwen2ForCausalLM"),
        ("qwen3", (1,), "Qwen3ForCausalLM"),
        ("qwen3", (0, 1, 2), "Qwen3ForCausalLM"),
        ("llama", (), "LlamaForCausalLM"),
        ("llama", (1, 2), "MinistralForCausalLM"),
    ],
)
def test_softmax_hybrids_have_the_same_logits_natively(
    tmp_path: Path, family: str, windowed: tuple[int, ...], name: str, tied: bool
) -> None:
    tiny.save_checkpoint(tmp_path, family, tie_word_embeddings=tied)
    checkpoint = Checkpoint(tmp_path)
    base = checkpoint.base
    architecture = hybrid(base, *(window(base, 7) if i in windowed else base.mixer for i in range(3)))
    ours, _ = build_model(architecture, checkpoint=checkpoint)
    native = native_model(ours)
    assert type(native).__name__ == name
    native.save_pretrained(tmp_path / "native")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    ids = tiny.tokens(2, 50)
    expected = tiny.logits(ours, ids)
    assert tiny.largest_difference(tiny.logits(loaded, ids), expected) < 1e-5
    whole, _ = build_model(Architecture.of_base(base), checkpoint=checkpoint)
    without_window = tiny.largest_difference(tiny.logits(whole, ids), expected)
    assert (without_window > 1e-2) == bool(windowed), (
        "the window made no difference, so its export is not tested"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_qwen3_with_gated_delta_nets_has_the_same_logits_as_qwen3_5(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap: with fla installed, transformers calls its Triton kernels even for tensors on the CPU.
    for name in ("torch_chunk_gated_delta_rule", "causal_conv1d_fn"):
        monkeypatch.setattr(modeling_qwen3_5, name, inspect.unwrap(getattr(modeling_qwen3_5, name)))
    tiny.save_checkpoint(tmp_path, "qwen3")
    checkpoint = Checkpoint(tmp_path)
    base = checkpoint.base
    architecture = hybrid(base, DELTA, base.mixer, DELTA)
    ours, _ = build_model(architecture, checkpoint=checkpoint, dtype=dtype)
    native = native_model(ours)
    assert type(native).__name__ == "Qwen3_5ForCausalLM"
    ids = tiny.tokens(2, 90)
    expected = tiny.logits(ours, ids)
    assert expected.std() > 0.1
    found = tiny.logits(native, ids, use_cache=False)
    if dtype == torch.float32:
        assert tiny.largest_difference(found, expected) < 1e-5
    else:  # its norms round after their weight, ours before: no nearer to each other than to fp32
        exact, _ = build_model(architecture, checkpoint=checkpoint, dtype=torch.float32)
        rounding = tiny.largest_difference(expected, tiny.logits(exact, ids))
        assert tiny.largest_difference(found, expected) < 2 * rounding


def test_targets_in_architecture_json_are_those_that_hold_it() -> None:
    base = tiny.base(2)
    llama = tiny.base(2, family="llama", mixer=tiny.FULL.replace(qk_norm=False))
    other = SwiGLU(intermediate_size=64)
    cases = [
        hybrid(base, base.mixer, base.mixer),
        hybrid(base, base.mixer, window(base, 7)),
        hybrid(base, window(base, 7), window(base, 8)),
        hybrid(base, base.mixer, DELTA),
        hybrid(base, DELTA, DELTA),
        hybrid(base, DELTA, window(base, 7)),
        hybrid(base, base.mixer, NoMixer()),
        hybrid(llama, llama.mixer, window(llama, 7)),
        hybrid(llama, llama.mixer, llama.mixer),
        hybrid(llama, llama.mixer, DELTA),
        hybrid(base, base.mixer, base.mixer.replace(num_kv_heads=4)),
        hybrid(base, base.mixer, base.mixer.replace(sinks=True)),
        hybrid(
            base.replace(mixer=tiny.FULL.replace(scores="sigmoid")),
            *[tiny.FULL.replace(scores="sigmoid")] * 2,
        ),
        hybrid(base, base.mixer, base.mixer).replace(layers=[LayerSpec(mixer=base.mixer, ffn=other)] * 2),
    ]
    for architecture in cases:
        fitting = [name for name in NATIVE if not misfits(architecture, name)]
        assert list(architecture.targets) == fitting[:1], architecture
        if fitting:
            assert native_name(architecture) == fitting[0]
            check_layers(native_config(architecture, fitting[0]), architecture)


@pytest.mark.parametrize(
    ("mixers", "told"),
    [
        ((tiny.FULL, NoMixer(), NoMixer()), r"layers 1-2 \(none\): it has no such mixer"),
        (
            (tiny.WINDOW, tiny.FULL, tiny.WINDOW.replace(window=9)),
            r"layer 2 \(sliding.*\): window 9 beside 5",
        ),
        (
            (DELTA, tiny.FULL, DELTA.replace(head_v_dim=8)),
            r"layer 2 \(gated_delta_net\): .* beside .*one shape",
        ),
    ],
)
def test_what_no_class_holds_is_refused_with_its_layers(mixers: tuple[MixerSpec, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        native_name(tiny.architecture(*mixers))


def _llama(architecture: Architecture, **changes: Any) -> Any:
    config = native_config(architecture, "LlamaForCausalLM")
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def test_trap_llama_takes_layer_types_and_ignores_the_window() -> None:
    base = tiny.base(2, family="llama", mixer=tiny.FULL.replace(qk_norm=False))
    architecture = hybrid(base, base.mixer, window(base, 7))
    config = _llama(architecture, layer_types=["full_attention", "sliding_attention"], sliding_window=7)
    with pytest.raises(
        InputError, match=r"LlamaForCausalLM cannot hold layer 1: .*window 7.*it builds softmax attention"
    ):
        check_layers(config, architecture)


@pytest.mark.parametrize("name", ["Qwen3_5ForCausalLM", "Qwen3NextForCausalLM"])
def test_trap_qwen_linear_models_build_sliding_layers_without_a_mixer(name: str) -> None:
    base = tiny.base(2)
    fitting = hybrid(base, base.mixer, DELTA)
    config = native_config(fitting, "Qwen3_5ForCausalLM")
    if name == "Qwen3NextForCausalLM":
        config = transformers.Qwen3NextConfig(
            **{
                key: getattr(config, key)
                for key in ("hidden_size", "num_hidden_layers", "vocab_size", "head_dim")
            },
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            num_experts=0,
        )
        config.architectures = [name]
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(InputError, match=f"{name} cannot hold layer 1: .*window 7.*it builds no mixer"):
        check_layers(config, hybrid(base, base.mixer, window(base, 7)))


def test_trap_qwen_drops_the_window_without_use_sliding_window() -> None:
    base = tiny.base(2)
    architecture = hybrid(base, base.mixer, window(base, 7))
    config = native_config(architecture, "Qwen3ForCausalLM")
    assert config.use_sliding_window
    assert config.layer_types == ["full_attention", "sliding_attention"]
    lost = transformers.Qwen3Config(**{**config.to_dict(), "use_sliding_window": False, "layer_types": None})
    lost.architectures = ["Qwen3ForCausalLM"]
    with pytest.raises(InputError, match="cannot hold layer 1"):
        check_layers(lost, architecture)


def test_trap_a_layer_type_outside_the_vocabulary_is_refused_by_transformers() -> None:
    architecture = tiny.architecture(tiny.FULL, NoMixer(), tiny.WINDOW, DELTA)
    assert architecture.layer_types == ("full_attention", "moe", "sliding_attention", "linear_attention")
    transformers.Qwen3Config(num_hidden_layers=4, layer_types=list(architecture.layer_types))
    with pytest.raises(Exception, match="jet_block"):
        transformers.Qwen3Config(num_hidden_layers=1, layer_types=["jet_block"])
    with pytest.raises(Exception, match="must be equal to the number of `layer_types`"):
        transformers.Qwen3Config(num_hidden_layers=3, layer_types=list(architecture.layer_types))


def test_trap_qwen3_5_rotates_a_quarter_of_the_channels_unless_told() -> None:
    base = tiny.base(2)
    config = native_config(hybrid(base, base.mixer, DELTA), "Qwen3_5ForCausalLM")
    assert config.rope_parameters["partial_rotary_factor"] == 1.0
    assert sum(config.rope_parameters["mrope_section"]) == base.mixer.head_dim // 2
    with torch.device("meta"):
        model = transformers.Qwen3_5ForCausalLM(config)
    assert model.model.rotary_emb.inv_freq.shape == (base.mixer.head_dim // 2,)
