"""Causal softmax attention over the whole context or a sliding window, with grouped queries.

Options: sinks and sigmoid scores, as the spec describes them. Covers what Qwen2 (bias on q, k and v), Qwen3 (RMSNorm
per head on q and k) and Llama (neither; stretched rotary frequencies) do, with their parameter names. The state holds
rotated keys; a window keeps no more than it can see. What layers that
compute keys and values share with those that read an earlier layer's (`shared_kv.py`) is `QueryAttention`.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from hwsearch.errors import InputError
from hwsearch.kernels.attention import attention
from hwsearch.models.mixers.base import Backend, Mixer, MixerState, Rope, zero_padding
from hwsearch.models.norm import RMSNorm
from hwsearch.searchspace.mixers import FullAttention, SlidingWindowAttention
from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = [
    "ROOM",
    "AttentionState",
    "KeysValues",
    "Lent",
    "QueryAttention",
    "SoftmaxAttention",
    "rope_needed",
]

ROOM = 256
"""Tokens: decoding copies the cache once in so many steps instead of at every one."""


@dataclass(frozen=True)
class AttentionState(MixerState):
    """Rotated keys and values (B, H_kv, S, D) of the tokens still visible, and how many real tokens were seen (B,).

    mask_BS: False at padded keys; None where no key is padded. room: the buffer whose tokens from `start` on the keys
    and values are, where the next ones can be written; not counted in `bytes`.
    """

    k_BHSD: Tensor
    v_BHSD: Tensor
    seen_B: Tensor
    mask_BS: Tensor | None = None
    room: _Room | None = None
    start: int = 0

    @classmethod
    def within(cls, k_BHCD: Tensor, v_BHCD: Tensor, *, kept: int, seen_B: Tensor) -> AttentionState:
        """The first `kept` tokens of two buffers; the next ones are written behind them."""
        room = _Room(k_BHCD, v_BHCD, kept)
        return cls(k_BHCD[:, :, :kept], v_BHCD[:, :, :kept], seen_B, None, room)

    def apply(self, change: Callable[[Tensor], Tensor]) -> AttentionState:
        return replace(super().apply(change), room=None, start=0)

    def extended(self, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor, _Room | None, int]:
        """Keys and values with the new ones behind, their buffer, and where they begin in it.

        This state stays as it is: a buffer in which another continuation of it has written is left to that one.
        """
        if torch.is_grad_enabled() and (k_BHTD.requires_grad or self.k_BHSD.requires_grad):
            return torch.cat((self.k_BHSD, k_BHTD), dim=2), torch.cat((self.v_BHSD, v_BHTD), dim=2), None, 0
        kept, new, start, room = self.k_BHSD.shape[2], k_BHTD.shape[2], self.start, self.room
        if room is None or not room.free(start + kept, start + kept + new):
            batch, heads, _, head_dim = k_BHTD.shape
            shape = (batch, heads, kept + new + ROOM, head_dim)
            start, room = 0, _Room(k_BHTD.new_empty(shape), v_BHTD.new_empty(shape), kept)
            room.k_BHCD[:, :, :kept] = self.k_BHSD
            room.v_BHCD[:, :, :kept] = self.v_BHSD
        past, total = start + kept, start + kept + new
        room.k_BHCD[:, :, past:total] = k_BHTD
        room.v_BHCD[:, :, past:total] = v_BHTD
        room.filled = total
        return room.k_BHCD[:, :, start:total], room.v_BHCD[:, :, start:total], room, start


@dataclass
class _Room:
    """Keys and values with unused places behind the `filled` ones."""

    k_BHCD: Tensor
    v_BHCD: Tensor
    filled: int

    def free(self, past: int, total: int) -> bool:
        """Whether tokens `past` to `total` can be written here."""
        writable = torch.is_inference_mode_enabled() or not self.k_BHCD.is_inference()
        return writable and self.filled == past and self.k_BHCD.shape[2] >= total


@dataclass(frozen=True)
class KeysValues(MixerState):
    """What the queries of a piece may see: rotated keys and values (B, H_kv, S, D), and where the queries stand.

    positions_BT: of the queries, (B, T) or (1, T). mask_BS: False at padded keys; None where no key is padded.
    """

    k_BHSD: Tensor
    v_BHSD: Tensor
    positions_BT: Tensor
    mask_BS: Tensor | None = None


class Lent(UserDict[int, KeysValues]):
    """By layer, what it lends to later ones for the tokens of one forward.

    Not a dict: accelerate and FSDP hand on copies of those, and what a layer adds to a copy is lost.
    """

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Itself, everything on a device: accelerate asks for it where a model is spread over several."""
        for layer, keys in self.items():
            self[layer] = keys.apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return self


class QueryAttention(Mixer):
    """What asks: queries, the softmax over keys that are there, the output projection."""

    head_dim: int
    rope: Rope
    window: int
    sigmoid: bool
    q_proj: nn.Linear
    o_proj: nn.Linear
    q_norm: RMSNorm | None
    sinks: nn.Parameter | None

    def reset_parameters(self) -> None:
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def _attended(self, hidden_BTD: Tensor, seen: KeysValues) -> Tensor:
        """The mixer's output (B, T, D) for tokens that see these keys and values."""
        batch, length, _ = hidden_BTD.shape
        q_BTHD = self.q_proj(hidden_BTD).view(batch, length, -1, self.head_dim)
        if self.q_norm is not None:
            q_BTHD = self.q_norm(q_BTHD)
        self.kernel_used = backend = "torch" if self.backend == "auto" else self.backend
        out_BHTD = attention(
            self._rotated(q_BTHD, seen.positions_BT),
            seen.k_BHSD,
            seen.v_BHSD,
            window=self.window,
            mask_BS=seen.mask_BS,
            sinks_H=self.sinks,
            sigmoid=self.sigmoid,
            backend=backend,
        )
        mixed_BTD: Tensor = self.o_proj(out_BHTD.transpose(1, 2).reshape(batch, length, -1))
        return mixed_BTD

    def _rotated(self, x_BTHD: Tensor, positions_BT: Tensor) -> Tensor:
        """(B, H, T, D): each pair (first half, second half) turned by its angle."""
        frequencies = self.rope.frequencies(self.head_dim, positions_BT.device)
        angles = (positions_BT[..., None].float() * frequencies)[:, None]
        cos, sin = angles.cos().to(x_BTHD.dtype), angles.sin().to(x_BTHD.dtype)
        first, second = x_BTHD.transpose(1, 2).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class SoftmaxAttention(QueryAttention):
    """Softmax attention, or sigmoid attention where asked for; `window` 0 sees the whole context."""

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope: Rope,
        window: int = 0,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        sinks: bool = False,
        sigmoid: bool = False,
        norm_eps: float = 1e-6,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(backend=backend)
        self.head_dim = head_dim
        self.num_kv_heads = num_kv_heads
        self.rope = rope
        self.window = window
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)
        self.q_norm = RMSNorm(head_dim, eps=norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(head_dim, eps=norm_eps) if qk_norm else None
        self.sinks = nn.Parameter(torch.zeros(num_heads)) if sinks else None
        self.sigmoid = sigmoid

    @classmethod
    def from_spec(
        cls,
        spec: Spec,
        hidden_size: int,
        *,
        layer_index: int,
        num_layers: int,
        norm_eps: float,
        rope: Rope | None,
        backend: Backend,
    ) -> Self:
        assert isinstance(spec, FullAttention | SlidingWindowAttention)
        return cls(
            hidden_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            rope=rope_needed(rope, layer_index),
            window=spec.visible,
            qk_norm=spec.qk_norm,
            qkv_bias=spec.qkv_bias,
            sinks=spec.sinks,
            sigmoid=spec.scores == "sigmoid",
            norm_eps=norm_eps,
            backend=backend,
        )

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionState:
        empty = torch.empty((batch, self.num_kv_heads, 0, self.head_dim), device=device, dtype=dtype)
        return AttentionState(empty, empty, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(
        self,
        hidden_BTD: Tensor,
        *,
        state: MixerState | None = None,
        mask_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        lent: list[KeysValues] | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        """As every mixer's. lent: where given, what the tokens saw is appended, for layers that read it."""
        assert state is None or isinstance(state, AttentionState)
        batch, length, _ = hidden_BTD.shape
        hidden_BTD = zero_padding(hidden_BTD, mask_BT)
        per_head = (batch, length, -1, self.head_dim)
        k_BTHD = self.k_proj(hidden_BTD).view(per_head)
        v_BHSD = self.v_proj(hidden_BTD).view(per_head).transpose(1, 2)
        if self.k_norm is not None:
            k_BTHD = self.k_norm(k_BTHD)
        if positions_BT is None:
            positions_BT = _positions(length, state, mask_BT, hidden_BTD.device)
        k_BHSD = self._rotated(k_BTHD, positions_BT)
        after, mask_BS = None, mask_BT
        if state is not None:
            mask_BS = _joined(state, mask_BT, batch, length)
            k_BHSD, v_BHSD, after = self._advanced(state, k_BHSD, v_BHSD, mask_BS, mask_BT)
        seen = KeysValues(k_BHSD, v_BHSD, positions_BT, mask_BS)
        if lent is not None:
            lent.append(seen)
        return self._attended(hidden_BTD, seen), after

    def _advanced(
        self,
        state: AttentionState,
        k_BHTD: Tensor,
        v_BHTD: Tensor,
        mask_BS: Tensor | None,
        mask_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor, AttentionState]:
        """Keys and values for the new queries, and the state after them."""
        new = k_BHTD.shape[2]
        seen_B = state.seen_B + (new if mask_BT is None else mask_BT.sum(dim=1))
        # The next query sees itself and the window - 1 keys before it.
        first = max(state.k_BHSD.shape[2] + new - self.window + 1, 0) if self.window else 0
        kept_mask_BS = mask_BS[:, first:].clone() if first and mask_BS is not None else mask_BS
        if first and new > ROOM:
            k_BHSD, v_BHSD = (
                torch.cat((state.k_BHSD, k_BHTD), dim=2),
                torch.cat((state.v_BHSD, v_BHTD), dim=2),
            )
            # Copies: a slice would keep the whole prompt's keys in memory.
            kept = k_BHSD[:, :, first:].clone(), v_BHSD[:, :, first:].clone()
            return k_BHSD, v_BHSD, AttentionState(*kept, seen_B, kept_mask_BS)
        k_BHSD, v_BHSD, room, start = state.extended(k_BHTD, v_BHTD)
        kept = k_BHSD[:, :, first:], v_BHSD[:, :, first:]
        return k_BHSD, v_BHSD, AttentionState(*kept, seen_B, kept_mask_BS, room, start + first)


def rope_needed(rope: Rope | None, layer_index: int) -> Rope:
    if rope is None:
        raise InputError(f"layer {layer_index}: softmax attention needs a rotary embedding, pass rope")
    return rope


def _positions(
    length: int, state: AttentionState | None, mask_BT: Tensor | None, device: torch.device
) -> Tensor:
    steps = torch.arange(length, device=device)[None] if mask_BT is None else mask_BT.long().cumsum(1) - 1
    return steps.clamp(min=0) if state is None else (steps + state.seen_B[:, None]).clamp(min=0)


def _joined(state: AttentionState, mask_BT: Tensor | None, batch: int, length: int) -> Tensor | None:
    """The mask of the state's keys and the new ones; None where no key is padded."""
    if state.mask_BS is None and mask_BT is None:
        return None
    kept = state.k_BHSD.shape[2]
    before = (
        state.seen_B.new_ones((batch, kept), dtype=torch.bool) if state.mask_BS is None else state.mask_BS
    )
    now = state.seen_B.new_ones((batch, length), dtype=torch.bool) if mask_BT is None else mask_BT
    return torch.cat((before, now), dim=1)
