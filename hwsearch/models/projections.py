"""The mapping from a teacher's attention to the projections of a linear mixer (docs/models.md has it with an example).

Heads. Key and value heads of the teacher are first repeated to one for each of its query heads. A mixer with n heads
and a teacher with H: where n >= H, mixer head h reads teacher head floor(h H / n); where n < H it reads the heads from
floor(h H / n) to floor((h + 1) H / n) - 1 and gives each an equal share of its channels.

Channels. Of a teacher head that has more channels than its share, values keep the first ones; queries and keys keep
those that rotate slowest, because a linear mixer does not rotate and the slow ones carry content rather than position
(arXiv 2410.06205). Channels without a teacher start as the model's other new weights do, their output columns at zero.
A teacher's value channel that is read r times has its output column divided by r, so that the sum stays.

The RMSNorm that Qwen3 puts on queries and keys becomes a factor per channel: the mixers normalise themselves, and a
norm forgets the scale but not the weight. Biases on queries, keys and values have no place in a linear mixer and are
dropped. What decides about time starts neutral, see `neutral.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hwsearch.searchspace.mixers import (
    GLA,
    H3,
    RGLRU,
    RWKV7,
    DeltaNet,
    FullAttention,
    GatedDeltaNet,
    JetBlock,
    Mamba2,
    MixerSpec,
    RetNet,
)

__all__ = ["Heads", "Teacher", "channel_map", "mapped_mixer"]

_NEW_STD = 0.02  # of channels without a teacher, as of the model's other new weights


@dataclass(frozen=True)
class Heads:
    """A projection's output: `count` heads of `dim` channels."""

    count: int
    dim: int


@dataclass(frozen=True)
class Teacher:
    """A teacher's attention: weights with one head of `head_dim` rows (o: columns) for each of its query heads."""

    heads: Heads
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor

    @classmethod
    def of(cls, mixer: FullAttention, attention: Mapping[str, Tensor]) -> Self:
        """From the tensors of an attention layer, by their names."""
        group = mixer.num_heads // mixer.num_kv_heads

        def repeated(name: str) -> Tensor:
            heads = attention[name].reshape(mixer.num_kv_heads, mixer.head_dim, -1)
            return heads.repeat_interleave(group, dim=0).flatten(0, 1)

        q, k = attention["q_proj.weight"], repeated("k_proj.weight")
        if mixer.qk_norm:
            q = q * attention["q_norm.weight"].repeat(mixer.num_heads)[:, None]
            k = k * attention["k_norm.weight"].repeat(mixer.num_heads)[:, None]
        return cls(
            heads=Heads(mixer.num_heads, mixer.head_dim),
            q=q,
            k=k,
            v=repeated("v_proj.weight"),
            o=attention["o_proj.weight"],
        )


def channel_map(heads: Heads, teacher: Heads, *, rotated: bool) -> Tensor:
    """The teacher's channel for each channel of a mixer's heads, (count * dim,) of int; -1 where it has none.

    rotated: take the slowest rotating channels of a head that has more than its share; otherwise the first.
    """
    rows = []
    for head in range(heads.count):
        first = head * teacher.count // heads.count
        last = max((head + 1) * teacher.count // heads.count, first + 1)
        shares = [heads.dim // (last - first)] * (last - first)
        shares[0] += heads.dim - sum(shares)
        for owner, share in zip(range(first, last), shares, strict=True):
            kept = min(share, teacher.dim)
            chosen = _slowest(teacher.dim, kept) if rotated else torch.arange(kept)
            rows += [chosen + owner * teacher.dim, torch.full((share - kept,), -1)]
    return torch.cat(rows)


def _slowest(dim: int, kept: int) -> Tensor:
    """The `kept` slowest rotating channels of a head; channel i and i + dim / 2 turn together, slower as i grows."""
    half = dim // 2
    pairs = torch.arange(half).flip(0)
    order = torch.stack((pairs, pairs + half), dim=1).flatten()
    return order[:kept].sort().values


def mapped_mixer(spec: MixerSpec, teacher: Teacher) -> dict[str, Tensor]:
    """State-dict entries of a linear mixer that follow from a teacher; empty for a mixer without counterparts."""
    own = teacher.heads
    match spec:
        case GatedDeltaNet():
            keys, values = Heads(spec.num_k_heads, spec.head_k_dim), Heads(spec.num_v_heads, spec.head_v_dim)
            return _qkvo(teacher, keys, values)
        case JetBlock() | DeltaNet() | GLA() | RetNet():
            keys, values = Heads(spec.num_heads, spec.head_k_dim), Heads(spec.num_heads, spec.head_v_dim)
            return _qkvo(teacher, keys, values)
        case RWKV7():
            heads = Heads(spec.num_heads, spec.head_dim)
            return _qkvo(teacher, heads, heads, queries="r_proj")
        case H3() if spec.width % own.count == 0:
            # One channel is its own head here; a teacher's head stays together and keeps its order.
            heads = Heads(own.count, spec.width // own.count)
            return _qkvo(teacher, heads, heads)
        case RGLRU() if spec.width % own.count == 0:
            read = channel_map(Heads(own.count, spec.width // own.count), own, rotated=False)
            return {"linear_x.weight": _rows(teacher.v, read), "linear_out.weight": _columns(teacher.o, read)}
        case Mamba2():
            return _mamba2(spec, teacher)
        case _:
            return {}


def _mamba2(spec: Mamba2, teacher: Teacher) -> dict[str, Tensor]:
    """B is the keys, C the queries, x the values (arXiv 2408.15237); the gate z and the step sizes are new.

    The step sizes' projection starts at zero: every token the same step.
    """
    values = channel_map(Heads(spec.num_heads, spec.head_dim), teacher.heads, rotated=False)
    groups = channel_map(Heads(spec.n_groups, spec.state_size), teacher.heads, rotated=True)
    nothing = torch.full((spec.num_heads * spec.head_dim,), -1)
    gate = _rows(teacher.v, nothing)
    steps = torch.zeros(spec.num_heads, teacher.v.shape[1], dtype=teacher.v.dtype)
    inputs = (gate, _rows(teacher.v, values), _rows(teacher.k, groups), _rows(teacher.q, groups), steps)
    return {"in_proj.weight": torch.cat(inputs), "out_proj.weight": _columns(teacher.o, values)}


def _rows(weight: Tensor, channels: Tensor) -> Tensor:
    """The chosen rows of a projection, new ones where there is no teacher."""
    fresh = torch.randn(len(channels), weight.shape[1]) * _NEW_STD
    return torch.where((channels >= 0)[:, None], weight[channels.clamp(min=0)].float(), fresh).to(
        weight.dtype
    )


def _columns(weight: Tensor, channels: Tensor) -> Tensor:
    """The chosen columns of the output projection, shared among the channels that read the same teacher's channel."""
    known = channels >= 0
    readers = torch.bincount(channels[known], minlength=weight.shape[1]).clamp(min=1)
    share = torch.where(known, 1 / readers[channels.clamp(min=0)].float(), 0.0)
    return (weight[:, channels.clamp(min=0)].float() * share).to(weight.dtype)


def _qkvo(teacher: Teacher, keys: Heads, values: Heads, *, queries: str = "q_proj") -> dict[str, Tensor]:
    key_channels = channel_map(keys, teacher.heads, rotated=True)
    value_channels = channel_map(values, teacher.heads, rotated=False)
    return {
        f"{queries}.weight": _rows(teacher.q, key_channels),
        "k_proj.weight": _rows(teacher.k, key_channels),
        "v_proj.weight": _rows(teacher.v, value_channels),
        "o_proj.weight": _columns(teacher.o, value_channels),
    }
