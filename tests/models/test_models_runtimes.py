"""Configs for fla and Jet-Nemotron: what they hold, what is refused with its layers, and fla building them."""

from __future__ import annotations

import importlib.util
import json
import warnings

import pytest

from hwsearch.errors import DependencyError, InputError
from hwsearch.models.runtimes import expansion, fla_config, jet_nemotron_config
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.mixers import (
    GLA,
    DeltaNet,
    FullAttention,
    GatedDeltaNet,
    JetBlock,
    MixerSpec,
    NoMixer,
    RetNet,
    SlidingWindowAttention,
)
from hwsearch.searchspace.references import architecture_named
from tests.models import tiny

PLAIN = FullAttention(num_heads=4, num_kv_heads=2, head_dim=8, qkv_bias=True)
WINDOW = SlidingWindowAttention(window=7, **PLAIN.model_dump(exclude={"kind"}))
DELTA = GatedDeltaNet(num_k_heads=2, num_v_heads=4, head_k_dim=24, head_v_dim=64)
JET = JetBlock(num_heads=2, head_k_dim=12, head_v_dim=32)
HAS_FLA = importlib.util.find_spec("fla") is not None and importlib.util.find_spec("fla.models") is not None


def qwen2(*mixers: MixerSpec) -> Architecture:
    return tiny.architecture(*mixers, mixer=PLAIN, family="qwen2")


@pytest.mark.parametrize(("keys", "values"), [(96, 256), (128, 256), (96, 288), (7, 3), (1536, 1535), (3, 7)])
def test_expansion_survives_the_runtimes_rounding(keys: int, values: int) -> None:
    assert int(keys * expansion(keys, values)) == values
    assert round(keys * expansion(keys, values)) == values


@pytest.mark.parametrize("name", ["jet-nemotron-2b", "jet-nemotron-4b"])
def test_the_published_models_get_their_published_config(name: str) -> None:
    """NVIDIA's config.json of the 2B: layer types, window, and JetBlock dimensions."""
    architecture = architecture_named(name)
    made = jet_nemotron_config(architecture)
    content = json.loads(json.dumps(made.content))
    assert not made.built
    small = name.endswith("2b")
    types = content["layer_types"]
    full = (14, 19) if small else (17, 20, 32)
    assert [i for i, kind in enumerate(types) if kind == "attn"] == list(full)
    assert types.count("swa") == (2 if small else 7)
    assert content["efficient_attention_config"]["swa"] == {"window_size": 1152 if small else 2048}
    jet = content["efficient_attention_config"]["jet"]
    assert (jet["head_dim"], jet["num_heads"], jet["conv_size"]) == ((96, 12, 4) if small else (128, 16, 4))
    assert int(jet["head_dim"] * jet["expand_v"]) == 256
    assert (content["hidden_size"], content["intermediate_size"]) == (
        (1536, 8960) if small else (2048, 11008)
    )


@pytest.mark.parametrize(
    ("mixers", "told"),
    [
        ((PLAIN, JET, NoMixer()), r"layer 2 \(none\): every layer has a mixer there"),
        ((PLAIN, JET, DELTA, DELTA), r"layers 2-3 \(gated_delta_net\): there is no such mixer"),
        ((PLAIN, JET, JET.replace(num_heads=4)), r"layer 2 \(jet_block\): .* beside jet_block"),
        ((WINDOW, JET, WINDOW.replace(window=9)), r"layer 2 \(sliding.*\): window 9 beside 7"),
        ((PLAIN, PLAIN), "is for models with JetBlock layers; hybrid has none: use --to native"),
        ((JET, PLAIN.replace(sinks=True)), r"layer 1 \(full_attention\): .*neither sinks"),
    ],
)
def test_jet_nemotron_refuses_what_it_cannot_hold(mixers: tuple[MixerSpec, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        jet_nemotron_config(qwen2(*mixers))


def test_jet_nemotron_refuses_bases_without_qwen2s_attention() -> None:
    with pytest.raises(InputError, match=r"layer 0 \(full_attention\): its attention has biases"):
        jet_nemotron_config(tiny.architecture(tiny.FULL, JET))


@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        (qwen2(PLAIN, DELTA, NoMixer()), r"layer 2 \(none\)"),
        (qwen2(PLAIN, DELTA, JET), r"layer 2 \(jet_block\): there is no such mixer"),
        (
            tiny.architecture(tiny.FULL, DELTA),
            r"no norm on queries and keys; layer 0 .*heads of 16 channels.* = 8",
        ),
        (qwen2(PLAIN, GLA(num_heads=2, head_k_dim=8, head_v_dim=8, gate_low_rank_dim=4)), "a gate of rank 4"),
    ],
)
def test_fla_refuses_what_it_cannot_hold(architecture: Architecture, told: str) -> None:
    with pytest.raises(InputError, match=told):
        fla_config(architecture)


@pytest.mark.skipif(not HAS_FLA, reason="needs fla's models: pip install flash-linear-attention")
@pytest.mark.parametrize(
    "linear",
    [
        DELTA,
        DeltaNet(num_heads=4, head_k_dim=8, head_v_dim=12),
        GLA(num_heads=2, head_k_dim=8, head_v_dim=16),
        RetNet(num_heads=2, head_k_dim=8, head_v_dim=16),
    ],
    ids=lambda spec: spec.kind,
)
def test_fla_builds_every_layer_as_asked_for(linear: MixerSpec) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fla says that Triton has no GPU here
        made = fla_config(qwen2(PLAIN, linear, WINDOW, linear, WINDOW.replace(window=9)))
    assert made.built
    assert [entry["window_size"] for entry in made.content["attn"]] == [None, 7, 9]
    assert [entry["layers"] for entry in made.content["attn"]] == [[0], [2], [4]]


@pytest.mark.skipif(HAS_FLA, reason="fla's models are installed")
def test_without_fla_its_export_asks_for_it() -> None:
    with pytest.raises(DependencyError, match="flash-linear-attention, which is not installed"):
        fla_config(qwen2(PLAIN, DELTA))
