"""From a checkpoint and an architecture to a hybrid model that starts as near to the checkpoint as its layers allow.

Inherited as they are: embeddings, LM head, norms, feed-forward networks of the checkpoint's size, and softmax layers of
its dimensions, windowed or not. Fewer key/value heads get the mean of those they replace (arXiv 2305.13245). A linear
mixer starts from the teacher's projections, as in arXiv 2408.15237: queries, keys, values and output take the places
that attention gives them, head by head as in `projections.py`; its gates and convolutions start neutral (`neutral.py`).
What is left starts fresh, and the report says so. A supernet converts single mixers, by the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hwsearch.errors import InputError
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.configuration import HybridConfig, rope_of
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.models.mixers import mixer_for
from hwsearch.models.mixers.base import Mixer
from hwsearch.models.neutral import neutral_start
from hwsearch.models.projections import Teacher, mapped_mixer
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.mixers import FullAttention, MixerSpec, SharedKVAttention, SlidingWindowAttention

__all__ = ["LayerOrigin", "build_model", "converted_mixer"]

_Softmax: TypeAlias = FullAttention | SlidingWindowAttention | SharedKVAttention
_QUIET_SINK = -10.0
_NEW_STD = 0.02  # HybridConfig's initializer_range
_MLP = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class LayerOrigin:
    """Where the parameters of a layer come from, by their names inside it.

    inherited: copied. mapped: computed from the checkpoint's attention. new: initialised. trained: in a supernet.
    """

    index: int
    mixer: str
    inherited: tuple[str, ...]
    mapped: tuple[str, ...]
    new: tuple[str, ...]
    trained: tuple[str, ...] = ()


def build_model(
    architecture: Architecture,
    *,
    checkpoint: Checkpoint | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[HybridForCausalLM, tuple[LayerOrigin, ...]]:
    """The model of an architecture, in evaluation mode, and the origin of each layer's parameters.

    checkpoint: what to inherit from; without one every parameter is random. dtype: the checkpoint's, or fp32, if None.
    Raises InputError where the architecture was made for a model of other dimensions than the checkpoint's, and
    DataError where the checkpoint cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if checkpoint is None:
            model = HybridForCausalLM(HybridConfig.of(architecture)).to(dtype or torch.float32)
            return model.eval(), _origins(architecture, {}, {}, list(model.state_dict()))
        architecture = architecture.replace(base=_merged(architecture.base, checkpoint))
        config = HybridConfig.of(architecture)
        for name, value in checkpoint.token_ids.items():
            setattr(config, name, value)
        inherited, mapped, neutral = _weights(architecture, checkpoint)
        model, info = HybridForCausalLM.from_pretrained(
            None,
            config=config,
            state_dict=inherited | mapped | neutral,
            dtype=dtype or checkpoint.dtype,
            output_loading_info=True,
        )
    wrong = sorted(str(key) for key in (*info["unexpected_keys"], *info["mismatched_keys"]))
    assert not wrong, f"the conversion made tensors that the model has no place for: {wrong[:3]}"
    return model.eval(), _origins(architecture, inherited, mapped, list(model.state_dict()))


def converted_mixer(spec: MixerSpec, *, checkpoint: Checkpoint, index: int, seed: int = 0) -> Mixer:
    """The mixer of a spec in the place of layer `index`, in the checkpoint's dtype, started as `build_model` starts it.

    Raises InputError for a mixer without a module, DataError where the checkpoint cannot be read.
    """
    base = checkpoint.base
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copied, computed = _mixer_weights(spec, base, checkpoint, f"model.layers.{index}.")
        mixer = mixer_for(
            spec,
            base.hidden_size,
            layer_index=index,
            num_layers=base.num_layers,
            norm_eps=base.rms_norm_eps,
            rope=rope_of(base),
        )
        for module in mixer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_NEW_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        mixer.reset_parameters()
    state = {**copied, **computed, **neutral_start(spec, base.hidden_size)}
    unexpected = mixer.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, f"the conversion made tensors that the mixer has no place for: {unexpected[:3]}"
    return mixer.to(checkpoint.dtype)


def _merged(base: Base, checkpoint: Checkpoint) -> Base:
    """The checkpoint's base under the architecture's name for it; InputError where a layer would not fit."""
    actual = checkpoint.base
    differing = [
        f"{name} {getattr(base, name)} against {getattr(actual, name)}"
        for name in ("num_layers", "hidden_size")
        if getattr(base, name) != getattr(actual, name)
    ]
    if base.mixer != actual.mixer:
        differing.append(f"attention of {_described(base.mixer)} against {_described(actual.mixer)}")
    if differing:
        raise InputError(
            f"{checkpoint.folder} does not fit the architecture's base {base.name}: {'; '.join(differing)}; "
            f"search again with --base {checkpoint.folder}"
        )
    return actual.replace(name=base.name)


def _described(mixer: FullAttention) -> str:
    extras = [name for name in ("qk_norm", "qkv_bias") if getattr(mixer, name)]
    return ", ".join([mixer.label, *extras])


def _weights(
    architecture: Architecture, checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """State-dict entries that are copied, those that are computed from attention, and neutral ones."""
    inherited = {name: checkpoint.tensor(name) for name in ("model.embed_tokens.weight", "model.norm.weight")}
    if not architecture.base.tie_word_embeddings:
        inherited["lm_head.weight"] = checkpoint.tensor("lm_head.weight")
    mapped: dict[str, Tensor] = {}
    neutral: dict[str, Tensor] = {}
    for index, layer in enumerate(architecture.layers):
        prefix = f"model.layers.{index}."
        copied, computed = _layer_weights(layer, architecture.base, checkpoint, prefix)
        inherited |= {prefix + name: tensor for name, tensor in copied.items()}
        mapped |= {f"{prefix}mixer.{name}": tensor for name, tensor in computed.items()}
        start = neutral_start(layer.mixer, architecture.base.hidden_size)
        neutral |= {f"{prefix}mixer.{name}": tensor for name, tensor in start.items()}
    return inherited, mapped, neutral


def _layer_weights(
    layer: LayerSpec, base: Base, checkpoint: Checkpoint, prefix: str
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Of one layer: what is copied, by the names in the layer; what attention gives, by the names in its mixer."""
    names = [f"{norm}.weight" for norm in _NORMS]
    if layer.mixer.kind == "none":
        names.remove("input_layernorm.weight")
    if layer.ffn == base.ffn:
        names += [f"mlp.{part}.weight" for part in _MLP]
    copied = {name: checkpoint.tensor(prefix + name) for name in names}
    if layer.mixer.kind == "none":
        return copied, {}
    same, computed = _mixer_weights(layer.mixer, base, checkpoint, prefix)
    return copied | {f"mixer.{name}": tensor for name, tensor in same.items()}, computed


def _mixer_weights(
    spec: MixerSpec, base: Base, checkpoint: Checkpoint, prefix: str
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Of one mixer, by the names in it: what is attention's own, and what is computed from attention."""
    attention = {
        name: checkpoint.tensor(f"{prefix}self_attn.{name}") for name in _attention_names(base.mixer)
    }
    if isinstance(spec, SharedKVAttention):
        attention = {name: tensor for name, tensor in attention.items() if name.startswith(("q_", "o_"))}
    if isinstance(spec, FullAttention | SlidingWindowAttention | SharedKVAttention):
        if _same_softmax(spec, base.mixer):
            return attention, {"sinks": _quiet_sinks(spec)} if spec.sinks else {}
        return {}, _pooled(spec, base.mixer, attention)
    return {}, mapped_mixer(spec, Teacher.of(base.mixer, attention))


def _attention_names(mixer: FullAttention) -> list[str]:
    names = [f"{part}_proj.weight" for part in "qkvo"]
    if mixer.qkv_bias:
        names += [f"{part}_proj.bias" for part in "qkv"]
    if mixer.qk_norm:
        names += ["q_norm.weight", "k_norm.weight"]
    return names


def _same_softmax(mixer: _Softmax, teacher: FullAttention) -> bool:
    own = {"kind", "window", "sinks", "scores"}
    return mixer.model_dump(exclude=own) == teacher.model_dump(exclude=own)


def _quiet_sinks(mixer: _Softmax) -> Tensor:
    """Sinks that take next to nothing of a softmax, so that a layer starts as its teacher."""
    return torch.full((mixer.num_heads,), _QUIET_SINK)


def _pooled(mixer: _Softmax, teacher: FullAttention, attention: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention with fewer key/value heads, each the mean of those it replaces; empty where more than that differs."""
    wanted, had = mixer.num_kv_heads, teacher.num_kv_heads
    if had % wanted or not _same_softmax(mixer.replace(num_kv_heads=had), teacher):
        return {}

    def mean(tensor: Tensor) -> Tensor:
        grouped = tensor.reshape(wanted, had // wanted, teacher.head_dim, *tensor.shape[1:]).float()
        return grouped.mean(dim=1).reshape(-1, *tensor.shape[1:]).to(tensor.dtype)

    pooled = {
        name: mean(tensor) if name.startswith(("k_proj", "v_proj")) else tensor
        for name, tensor in attention.items()
    }
    return pooled | ({"sinks": _quiet_sinks(mixer)} if mixer.sinks else {})


def _origins(
    architecture: Architecture, inherited: Mapping[str, Any], mapped: Mapping[str, Any], names: list[str]
) -> tuple[LayerOrigin, ...]:
    found = []
    for index, layer in enumerate(architecture.layers):
        prefix = f"model.layers.{index}."
        own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        found.append(
            LayerOrigin(
                index=index,
                mixer=layer.mixer.kind,
                inherited=tuple(name for name in own if prefix + name in inherited),
                mapped=tuple(name for name in own if prefix + name in mapped),
                new=tuple(
                    name for name in own if prefix + name not in inherited and prefix + name not in mapped
                ),
            )
        )
    return tuple(found)
