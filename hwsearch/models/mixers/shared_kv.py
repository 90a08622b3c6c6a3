"""Softmax attention that reads the keys and values of an earlier layer (arXiv 2405.12981, 2405.05254).

It projects queries only and has no cache. What it reads is handed to it piece by piece, as transformers' Gemma 3n does:
the earlier layer lends all that the tokens of a piece may see, which a window's own cache no longer holds afterwards.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from hwsearch.errors import InputError
from hwsearch.models.mixers.attention import KeysValues, QueryAttention, rope_needed
from hwsearch.models.mixers.base import Backend, MixerState, Rope, zero_padding
from hwsearch.models.norm import RMSNorm
from hwsearch.searchspace.mixers import Mixer as Spec
from hwsearch.searchspace.mixers import SharedKVAttention as SharedKVSpec

__all__ = ["SharedKVAttention"]


class SharedKVAttention(QueryAttention):
    """Queries over lent keys and values; `state` is what the earlier layer lent for these tokens."""

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        head_dim: int,
        rope: Rope,
        window: int = 0,
        qk_norm: bool = False,
        q_bias: bool = False,
        sinks: bool = False,
        sigmoid: bool = False,
        norm_eps: float = 1e-6,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(backend=backend)
        self.head_dim = head_dim
        self.rope = rope
        self.window = window
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=q_bias)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)
        self.q_norm = RMSNorm(head_dim, eps=norm_eps) if qk_norm else None
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
        assert isinstance(spec, SharedKVSpec)
        return cls(
            hidden_size,
            num_heads=spec.num_heads,
            head_dim=spec.head_dim,
            rope=rope_needed(rope, layer_index),
            window=spec.visible,
            qk_norm=spec.qk_norm,
            q_bias=spec.qkv_bias,
            sinks=spec.sinks,
            sigmoid=spec.scores == "sigmoid",
            norm_eps=norm_eps,
            backend=backend,
        )

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MixerState:
        """A state of nothing: between pieces the layer that lends keeps what this one needs."""
        return MixerState()

    def forward(
        self,
        hidden_BTD: Tensor,
        *,
        state: MixerState | None = None,
        mask_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        """Outputs (B, T, D), and None; positions are those of the layer that lent. InputError without `KeysValues`."""
        if not isinstance(state, KeysValues):
            raise InputError("shared_kv_attention needs the keys and values of an earlier layer as its state")
        return self._attended(zero_padding(hidden_BTD, mask_BT), state), None
