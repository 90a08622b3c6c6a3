"""Mixers with a diagonal recurrence: the recurrent block of Griffin (arXiv 2402.19427), with the layers and names of
RecurrentGemma in transformers, and a diagonal state-space model behind a shift, after H3 (arXiv 2212.14052)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwsearch.kernels.diagonal import diagonal_scan, diagonal_ssm
from hwsearch.kernels.diagonal.scan import BACKENDS as DIAGONAL_SCAN
from hwsearch.kernels.diagonal.ssm import BACKENDS as DIAGONAL_SSM
from hwsearch.models.mixers.base import Backend, MixerState, fill, zero_padding
from hwsearch.models.mixers.recurrent import (
    SHORT_CONV,
    CausalConv,
    RecurrentMixer,
    RecurrentState,
    convolve,
    heads_of,
    recurrent_dtype,
)
from hwsearch.searchspace.mixers import H3 as H3Spec
from hwsearch.searchspace.mixers import RGLRU as RGLRUSpec
from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = ["H3", "RGLRU"]

_GATE_POWER = 8.0  # c of the paper's equation 6: log a_t = -c softplus(L) r_t
_LEAST_VARIANCE = 1e-6  # bounds the derivative of the square root


class GatedRecurrence(nn.Module):
    """The RG-LRU: gates from block-diagonal projections, inputs scaled by sqrt(1 - a^2), a diagonal scan."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        block = width // num_heads
        self.recurrent_param = nn.Parameter(torch.empty(width))
        self.input_gate_weight = nn.Parameter(torch.empty(num_heads, block, block))
        self.input_gate_bias = nn.Parameter(torch.empty(num_heads, block))
        self.recurrent_gate_weight = nn.Parameter(torch.empty(num_heads, block, block))
        self.recurrent_gate_bias = nn.Parameter(torch.empty(num_heads, block))

    def reset_parameters(self) -> None:
        """Decays at an open gate between 0.9 and 0.999; gates of unit gain."""
        heads, block, _ = self.input_gate_weight.shape
        decays = torch.empty(heads * block).uniform_(0.9**2, 0.999**2)
        fill(self.recurrent_param, torch.expm1(-0.5 * decays.log()).log())
        for weight in (self.input_gate_weight, self.recurrent_gate_weight):
            nn.init.normal_(weight, std=block**-0.5)
        for bias in (self.input_gate_bias, self.recurrent_gate_bias):
            nn.init.zeros_(bias)

    def forward(
        self, x_BTD: Tensor, state_BD: Tensor | None, mask_BT: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        """Outputs and the last state, fp32."""
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        blocks = heads_of(x_BTD, self.input_gate_weight.shape[1])
        input_gate, recurrent_gate = (
            (torch.einsum("bthi,hij->bthj", blocks, weight) + bias).flatten(2).to(wide).sigmoid()
            for weight, bias in (
                (self.input_gate_weight, self.input_gate_bias),
                (self.recurrent_gate_weight, self.recurrent_gate_bias),
            )
        )
        log_decay = -_GATE_POWER * recurrent_gate * F.softplus(self.recurrent_param.to(wide))
        scale = (-torch.expm1(2 * log_decay)).clamp(min=_LEAST_VARIANCE).sqrt()
        inputs = zero_padding(scale * input_gate * x_BTD.to(wide), mask_BT)
        out, last = diagonal_scan(log_decay.exp(), inputs, state_BD=state_BD, backend=backend)
        return out.to(x_BTD.dtype), last


class RGLRU(RecurrentMixer):
    """gelu(linear_y(x)) * rg_lru(conv_1d(linear_x(x))), projected back.

    As in the paper, the first token's input is scaled like every other; RecurrentGemma's code leaves the one at
    position 0 unscaled.
    """

    operations: ClassVar = {"short_conv": SHORT_CONV, "diagonal_scan": DIAGONAL_SCAN}

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
        assert isinstance(spec, RGLRUSpec)
        self.width, self.conv_size = spec.width, spec.conv_size
        self.linear_y = nn.Linear(hidden_size, spec.width)
        self.linear_x = nn.Linear(hidden_size, spec.width)
        self.linear_out = nn.Linear(spec.width, hidden_size)
        self.conv_1d = CausalConv(spec.width, spec.conv_size, bias=True)
        self.rg_lru = GatedRecurrence(spec.width, spec.num_heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.conv_1d.reset_parameters()
        self.rg_lru.reset_parameters()

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        conv = torch.zeros(batch, self.conv_size, self.width, device=device, dtype=dtype)
        return RecurrentState(
            torch.zeros(batch, self.width, device=device, dtype=recurrent_dtype(dtype)), conv
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
        mixed, conv_state = convolve(
            zero_padding(self.linear_x(hidden_BTD), mask_BT),
            (self.conv_1d,),
            state=state,
            mask_BT=mask_BT,
            backend=kernels["short_conv"],
            activate=False,
        )
        out, last = self.rg_lru(
            mixed, None if state is None else state.state, mask_BT, kernels["diagonal_scan"]
        )
        branch = F.gelu(self.linear_y(hidden_BTD), approximate="tanh")
        return self.linear_out(branch * out), None if state is None else RecurrentState(last, conv_state)


class H3(RecurrentMixer):
    """q * ssm(shift(k) * v): a learned shift over the last tokens, then real, fixed decays (S4D-Real).

    Decays are exp(-dt e^{A_log}), inputs enter by zero-order hold, D passes them on directly.
    """

    operations: ClassVar = {"short_conv": SHORT_CONV, "diagonal_ssm": DIAGONAL_SSM}

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
        assert isinstance(spec, H3Spec)
        self.width, self.conv_size = spec.width, spec.conv_size
        self.q_proj = nn.Linear(hidden_size, spec.width, bias=False)
        self.k_proj = nn.Linear(hidden_size, spec.width, bias=False)
        self.v_proj = nn.Linear(hidden_size, spec.width, bias=False)
        self.o_proj = nn.Linear(spec.width, hidden_size, bias=False)
        self.k_conv1d = CausalConv(spec.width, spec.conv_size)
        self.log_dt = nn.Parameter(torch.empty(spec.width))
        self.A_log = nn.Parameter(torch.empty(spec.width, spec.state_size))
        self.C = nn.Parameter(torch.empty(spec.width, spec.state_size))
        self.D = nn.Parameter(torch.empty(spec.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.k_conv1d.reset_parameters()
        nn.init.uniform_(self.log_dt, math.log(1e-3), math.log(1e-1))
        rates = torch.arange(1, self.A_log.shape[1] + 1, dtype=torch.float32)
        fill(self.A_log, rates.log().expand_as(self.A_log))
        nn.init.normal_(self.C, std=self.C.shape[1] ** -0.5)
        nn.init.ones_(self.D)

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        conv = torch.zeros(batch, self.conv_size, self.width, device=device, dtype=dtype)
        return RecurrentState(
            torch.zeros(batch, *self.A_log.shape, device=device, dtype=recurrent_dtype(dtype)), conv
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
        shifted, conv_state = convolve(
            self.k_proj(hidden_BTD),
            (self.k_conv1d,),
            state=state,
            mask_BT=mask_BT,
            backend=kernels["short_conv"],
            activate=False,
        )
        inputs = shifted * self.v_proj(hidden_BTD)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        rates = self.A_log.to(wide).exp()
        g_DN = -self.log_dt.to(wide).exp()[:, None] * rates
        out, last = diagonal_ssm(
            inputs,
            g_DN,
            -torch.expm1(g_DN) / rates,
            self.C.to(wide),
            state_BDN=None if state is None else state.state,
            backend=kernels["diagonal_ssm"],
        )
        mixed_BTD = self.o_proj(self.q_proj(hidden_BTD) * (out + self.D * inputs))
        return mixed_BTD, None if state is None else RecurrentState(last, conv_state)
