"""Configs for runtimes outside transformers: flash-linear-attention and NVIDIA's Jet-Nemotron.

Both hold one linear mixer of one shape beside softmax layers. fla's softmax layers have heads of hidden_size over
num_heads channels, no norm on queries and keys and no stretched rotary embedding; several windows are fine (0.6).
Jet-Nemotron's are Qwen2's, with one window for all.

An fla config counts only after fla built it on the meta device and every layer was found to be the one asked for.
NVIDIA publishes Jet-Nemotron's code with its checkpoints and not as a package, so that export follows its rules without
building, and says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hwsearch.errors import DependencyError, InputError
from hwsearch.models.misfits import Misfit, described
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

__all__ = ["RuntimeConfig", "fla_config", "jet_nemotron_config"]

_SOFTMAX = (FullAttention, SlidingWindowAttention)


@dataclass(frozen=True)
class RuntimeConfig:
    """A config for another runtime. built: whether the runtime built it here and every layer was checked."""

    class_name: str
    content: Mapping[str, Any]
    built: bool


@dataclass(frozen=True)
class _FlaMixer:
    """How fla names a linear mixer.

    prefix: of its config and model classes. layer: the layer's class. fields: of the config, from a spec and the hidden
    size. dims: the layer's attribute for each field of the spec that it has.
    """

    model_type: str
    prefix: str
    layer: str
    fields: Callable[[Any, int], Mapping[str, Any]]
    dims: Mapping[str, str]


def _gated_delta_net(spec: GatedDeltaNet, hidden_size: int) -> dict[str, Any]:
    return {
        "num_heads": spec.num_k_heads,
        "num_v_heads": spec.num_v_heads,
        "head_dim": spec.head_k_dim,
        "expand_v": expansion(spec.head_k_dim, spec.head_v_dim),
        "conv_size": spec.conv_size,
    }


def _expanded(spec: DeltaNet | GLA | RetNet, hidden_size: int) -> dict[str, Any]:
    """Key and value widths as shares of the hidden size."""
    conv = {"conv_size": spec.conv_size} if isinstance(spec, DeltaNet) else {}
    return {
        "num_heads": spec.num_heads,
        "expand_k": expansion(hidden_size, spec.num_heads * spec.head_k_dim),
        "expand_v": expansion(hidden_size, spec.num_heads * spec.head_v_dim),
        **conv,
    }


_HEADS = {"num_heads": "num_heads", "head_k_dim": "head_k_dim", "head_v_dim": "head_v_dim"}
_FLA: Mapping[type[MixerSpec], _FlaMixer] = {
    GatedDeltaNet: _FlaMixer(
        "gated_deltanet",
        "GatedDeltaNet",
        "GatedDeltaNet",
        _gated_delta_net,
        {
            "num_k_heads": "num_heads",
            "num_v_heads": "num_v_heads",
            "head_k_dim": "head_k_dim",
            "head_v_dim": "head_v_dim",
            "conv_size": "conv_size",
        },
    ),
    DeltaNet: _FlaMixer("delta_net", "DeltaNet", "DeltaNet", _expanded, {**_HEADS, "conv_size": "conv_size"}),
    GLA: _FlaMixer("gla", "GLA", "GatedLinearAttention", _expanded, _HEADS),
    RetNet: _FlaMixer("retnet", "RetNet", "MultiScaleRetention", _expanded, _HEADS),
}
_GLA_RANK = 16  # of its gate; not in fla's config


def expansion(head_k_dim: int, head_v_dim: int) -> float:
    """The factor `expand_v` for which int(head_k_dim * expand_v), as the runtimes compute it, is head_v_dim."""
    factor = head_v_dim / head_k_dim
    while int(head_k_dim * factor) < head_v_dim:
        factor = math.nextafter(factor, math.inf)
    return factor


def fla_config(architecture: Architecture) -> RuntimeConfig:
    """The config of an fla model, built and checked.

    Raises InputError with the layers that fla cannot hold, DependencyError where fla's models are not installed.
    """
    base = architecture.base
    mixer = _only_linear(architecture, tuple(_FLA), "fla")
    _refuse("fla", _fla_misfits(architecture))
    entry = _FLA[type(mixer)]
    content: dict[str, Any] = {
        "model_type": entry.model_type,
        "architectures": [f"{entry.prefix}ForCausalLM"],
        **_common(architecture),
        "hidden_act": "swish",
        "norm_eps": base.rms_norm_eps,
        "attn": _fla_attention(architecture),
        **entry.fields(mixer, base.hidden_size),
    }
    if importlib.util.find_spec("fla") is None or importlib.util.find_spec("fla.models") is None:
        raise DependencyError(
            "flash-linear-attention", extra="gpu", purpose="checking an fla config by building it"
        )
    _check_fla(entry, content, architecture)
    return RuntimeConfig(f"{entry.prefix}ForCausalLM", content, built=True)


def _fla_misfits(architecture: Architecture) -> list[Misfit]:
    base, found = architecture.base, []
    for index, layer in enumerate(architecture.layers):
        mixer, reasons = layer.mixer, []
        if isinstance(mixer, GLA) and mixer.gate_low_rank_dim != _GLA_RANK:
            reasons.append(f"a gate of rank {mixer.gate_low_rank_dim}, its gate has {_GLA_RANK}")
        if not isinstance(mixer, _SOFTMAX):
            found += [Misfit.of(index, layer, reason) for reason in reasons]
            continue
        if mixer.qk_norm:
            reasons.append("its attention has no norm on queries and keys")
        if mixer.sinks or mixer.scores != "softmax":
            reasons.append("its attention has neither sinks nor sigmoid scores")
        if mixer.head_dim * mixer.num_heads != base.hidden_size:
            reasons.append(
                f"heads of {mixer.head_dim} channels, its attention has hidden_size / num_heads = "
                f"{base.hidden_size / mixer.num_heads:g}"
            )
        if base.rope_scaling is not None:
            reasons.append("its rotary embedding takes no stretching")
        found += [Misfit.of(index, layer, reason) for reason in reasons]
    return found


def _fla_attention(architecture: Architecture) -> list[dict[str, Any]] | None:
    """fla's list of softmax layers, one entry for each distinct mixer."""
    groups: dict[FullAttention | SlidingWindowAttention, list[int]] = {}
    for index, layer in enumerate(architecture.layers):
        if isinstance(layer.mixer, _SOFTMAX):
            groups.setdefault(layer.mixer, []).append(index)
    return [
        {
            "layers": layers,
            "num_heads": mixer.num_heads,
            "num_kv_heads": mixer.num_kv_heads,
            "qkv_bias": mixer.qkv_bias,
            "window_size": mixer.window if isinstance(mixer, SlidingWindowAttention) else None,
            "rope_theta": architecture.base.rope_theta,
        }
        for mixer, layers in groups.items()
    ] or None


def _check_fla(entry: _FlaMixer, content: Mapping[str, Any], architecture: Architecture) -> None:
    models = importlib.import_module("fla.models")
    fields = {key: value for key, value in content.items() if key != "model_type"}
    with torch.device("meta"), _without_flash_attn():
        config = getattr(models, f"{entry.prefix}Config")(**fields)
        model = getattr(models, f"{entry.prefix}ForCausalLM")(config)
    for index, (built, layer) in enumerate(zip(model.model.layers, architecture.layers, strict=True)):
        wanted, mixer = layer.mixer, built.attn
        if isinstance(wanted, _SOFTMAX):
            window = wanted.window if isinstance(wanted, SlidingWindowAttention) else None
            right = type(mixer).__name__ == "Attention" and mixer.window_size == window
        else:
            right = type(mixer).__name__ == entry.layer and all(
                getattr(mixer, attribute) == getattr(wanted, name) for name, attribute in entry.dims.items()
            )
        if not right:
            raise InputError(
                f"fla builds {type(mixer).__name__} for layer {index}, asked for {wanted.kind} {wanted.label}"
            )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters != architecture.parameters:
        raise InputError(
            f"fla builds {parameters} parameters, the architecture has {architecture.parameters}"
        )


@contextmanager
def _without_flash_attn() -> Iterator[None]:
    """Let fla's attention be constructed without the flash-attn package, which only its forward needs."""
    attention: Any = importlib.import_module("fla.layers.attn")
    found = attention.flash_attn_func
    attention.flash_attn_func = found or object()
    try:
        yield
    finally:
        attention.flash_attn_func = found


def jet_nemotron_config(architecture: Architecture) -> RuntimeConfig:
    """The config.json of a Jet-Nemotron model, by the rules of NVIDIA's published code; nothing is built.

    Raises InputError with the layers that it cannot hold.
    """
    base = architecture.base
    mixer = _only_linear(architecture, (JetBlock,), "Jet-Nemotron")
    assert isinstance(mixer, JetBlock)
    windows = [m.window for m in _softmax_mixers(architecture) if isinstance(m, SlidingWindowAttention)]
    _refuse("Jet-Nemotron", _jet_misfits(architecture, windows))
    names = {"full_attention": "attn", "sliding_window_attention": "swa", "jet_block": "jet"}
    efficient: dict[str, Any] = {
        "jet": {
            "mode": "chunk",
            "num_heads": mixer.num_heads,
            "head_dim": mixer.head_k_dim,
            "expand_v": expansion(mixer.head_k_dim, mixer.head_v_dim),
            "norm_eps": str(base.rms_norm_eps),  # a string in the published config
            "conv_size": mixer.conv_size,
            "dconv_generator_reduction": mixer.generator_reduction,
            "dconv_implementation": "triton",
        }
    }
    if windows:
        efficient["swa"] = {"window_size": windows[0]}
    content = {
        "model_type": "jet_nemotron",
        "architectures": ["JetNemotronForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_jet_nemotron.JetNemotronConfig",
            "AutoModelForCausalLM": "modeling_jet_nemotron.JetNemotronForCausalLM",
        },
        **_common(architecture),
        "hidden_act": "silu",
        "num_attention_heads": base.mixer.num_heads,
        "num_key_value_heads": base.mixer.num_kv_heads,
        "head_dim": base.mixer.head_dim,
        "rms_norm_eps": base.rms_norm_eps,
        "rope_theta": base.rope_theta,
        "rope_scaling": None if base.rope_scaling is None else base.rope_scaling.model_dump(),
        "layer_types": [names[layer.mixer.kind] for layer in architecture.layers],
        "efficient_attention_config": efficient,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    return RuntimeConfig("JetNemotronForCausalLM", content, built=False)


def _jet_misfits(architecture: Architecture, windows: Sequence[int]) -> list[Misfit]:
    base, found = architecture.base, []
    for index, layer in enumerate(architecture.layers):
        mixer, reasons = layer.mixer, []
        if not isinstance(mixer, _SOFTMAX):
            continue
        if mixer.qk_norm or not mixer.qkv_bias:
            reasons.append("its attention has biases on queries, keys and values and no norm")
        if mixer.sinks or mixer.scores != "softmax":
            reasons.append("its attention has neither sinks nor sigmoid scores")
        if mixer.model_dump(exclude={"kind", "window"}) != base.mixer.model_dump(exclude={"kind"}):
            reasons.append(f"{mixer.label} differs from the model's {base.mixer.label}")
        if isinstance(mixer, SlidingWindowAttention) and mixer.window != windows[0]:
            reasons.append(f"window {mixer.window} beside {windows[0]}, it has one for all layers")
        found += [Misfit.of(index, layer, reason) for reason in reasons]
    return found


def _common(architecture: Architecture) -> dict[str, Any]:
    base = architecture.base
    return {
        "vocab_size": base.vocab_size,
        "hidden_size": base.hidden_size,
        "intermediate_size": base.ffn.intermediate_size,
        "num_hidden_layers": base.num_layers,
        "max_position_embeddings": base.max_position_embeddings,
        "tie_word_embeddings": base.tie_word_embeddings,
        "initializer_range": 0.02,
    }


def _softmax_mixers(architecture: Architecture) -> list[FullAttention | SlidingWindowAttention]:
    return [layer.mixer for layer in architecture.layers if isinstance(layer.mixer, _SOFTMAX)]


def _only_linear(architecture: Architecture, known: tuple[type, ...], runtime: str) -> MixerSpec:
    """The one linear mixer of an architecture; InputError where there is none, or a layer that does not go with it."""
    linear = [layer.mixer for layer in architecture.layers if isinstance(layer.mixer, known)]
    if not linear:
        raise InputError(
            f"{runtime} is for models with {', '.join(sorted(kind.__name__ for kind in known))} layers; "
            f"{architecture.name} has none: use --to native"
        )
    found = []
    for index, layer in enumerate(architecture.layers):
        mixer, reasons = layer.mixer, []
        if layer.ffn != architecture.base.ffn:
            reasons.append(
                f"feed-forward size {layer.ffn.intermediate_size} where the model has one for all layers"
            )
        if isinstance(mixer, NoMixer):
            reasons.append("every layer has a mixer there")
        elif not isinstance(mixer, (*_SOFTMAX, *known)):
            reasons.append("there is no such mixer there")
        elif not isinstance(mixer, _SOFTMAX) and mixer != linear[0]:
            reasons.append(
                f"{mixer.label} beside {linear[0].kind} {linear[0].label}, there is one linear mixer for all layers"
            )
        found += [Misfit.of(index, layer, reason) for reason in reasons]
    _refuse(runtime, found)
    return linear[0]


def _refuse(runtime: str, found: Sequence[Misfit]) -> None:
    if found:
        raise InputError(
            f"{runtime} cannot hold {described(found)}; use --to hf, which holds every architecture"
        )
