"""JetBlock (arXiv 2508.15884, section 2.3), with the names of NVIDIA's published model code.

The kernel generator starts as a static convolution: its last weights are zero, its last bias is the kernel. Its first
weights are left to the model's initialisation. The published code starts these at zero as well, from where neither
layer would get a gradient.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwsearch.kernels import kernel_name, resolve
from hwsearch.kernels.delta_rule import BACKENDS as DELTA_RULE
from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.kernels.dynamic_conv import BACKENDS as DYNAMIC_CONV
from hwsearch.kernels.dynamic_conv import dynamic_conv
from hwsearch.kernels.jet_step import BACKENDS as JET_STEP
from hwsearch.kernels.jet_step import JetParameters, JetToken, jet_step, log_decay
from hwsearch.models.mixers.base import Backend, MixerState, fill, zero_padding
from hwsearch.models.mixers.delta import initial_decay
from hwsearch.models.mixers.recurrent import (
    GatedRMSNorm,
    RecurrentMixer,
    RecurrentState,
    heads_of,
    recurrent_dtype,
)
from hwsearch.searchspace.mixers import JetBlock as JetBlockSpec
from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = ["JetBlock"]


class KernelGenerator(nn.Module):
    """Hidden states to the taps of every value channel, (B, T, D) to (B, T, channels, width)."""

    def __init__(self, hidden_size: int, channels: int, *, width: int, reduction: int) -> None:
        super().__init__()
        self.width = width
        self.kernel_generator = nn.Sequential(
            OrderedDict(
                w1=nn.Linear(hidden_size, channels // reduction, bias=False),
                act=nn.SiLU(),
                w2=nn.Linear(channels // reduction, channels * width),
            )
        )

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        taps: Tensor = self.kernel_generator(hidden_BTD)
        return heads_of(taps, self.width)

    def reset_parameters(self) -> None:
        last = self.kernel_generator.w2
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.uniform_(last.bias, -(self.width**-0.5), self.width**-0.5)


class JetBlock(RecurrentMixer):
    """Gated delta rule over values that a dynamic convolution has mixed; queries and keys without convolution."""

    operations: ClassVar = {"dynamic_conv": DYNAMIC_CONV, "delta_rule": DELTA_RULE}

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
        assert isinstance(spec, JetBlockSpec)
        self.num_heads = spec.num_heads
        self.head_k_dim, self.head_v_dim = spec.head_k_dim, spec.head_v_dim
        keys, values = spec.num_heads * spec.head_k_dim, spec.num_heads * spec.head_v_dim
        self.q_proj = nn.Linear(hidden_size, keys, bias=False)
        self.k_proj = nn.Linear(hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(hidden_size, values, bias=False)
        self.b_proj = nn.Linear(hidden_size, spec.num_heads, bias=False)
        self.a_proj = nn.Linear(hidden_size, spec.num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(spec.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(spec.num_heads))
        self.dynamic_conv1d = KernelGenerator(
            hidden_size, values, width=spec.conv_size, reduction=spec.generator_reduction
        )
        self.g_proj = nn.Linear(hidden_size, values, bias=False)
        self.o_norm = GatedRMSNorm(spec.head_v_dim, eps=norm_eps)
        self.o_proj = nn.Linear(values, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.dynamic_conv1d.reset_parameters()
        for parameter, values in zip((self.A_log, self.dt_bias), initial_decay(self.num_heads), strict=True):
            fill(parameter, values)

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        channels = self.num_heads * self.head_v_dim
        return RecurrentState(
            torch.zeros(
                batch,
                self.num_heads,
                self.head_k_dim,
                self.head_v_dim,
                device=device,
                dtype=recurrent_dtype(dtype),
            ),
            torch.zeros(batch, self.dynamic_conv1d.width, channels, device=device, dtype=dtype),
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
        # The fused step has no gradient and fla has no fused step: these go the way of many tokens.
        fused = not torch.is_grad_enabled() and self.backend != "fla"
        if state is not None and hidden_BTD.shape[1] == 1 and fused:
            return self._step(hidden_BTD[:, 0], state)
        kernels = self.choose_kernels(hidden_BTD)
        values, conv_state = dynamic_conv(
            self.v_proj(hidden_BTD),
            self.dynamic_conv1d(hidden_BTD),
            state_BWD=None if state is None else state.conv_BWD,
            backend=kernels["dynamic_conv"],
        )
        out, last = delta_rule(
            F.silu(heads_of(self.q_proj(hidden_BTD), self.head_k_dim)),
            F.silu(heads_of(self.k_proj(hidden_BTD), self.head_k_dim)),
            heads_of(values, self.head_v_dim),
            log_decay(self.a_proj(hidden_BTD), self.A_log, self.dt_bias),
            self.b_proj(hidden_BTD).sigmoid(),
            state_BHKV=None if state is None else state.state,
            backend=kernels["delta_rule"],
        )
        gated = self.o_norm(out, heads_of(self.g_proj(hidden_BTD), self.head_v_dim))
        return self.o_proj(gated.flatten(2)), None if state is None else RecurrentState(last, conv_state)

    def _step(self, hidden_BD: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        assert state.conv_BWD is not None
        backend = resolve(
            "jet step", backend=self.backend, device_type=hidden_BD.device.type, implementations=JET_STEP
        )
        self.kernel_used = kernel_name("jet", backend=backend, length=1)
        token = JetToken(
            q_BHK=heads_of(self.q_proj(hidden_BD), self.head_k_dim),
            k_BHK=heads_of(self.k_proj(hidden_BD), self.head_k_dim),
            v_BHV=heads_of(self.v_proj(hidden_BD), self.head_v_dim),
            taps_BDW=self.dynamic_conv1d(hidden_BD),
            a_BH=self.a_proj(hidden_BD),
            b_BH=self.b_proj(hidden_BD),
            gate_BHV=heads_of(self.g_proj(hidden_BD), self.head_v_dim),
        )
        parameters = JetParameters(self.A_log, self.dt_bias, self.o_norm.weight, self.o_norm.eps)
        out, last, conv_state = jet_step(
            token, parameters, state_BHKV=state.state, conv_state_BWD=state.conv_BWD, backend=backend
        )
        return self.o_proj(out.flatten(1))[:, None], RecurrentState(last, conv_state)
