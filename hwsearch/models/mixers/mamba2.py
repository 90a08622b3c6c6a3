"""Mamba-2 (arXiv 2405.21060), with the layers and names of flash-linear-attention and of transformers."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwsearch.kernels.linear_attention import BACKENDS as LINEAR_ATTENTION
from hwsearch.kernels.linear_attention import linear_attention
from hwsearch.models.mixers.base import Backend, MixerState, fill, zero_padding
from hwsearch.models.mixers.delta import initial_decay
from hwsearch.models.mixers.recurrent import (
    SHORT_CONV,
    CausalConv,
    RecurrentMixer,
    RecurrentState,
    convolve,
    heads_of,
    recurrent_dtype,
)
from hwsearch.models.norm import RMSNorm
from hwsearch.searchspace.mixers import Mamba2 as Mamba2Spec
from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = ["Mamba2"]


class Mamba2(RecurrentMixer):
    """State-space duality: gated linear attention whose queries, keys and values are C, B and the step times x.

    The gated norm is per group of heads that share B and C, as in the published code.
    """

    operations: ClassVar = {"short_conv": SHORT_CONV, "linear_attention": LINEAR_ATTENTION}

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
        assert isinstance(spec, Mamba2Spec)
        self.num_heads, self.head_dim, self.state_size = spec.num_heads, spec.head_dim, spec.state_size
        self.conv_size = spec.conv_size
        self.inner = spec.num_heads * spec.head_dim
        self.groups = spec.n_groups * spec.state_size
        channels = self.inner + 2 * self.groups
        self.in_proj = nn.Linear(hidden_size, self.inner + channels + spec.num_heads, bias=False)
        self.conv1d = CausalConv(channels, spec.conv_size, bias=True)
        self.dt_bias = nn.Parameter(torch.empty(spec.num_heads))
        self.A_log = nn.Parameter(torch.empty(spec.num_heads))
        self.D = nn.Parameter(torch.empty(spec.num_heads))
        self.norm = RMSNorm(self.inner, eps=norm_eps, groups=spec.n_groups)
        self.out_proj = nn.Linear(self.inner, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.conv1d.reset_parameters()
        fill(self.A_log, torch.arange(1, self.num_heads + 1, dtype=torch.float32).log())
        fill(self.dt_bias, initial_decay(self.num_heads)[1])
        nn.init.ones_(self.D)

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        channels = self.inner + 2 * self.groups
        return RecurrentState(
            torch.zeros(
                batch,
                self.num_heads,
                self.state_size,
                self.head_dim,
                device=device,
                dtype=recurrent_dtype(dtype),
            ),
            torch.zeros(batch, self.conv_size, channels, device=device, dtype=dtype),
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
        gate, channels, step = torch.split(
            self.in_proj(hidden_BTD), [self.inner, self.inner + 2 * self.groups, self.num_heads], dim=-1
        )
        mixed, conv_state = convolve(
            channels, (self.conv1d,), state=state, mask_BT=mask_BT, backend=kernels["short_conv"]
        )
        x, b, c = torch.split(mixed, [self.inner, self.groups, self.groups], dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        step_BTH = F.softplus(step.to(wide) + self.dt_bias.to(wide))
        x_BTHP = heads_of(x, self.head_dim)
        out, last = linear_attention(
            heads_of(c, self.state_size),
            heads_of(b, self.state_size),
            (x_BTHP * step_BTH[..., None]).to(x.dtype),
            (-self.A_log.to(wide).exp() * step_BTH)[..., None],
            scale=1.0,
            state_BHKV=None if state is None else state.state,
            backend=kernels["linear_attention"],
        )
        y = (out + self.D[:, None] * x_BTHP).flatten(2)
        gated = self.norm(y * F.silu(gate))
        return self.out_proj(gated), None if state is None else RecurrentState(last, conv_state)
