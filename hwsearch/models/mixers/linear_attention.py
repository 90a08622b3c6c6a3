"""GLA (arXiv 2312.06635) and RetNet (arXiv 2307.08621), with the layers and names of flash-linear-attention."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwsearch.kernels.linear_attention import BACKENDS as LINEAR_ATTENTION
from hwsearch.kernels.linear_attention import linear_attention
from hwsearch.models.mixers.base import Backend, MixerState, Rope, zero_padding
from hwsearch.models.mixers.recurrent import (
    GatedRMSNorm,
    RecurrentMixer,
    RecurrentState,
    heads_of,
    recurrent_dtype,
)
from hwsearch.searchspace.mixers import GLA as GLASpec
from hwsearch.searchspace.mixers import Mixer as Spec
from hwsearch.searchspace.mixers import RetNet as RetNetSpec

__all__ = ["GLA", "RetNet"]

_GATE_LOGIT_NORMALIZER = 16  # fla's: keeps the decays of a fresh GLA near one
_RETENTION_THETA = 10000.0


class _Retentive(RecurrentMixer):
    operations: ClassVar = {"linear_attention": LINEAR_ATTENTION}

    def _build(self, spec: GLASpec | RetNetSpec, hidden_size: int, norm_eps: float) -> None:
        self.num_heads = spec.num_heads
        self.head_k_dim, self.head_v_dim = spec.head_k_dim, spec.head_v_dim
        keys, values = spec.num_heads * spec.head_k_dim, spec.num_heads * spec.head_v_dim
        self.q_proj = nn.Linear(hidden_size, keys, bias=False)
        self.k_proj = nn.Linear(hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(hidden_size, values, bias=False)
        self.g_proj = nn.Linear(hidden_size, values, bias=False)
        self.g_norm_swish_gate = GatedRMSNorm(spec.head_v_dim, eps=norm_eps)
        self.o_proj = nn.Linear(values, hidden_size, bias=False)

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        return RecurrentState(
            torch.zeros(
                batch,
                self.num_heads,
                self.head_k_dim,
                self.head_v_dim,
                device=device,
                dtype=recurrent_dtype(dtype),
            )
        )

    def _heads(self, hidden_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            heads_of(self.q_proj(hidden_BTD), self.head_k_dim),
            heads_of(self.k_proj(hidden_BTD), self.head_k_dim),
            heads_of(self.v_proj(hidden_BTD), self.head_v_dim),
        )

    def _attend(
        self,
        tokens: tuple[Tensor, Tensor, Tensor],
        g_BTHG: Tensor,
        hidden_BTD: Tensor,
        state: RecurrentState | None,
    ) -> tuple[Tensor, Tensor]:
        out, last = linear_attention(
            *tokens,
            g_BTHG,
            scale=self.head_k_dim**-0.5,
            state_BHKV=None if state is None else state.state,
            backend=self.choose_kernels(hidden_BTD)["linear_attention"],
        )
        gated = self.g_norm_swish_gate(out, heads_of(self.g_proj(hidden_BTD), self.head_v_dim))
        return self.o_proj(gated.flatten(2)), last


class GLA(_Retentive):
    """A decay per key channel and token, log sigmoid of a low-rank projection over 16."""

    def __init__(
        self,
        spec: Spec,
        hidden_size: int,
        *,
        norm_eps: float = 1e-6,
        depth: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(spec, hidden_size, backend=backend)
        assert isinstance(spec, GLASpec)
        self._build(spec, hidden_size, norm_eps)
        self.gk_proj = nn.Sequential(
            nn.Linear(hidden_size, spec.gate_low_rank_dim, bias=False),
            nn.Linear(spec.gate_low_rank_dim, spec.num_heads * spec.head_k_dim),
        )

    def forward(
        self,
        hidden_BTD: Tensor,
        *,
        state: MixerState | None = None,
        mask_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        assert state is None or isinstance(state, RecurrentState)
        hidden_BTD = zero_padding(hidden_BTD, mask_BT)
        logits = self.gk_proj(hidden_BTD)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        g = heads_of(F.logsigmoid(wide) / _GATE_LOGIT_NORMALIZER, self.head_k_dim)
        out, last = self._attend(self._heads(hidden_BTD), g, hidden_BTD, state)
        return out, None if state is None else RecurrentState(last)


class RetNet(_Retentive):
    """A fixed decay per head, 1 - 2^(-5 - h), and rotated queries and keys.

    Only differences of positions matter, so none are needed: keys in the state are rotated as seen from the next
    token, and a piece that has been processed turns the state back by its length.
    """

    def __init__(
        self,
        spec: Spec,
        hidden_size: int,
        *,
        norm_eps: float = 1e-6,
        depth: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(spec, hidden_size, backend=backend)
        assert isinstance(spec, RetNetSpec)
        self._build(spec, hidden_size, norm_eps)
        self.rope = Rope(theta=_RETENTION_THETA)

    def forward(
        self,
        hidden_BTD: Tensor,
        *,
        state: MixerState | None = None,
        mask_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        assert state is None or isinstance(state, RecurrentState)
        hidden_BTD = zero_padding(hidden_BTD, mask_BT)
        batch, length, _ = hidden_BTD.shape
        device = hidden_BTD.device
        q, k, v = self._heads(hidden_BTD)
        angles = self._angles(torch.arange(length, device=device))[:, None]
        decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(self.num_heads, device=device)))
        g = decay[:, None].expand(batch, length, -1, 1)
        out, last = self._attend((_turned(q, angles), _turned(k, angles), v), g, hidden_BTD, state)
        if state is None:
            return out, None
        # full, not tensor: that copies from the host, which a CUDA graph cannot capture.
        back = self._angles(torch.full((), -length, device=device))
        return out, RecurrentState(_turned(last.transpose(-1, -2), back).transpose(-1, -2))

    def _angles(self, positions: Tensor) -> Tensor:
        """(..., head_k_dim / 2) radians in fp32."""
        return positions[..., None].float() * self.rope.frequencies(self.head_k_dim, positions.device)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair (first half, second half) of the last dimension turned by its angle."""
    wide = torch.promote_types(x.dtype, torch.float32)
    first, second = x.to(wide).chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
