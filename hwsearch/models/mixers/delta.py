"""DeltaNet (arXiv 2406.06484) and gated DeltaNet (arXiv 2412.06464), with the layers and names of
flash-linear-attention."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from hwsearch.kernels.delta_rule import BACKENDS as DELTA_RULE
from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.kernels.jet_step import log_decay
from hwsearch.models.mixers.base import Backend, MixerState, fill, zero_padding
from hwsearch.models.mixers.recurrent import (
    SHORT_CONV,
    CausalConv,
    GatedRMSNorm,
    RecurrentMixer,
    RecurrentState,
    convolve,
    heads_of,
    recurrent_dtype,
)
from hwsearch.models.norm import RMSNorm
from hwsearch.searchspace.mixers import DeltaNet as DeltaNetSpec
from hwsearch.searchspace.mixers import GatedDeltaNet as GatedDeltaNetSpec
from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = ["DeltaNet", "GatedDeltaNet", "initial_decay"]


def initial_decay(num_heads: int) -> tuple[Tensor, Tensor]:
    """Values of A_log and dt_bias, (num_heads,) each: rates up to 16, step sizes log-uniform in 0.001 to 0.1."""
    rates = torch.empty(num_heads).uniform_(0, 16).clamp(min=1e-4)
    steps = torch.empty(num_heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
    return rates.log(), steps + torch.log(-torch.expm1(-steps))  # softplus of the second gives the steps


class _Delta(RecurrentMixer):
    operations: ClassVar = {"short_conv": SHORT_CONV, "delta_rule": DELTA_RULE}

    def _build(
        self, hidden_size: int, *, k_heads: int, v_heads: int, k_dim: int, v_dim: int, conv_size: int
    ) -> None:
        self.head_k_dim, self.head_v_dim, self.num_v_heads = k_dim, v_dim, v_heads
        self.conv_size = conv_size
        keys, values = k_heads * k_dim, v_heads * v_dim
        self.sizes = (keys, keys, values)
        self.q_proj = nn.Linear(hidden_size, keys, bias=False)
        self.k_proj = nn.Linear(hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(hidden_size, values, bias=False)
        self.b_proj = nn.Linear(hidden_size, v_heads, bias=False)
        self.q_conv1d = CausalConv(keys, conv_size)
        self.k_conv1d = CausalConv(keys, conv_size)
        self.v_conv1d = CausalConv(values, conv_size)
        self.o_proj = nn.Linear(values, hidden_size, bias=False)

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        state = torch.zeros(
            batch,
            self.num_v_heads,
            self.head_k_dim,
            self.head_v_dim,
            device=device,
            dtype=recurrent_dtype(dtype),
        )
        return RecurrentState(
            state, torch.zeros(batch, self.conv_size, sum(self.sizes), device=device, dtype=dtype)
        )

    def reset_parameters(self) -> None:
        for convolution in (self.q_conv1d, self.k_conv1d, self.v_conv1d):
            convolution.reset_parameters()

    def _decay(self, hidden_BTD: Tensor) -> Tensor:
        """Log decay (B, T, H), in fp32."""
        return torch.zeros(*hidden_BTD.shape[:2], self.num_v_heads, device=hidden_BTD.device)

    @abstractmethod
    def _output(self, out_BTHV: Tensor, hidden_BTD: Tensor) -> Tensor:
        """Outputs (B, T, D) from what the rule gives, (B, T, H, V)."""

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
        joined = torch.cat([project(hidden_BTD) for project in (self.q_proj, self.k_proj, self.v_proj)], -1)
        mixed, conv_state = convolve(
            joined,
            (self.q_conv1d, self.k_conv1d, self.v_conv1d),
            state=state,
            mask_BT=mask_BT,
            backend=kernels["short_conv"],
        )
        q, k, v = torch.split(mixed, list(self.sizes), dim=-1)
        out, last = delta_rule(
            heads_of(q, self.head_k_dim),
            heads_of(k, self.head_k_dim),
            heads_of(v, self.head_v_dim),
            self._decay(hidden_BTD),
            self.b_proj(hidden_BTD).sigmoid(),
            state_BHKV=None if state is None else state.state,
            backend=kernels["delta_rule"],
        )
        mixed_BTD = self.o_proj(self._output(out, hidden_BTD).flatten(2))
        return mixed_BTD, None if state is None else RecurrentState(last, conv_state)


class DeltaNet(_Delta):
    """Delta rule without decay, RMS norm per head on the output."""

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
        assert isinstance(spec, DeltaNetSpec)
        self._build(
            hidden_size,
            k_heads=spec.num_heads,
            v_heads=spec.num_heads,
            k_dim=spec.head_k_dim,
            v_dim=spec.head_v_dim,
            conv_size=spec.conv_size,
        )
        self.o_norm = RMSNorm(spec.head_v_dim, eps=norm_eps)
        self.reset_parameters()

    def _output(self, out_BTHV: Tensor, hidden_BTD: Tensor) -> Tensor:
        normed: Tensor = self.o_norm(out_BTHV)
        return normed


class GatedDeltaNet(_Delta):
    """Delta rule with a decay per head and token, gated RMS norm per head on the output."""

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
        assert isinstance(spec, GatedDeltaNetSpec)
        self._build(
            hidden_size,
            k_heads=spec.num_k_heads,
            v_heads=spec.num_v_heads,
            k_dim=spec.head_k_dim,
            v_dim=spec.head_v_dim,
            conv_size=spec.conv_size,
        )
        self.a_proj = nn.Linear(hidden_size, spec.num_v_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(spec.num_v_heads))
        self.dt_bias = nn.Parameter(torch.empty(spec.num_v_heads))
        self.g_proj = nn.Linear(hidden_size, self.sizes[2], bias=False)
        self.o_norm = GatedRMSNorm(spec.head_v_dim, eps=norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for parameter, values in zip(
            (self.A_log, self.dt_bias), initial_decay(self.num_v_heads), strict=True
        ):
            fill(parameter, values)

    def _decay(self, hidden_BTD: Tensor) -> Tensor:
        return log_decay(self.a_proj(hidden_BTD), self.A_log, self.dt_bias)

    def _output(self, out_BTHV: Tensor, hidden_BTD: Tensor) -> Tensor:
        normed: Tensor = self.o_norm(out_BTHV, heads_of(self.g_proj(hidden_BTD), self.head_v_dim))
        return normed
