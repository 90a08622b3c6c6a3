"""Exports to model classes of transformers: config, check on the meta device, and weights.

A class of transformers may accept a config and build something else: LlamaConfig takes layer types that the model
ignores, Qwen3_5 takes "sliding_attention" and then builds a layer without any mixer. So a config counts only after the
model was built from it, without memory, and every layer's mixer, window and dimensions turned out as asked for.

Weights convert exactly. Qwen3 to Qwen3.5: its norms store the weight minus one, its queries come with an output gate
per head, sigmoid of a projection, which zero weights make one half, so that a doubled output projection undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from hwsearch.errors import InputError
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.models.misfits import Misfit, described
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import Family
from hwsearch.searchspace.mixers import FullAttention, GatedDeltaNet, MixerSpec, SlidingWindowAttention

__all__ = ["NATIVE", "check_layers", "misfits", "native_config", "native_model", "native_name"]


@dataclass(frozen=True)
class _Native:
    """A class of transformers: the families and mixers it holds, and the options that make it hold them."""

    config: str
    families: frozenset[Family]
    mixers: tuple[type, ...]
    options: Callable[[Architecture], Mapping[str, Any]]
    needs: type | None = None


def _window(architecture: Architecture) -> int | None:
    """The window of the sliding layers, None where there are none."""
    windows = [m.window for m in _mixers(architecture) if isinstance(m, SlidingWindowAttention)]
    return windows[0] if windows else None


def _mixers(architecture: Architecture) -> list[MixerSpec]:
    return [layer.mixer for layer in architecture.layers]


def _qwen_window(architecture: Architecture) -> dict[str, Any]:
    # Without use_sliding_window the config drops the window; without layer_types it windows the last layers.
    window = _window(architecture)
    return (
        {}
        if window is None
        else {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    )


def _delta(architecture: Architecture) -> dict[str, Any]:
    (delta,) = {m for m in _mixers(architecture) if isinstance(m, GatedDeltaNet)}
    # Three equal position axes, so any split of the rotary channels among them rotates text alike.
    half = architecture.base.mixer.head_dim // 2
    third = half // 3
    return {
        "linear_num_key_heads": delta.num_k_heads,
        "linear_num_value_heads": delta.num_v_heads,
        "linear_key_head_dim": delta.head_k_dim,
        "linear_value_head_dim": delta.head_v_dim,
        "linear_conv_kernel_dim": delta.conv_size,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": architecture.base.rope_theta,
            "partial_rotary_factor": 1.0,
            "mrope_section": [half - 2 * third, third, third],
            "mrope_interleaved": True,
        },
    }


_SOFTMAX = (FullAttention, SlidingWindowAttention)
NATIVE: Mapping[str, _Native] = {
    "Qwen2ForCausalLM": _Native("Qwen2Config", frozenset({"qwen2"}), _SOFTMAX, _qwen_window),
    "Qwen3ForCausalLM": _Native("Qwen3Config", frozenset({"qwen3"}), _SOFTMAX, _qwen_window),
    "LlamaForCausalLM": _Native("LlamaConfig", frozenset({"llama"}), (FullAttention,), lambda _: {}),
    "MinistralForCausalLM": _Native(
        "MinistralConfig", frozenset({"llama"}), _SOFTMAX, lambda a: {"sliding_window": _window(a)}
    ),
    "Qwen3_5ForCausalLM": _Native(
        "Qwen3_5TextConfig", frozenset({"qwen3"}), (FullAttention, GatedDeltaNet), _delta, needs=GatedDeltaNet
    ),
}


def misfits(architecture: Architecture, name: str) -> list[Misfit]:
    """Why a class of transformers cannot hold an architecture, layer by layer; empty where it can."""
    target, base = NATIVE[name], architecture.base
    if base.family not in target.families:
        return [Misfit(f"its layers are not those of the family {base.family}")]
    found = []
    window = _window(architecture)
    deltas = [mixer for mixer in _mixers(architecture) if isinstance(mixer, GatedDeltaNet)]
    if target.needs is not None and not any(isinstance(m, target.needs) for m in _mixers(architecture)):
        found.append(Misfit("it is for models with gated delta nets, this one has none"))
    if deltas and not any(isinstance(m, FullAttention) for m in _mixers(architecture)):
        found.append(Misfit("it needs at least one full-attention layer"))
    if deltas and base.rope_scaling is not None:
        found.append(Misfit("its rotary embedding takes no stretching"))
    for index, layer in enumerate(architecture.layers):
        mixer, reasons = layer.mixer, []
        if layer.ffn != base.ffn:
            reasons.append(
                f"feed-forward size {layer.ffn.intermediate_size} where the model has one for all layers"
            )
        if not isinstance(mixer, target.mixers):
            reasons.append("it has no such mixer")
        elif isinstance(mixer, _SOFTMAX):
            if mixer.model_dump(exclude={"kind", "window"}) != base.mixer.model_dump(exclude={"kind"}):
                reasons.append(f"{mixer.label} differs from the model's {base.mixer.label}")
            elif mixer.sinks or mixer.scores != "softmax":
                reasons.append("its attention has neither sinks nor sigmoid scores")
            if isinstance(mixer, SlidingWindowAttention) and mixer.window != window:
                reasons.append(f"window {mixer.window} beside {window}, it has one for all layers")
        elif isinstance(mixer, GatedDeltaNet) and mixer != deltas[0]:
            reasons.append(f"{mixer.label} beside {deltas[0].label}, it has one shape for all layers")
        found += [Misfit.of(index, layer, reason) for reason in reasons]
    return found


def native_name(architecture: Architecture) -> str:
    """The class of transformers that holds an architecture; InputError that names what stands in the way, if none."""
    reasons = {name: misfits(architecture, name) for name in NATIVE}
    for name, found in reasons.items():
        if not found:
            return name
    own = [name for name in reasons if architecture.base.family in NATIVE[name].families]
    nearest = min(own, key=lambda name: len(reasons[name]))
    raise InputError(
        f"no class of transformers holds {architecture.name}; the nearest is {nearest}: "
        f"{described(reasons[nearest])}; use --to hf, which holds every architecture"
    )


def native_config(architecture: Architecture, name: str) -> Any:
    """The config of the class `name`; it holds the architecture where `misfits` is empty."""
    base, target = architecture.base, NATIVE[name]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base.rope_theta}
    if base.rope_scaling is not None:
        rope = {**base.rope_scaling.model_dump(), "rope_theta": base.rope_theta}
    fields = {
        "vocab_size": base.vocab_size,
        "hidden_size": base.hidden_size,
        "intermediate_size": base.ffn.intermediate_size,
        "num_hidden_layers": base.num_layers,
        "num_attention_heads": base.mixer.num_heads,
        "num_key_value_heads": base.mixer.num_kv_heads,
        "head_dim": base.mixer.head_dim,
        "rms_norm_eps": base.rms_norm_eps,
        "tie_word_embeddings": base.tie_word_embeddings,
        "max_position_embeddings": base.max_position_embeddings,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": None,
        "architectures": [name],
    }
    if name != "LlamaForCausalLM":
        fields["layer_types"] = list(architecture.layer_types)
    return getattr(transformers, target.config)(**{**fields, **target.options(architecture)})


def check_layers(config: Any, architecture: Architecture) -> None:
    """Build the class that a config names on the meta device; InputError for the first layer that is not as asked."""
    name = config.architectures[0]
    with torch.device("meta"):
        layers = getattr(transformers, name)._from_config(config).model.layers
    if len(layers) != len(architecture.layers):
        raise InputError(
            f"{name} builds {len(layers)} layers, the architecture has {len(architecture.layers)}"
        )
    for index, (built, layer) in enumerate(zip(layers, architecture.layers, strict=True)):
        wanted, got = _wanted(layer.mixer), _built(built)
        if wanted != got:
            raise InputError(
                f"{name} cannot hold layer {index}: asked for {_in_words(wanted)}, it builds {_in_words(got)}"
            )


def _wanted(mixer: MixerSpec) -> dict[str, Any]:
    match mixer:
        case FullAttention() | SlidingWindowAttention():
            window = mixer.window if isinstance(mixer, SlidingWindowAttention) else None
            heads = {"keys": mixer.num_kv_heads * mixer.head_dim, "head_dim": mixer.head_dim}
            return {"mixer": "softmax attention", "window": window, **heads}
        case GatedDeltaNet():
            return {"mixer": "gated delta net", **mixer.model_dump(exclude={"kind"})}
        case _:
            return {"mixer": mixer.kind}


def _built(layer: nn.Module) -> dict[str, Any]:
    """What a layer of transformers is made of, by its modules."""
    attention, delta = getattr(layer, "self_attn", None), getattr(layer, "linear_attn", None)
    if attention is not None and delta is None:
        return {
            "mixer": "softmax attention",
            "window": getattr(attention, "sliding_window", None),
            "keys": attention.k_proj.out_features,
            "head_dim": attention.head_dim,
        }
    if delta is not None and attention is None:
        names = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
        shape = {name: getattr(delta, name) for name in names}
        return {"mixer": "gated delta net", **shape, "conv_size": delta.conv_kernel_size}
    return {"mixer": "no mixer"}


def _in_words(made: Mapping[str, Any]) -> str:
    details = [f"{name} {value}" for name, value in made.items() if name != "mixer" and value is not None]
    return f"{made['mixer']}" + (f" ({', '.join(details)})" if details else "")


def native_model(model: HybridForCausalLM) -> Any:
    """A model of transformers with the same layers, weights and logits; InputError where no class holds it."""
    architecture = model.config.spec
    name = native_name(architecture)
    config = native_config(architecture, name)
    config.vocab_size = model.config.vocab_size
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, token, getattr(model.config, token))
    check_layers(config, architecture)
    gated = name == "Qwen3_5ForCausalLM"
    weights: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and architecture.base.tie_word_embeddings:
            continue
        if ".mixer." not in key:
            weights[key] = _centred(tensor) if gated and "norm" in key else tensor
    for index, layer in enumerate(architecture.layers):
        prefix = f"model.layers.{index}."
        mixer = {
            key.removeprefix(f"{prefix}mixer."): tensor
            for key, tensor in model.state_dict().items()
            if key.startswith(f"{prefix}mixer.")
        }
        if isinstance(layer.mixer, GatedDeltaNet):
            weights |= {f"{prefix}linear_attn.{key}": tensor for key, tensor in _delta_weights(mixer).items()}
        else:
            if gated:
                mixer = _gated_attention(mixer, head_dim=architecture.base.mixer.head_dim)
            weights |= {f"{prefix}self_attn.{key}": tensor for key, tensor in mixer.items()}
    made, info = getattr(transformers, name).from_pretrained(
        None, config=config, state_dict=weights, dtype=model.dtype, output_loading_info=True
    )
    wrong = sorted(
        str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]
    )
    assert not wrong, f"the export of {name} does not fill or fit: {wrong[:3]}"
    return made.eval()


def _centred(weight: Tensor) -> Tensor:
    """A norm's weight minus one, subtracted in fp32."""
    return (weight.float() - 1).to(weight.dtype)


def _gated_attention(mixer: Mapping[str, Tensor], *, head_dim: int) -> dict[str, Tensor]:
    """Qwen3's attention for Qwen3.5: per head the query rows, then as many zero rows of the gate."""
    queries = mixer["q_proj.weight"].reshape(-1, head_dim, mixer["q_proj.weight"].shape[1])
    return {
        **mixer,
        "q_proj.weight": torch.cat((queries, torch.zeros_like(queries)), dim=1).flatten(0, 1),
        "o_proj.weight": 2 * mixer["o_proj.weight"],
        "q_norm.weight": _centred(mixer["q_norm.weight"]),
        "k_norm.weight": _centred(mixer["k_norm.weight"]),
    }


def _delta_weights(mixer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A gated delta net for Qwen3.5: queries, keys and values in one projection and one convolution."""
    return {
        "in_proj_qkv.weight": torch.cat([mixer[f"{part}_proj.weight"] for part in "qkv"]),
        "conv1d.weight": torch.cat([mixer[f"{part}_conv1d.weight"] for part in "qkv"]),
        "in_proj_z.weight": mixer["g_proj.weight"],
        "in_proj_a.weight": mixer["a_proj.weight"],
        "in_proj_b.weight": mixer["b_proj.weight"],
        "A_log": mixer["A_log"],
        "dt_bias": mixer["dt_bias"],
        "norm.weight": mixer["o_norm.weight"],
        "out_proj.weight": mixer["o_proj.weight"],
    }
