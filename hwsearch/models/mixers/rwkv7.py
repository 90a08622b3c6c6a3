"""RWKV-7's time mixing (arXiv 2503.14456), with the layers and names of flash-linear-attention.

Without the value residual to the first layer, which in a hybrid need not be an RWKV-7 layer: each layer is what the
published model's first one is.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwsearch.kernels.rwkv7 import BACKENDS as RWKV7_RULE
from hwsearch.kernels.rwkv7 import rwkv7
from hwsearch.models.mixers.base import Backend, MixerState, fill, zero_padding
from hwsearch.models.mixers.recurrent import RecurrentMixer, RecurrentState, heads_of, recurrent_dtype
from hwsearch.searchspace.mixers import RWKV7 as RWKV7Spec
from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = ["RWKV7"]

_STRONGEST_DECAY = -math.exp(-0.5)
# How fast each mix turns from the last token to this one over the channels (RWKV-LM's initial values).
_SHIFT_POWERS = {"x_r": 0.2, "x_w": 0.9, "x_k": 0.7, "x_v": 0.7, "x_a": 0.9, "x_g": 0.2}


class LoRA(nn.Module):
    """A low-rank projection with an activation in the middle."""

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, activation: nn.Module, bias: bool = True
    ) -> None:
        super().__init__()
        self.lora = nn.Sequential(
            nn.Linear(inputs, rank, bias=False), activation, nn.Linear(rank, outputs, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lora(x)
        return out


class RWKV7(RecurrentMixer):
    """Token shift; decay, in-context learning rate and gate from low-rank projections; group norm per head."""

    operations: ClassVar = {"rwkv7": RWKV7_RULE}

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
        assert isinstance(spec, RWKV7Spec)
        spec.require_width(hidden_size)
        self.hidden_size, self.depth = hidden_size, depth
        self.num_heads, self.head_dim = spec.num_heads, spec.head_dim
        for name in _SHIFT_POWERS:
            self.register_parameter(name, nn.Parameter(torch.empty(1, 1, hidden_size)))
        self.k_k = nn.Parameter(torch.empty(hidden_size))
        self.k_a = nn.Parameter(torch.empty(hidden_size))
        self.r_k = nn.Parameter(torch.empty(spec.num_heads, spec.head_dim))
        self.r_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.w_lora = LoRA(hidden_size, hidden_size, rank=spec.decay_low_rank_dim, activation=nn.Tanh())
        self.a_lora = LoRA(hidden_size, hidden_size, rank=spec.a_low_rank_dim, activation=nn.Identity())
        self.g_lora = LoRA(
            hidden_size, hidden_size, rank=spec.gate_low_rank_dim, activation=nn.Sigmoid(), bias=False
        )
        self.g_norm = nn.GroupNorm(spec.num_heads, hidden_size, eps=spec.head_dim * norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        place = torch.arange(self.hidden_size) / self.hidden_size
        for name, power in _SHIFT_POWERS.items():
            fill(self.get_parameter(name), (1 - place ** (power * (1 - self.depth)))[None, None])
        nn.init.constant_(self.k_k, 0.85)
        nn.init.ones_(self.k_a)
        nn.init.zeros_(self.r_k)
        # Channels from slow to fast decay, the later the layer the more of them slow.
        bias = self.w_lora.lora[2].bias
        assert isinstance(bias, Tensor)
        fill(bias, -6.5 + 5 * place ** (0.85 + self.depth**0.5))

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        return RecurrentState(
            torch.zeros(
                batch,
                self.num_heads,
                self.head_dim,
                self.head_dim,
                device=device,
                dtype=recurrent_dtype(dtype),
            ),
            torch.zeros(batch, 1, self.hidden_size, device=device, dtype=dtype),
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
        kernels = self.choose_kernels(hidden_BTD)
        hidden_BTD = zero_padding(hidden_BTD, mask_BT)
        first = hidden_BTD.new_zeros(hidden_BTD[:, :1].shape)
        if state is not None and state.conv_BWD is not None:
            first = state.conv_BWD.to(hidden_BTD.dtype)
        change = torch.cat((first, hidden_BTD[:, :-1]), dim=1) - hidden_BTD
        mixes = [torch.addcmul(hidden_BTD, change, self.get_parameter(name)) for name in _SHIFT_POWERS]
        for_r, for_w, for_k, for_v, for_a, for_g = mixes

        r, k, v = (
            heads_of(x, self.head_dim) for x in (self.r_proj(for_r), self.k_proj(for_k), self.v_proj(for_v))
        )
        wide = torch.promote_types(k.dtype, torch.float32)
        w = heads_of(_STRONGEST_DECAY * self.w_lora(for_w).to(wide).sigmoid(), self.head_dim)
        rate = heads_of(self.a_lora(for_a).sigmoid(), self.head_dim)
        removal = F.normalize((k * self.k_k.view_as(self.r_k)).to(wide), dim=-1, eps=1e-12).to(k.dtype)
        k = k * (1 + (rate - 1) * self.k_a.view_as(self.r_k))
        out, last = rwkv7(
            r,
            w,
            k,
            v,
            -removal,
            removal * rate,
            state_BHKV=None if state is None else state.state,
            backend=kernels["rwkv7"],
        )
        normed = self.g_norm(out.reshape(-1, self.hidden_size)).view_as(out)
        bonus = (r * k * self.r_k).sum(dim=-1, keepdim=True) * v
        mixed_BTD = self.o_proj((normed + bonus).flatten(2) * self.g_lora(for_g))
        return mixed_BTD, None if state is None else RecurrentState(last, hidden_BTD[:, -1:])
