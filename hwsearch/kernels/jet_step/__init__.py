"""One decoding step of JetBlock between its projections (arXiv 2508.15884): dynamic convolution of the values, SiLU
and L2 norm of queries and keys, gates, gated delta rule, gated RMS norm.

"triton" does it in one launch that reads and writes the recurrent state once; "torch" and "reference" are the same
step composed of the operators, which is what the fused kernel is tested against.

Shapes: q, k (B, H, K), v and gate (B, H, V), taps (B, H V, W), a and b (B, H), A_log and dt_bias (H,), norm weight
(V,), state (B, H, K, V) in fp32, convolution state (B, W, H V) in the dtype of v, oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import resolve
from hwsearch.kernels.chunks import arithmetic
from hwsearch.kernels.delta_rule import BACKENDS as DELTA_RULE
from hwsearch.kernels.dynamic_conv import BACKENDS as DYNAMIC_CONV
from hwsearch.kernels.dynamic_conv import shifted_window

__all__ = ["BACKENDS", "JetParameters", "JetToken", "jet_step", "log_decay"]


@dataclass(frozen=True, kw_only=True)
class JetToken:
    """What the projections make of one token of each sequence, before any activation."""

    q_BHK: Tensor
    k_BHK: Tensor
    v_BHV: Tensor
    taps_BDW: Tensor
    a_BH: Tensor
    b_BH: Tensor
    gate_BHV: Tensor


class JetParameters(NamedTuple):
    """The block's own parameters, and the epsilon of its norm."""

    A_log_H: Tensor
    dt_bias_H: Tensor
    norm_weight_V: Tensor
    norm_eps: float


def jet_step(
    token: JetToken,
    parameters: JetParameters,
    *,
    state_BHKV: Tensor,
    conv_state_BWD: Tensor,
    in_place: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, H, V) in the dtype of v, the new state and the new convolution state.

    in_place: write the new states over the old ones, as a captured CUDA graph needs it; otherwise these stay.
    Raises InputError for shapes that do not fit or a backend that cannot run here.
    """
    batch, heads, value_dim = token.v_BHV.shape
    key_dim, width = token.k_BHK.shape[2], token.taps_BDW.shape[2]
    expected = {
        "state": (state_BHKV, (batch, heads, key_dim, value_dim)),
        "convolution state": (conv_state_BWD, (batch, width, heads * value_dim)),
        "taps": (token.taps_BDW, (batch, heads * value_dim, width)),
        "gate": (token.gate_BHV, (batch, heads, value_dim)),
        "queries": (token.q_BHK, (batch, heads, key_dim)),
        "a": (token.a_BH, (batch, heads)),
        "b": (token.b_BH, (batch, heads)),
        "norm weight": (parameters.norm_weight_V, (value_dim,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise InputError(f"jet step: {name} {tuple(tensor.shape)} must be {shape}")
    backend = resolve(
        "jet step", backend=backend, device_type=token.v_BHV.device.type, implementations=BACKENDS
    )
    out, state, conv_state = BACKENDS[backend](token, parameters, state_BHKV, conv_state_BWD, in_place)
    if in_place and state is not state_BHKV:
        state_BHKV.copy_(state)
        conv_state_BWD.copy_(conv_state)
        return out, state_BHKV, conv_state_BWD
    return out, state, conv_state


def log_decay(a_BTH: Tensor, A_log_H: Tensor, dt_bias_H: Tensor) -> Tensor:
    """g = -exp(A_log) softplus(a + dt_bias) in fp32 (fp64 for fp64 inputs); leading dimensions as they come."""
    dtype = arithmetic(a_BTH)
    return -A_log_H.to(dtype).exp() * F.softplus(a_BTH.to(dtype) + dt_bias_H.to(dtype))


def _composed(
    backend: str,
) -> Callable[[JetToken, JetParameters, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]:
    def step(
        token: JetToken,
        parameters: JetParameters,
        state_BHKV: Tensor,
        conv_state_BWD: Tensor,
        in_place: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = token.v_BHV.shape
        dtype = arithmetic(token.v_BHV)
        v = token.v_BHV.flatten(1)[:, None]
        mixed = DYNAMIC_CONV[backend](v.to(dtype), token.taps_BDW[:, None], conv_state_BWD)
        g = log_decay(token.a_BH, parameters.A_log_H, parameters.dt_bias_H)
        out, state = DELTA_RULE[backend](
            F.silu(token.q_BHK.to(dtype))[:, None],
            F.silu(token.k_BHK.to(dtype))[:, None],
            mixed.view(shape[0], 1, *shape[1:]),
            g[:, None],
            token.b_BH.to(dtype).sigmoid()[:, None],
            state_BHKV,
        )
        weight = parameters.norm_weight_V.to(dtype)
        normed = F.rms_norm(out[:, 0], shape[2:], weight, parameters.norm_eps)
        gated = normed * F.silu(token.gate_BHV.to(dtype))
        return gated.to(token.v_BHV.dtype), state, shifted_window(conv_state_BWD, v)

    return step


def _fused(
    token: JetToken, parameters: JetParameters, state_BHKV: Tensor, conv_state_BWD: Tensor, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from hwsearch.kernels.jet_step.triton import fused_jet_step

    return fused_jet_step(token, parameters, state_BHKV, conv_state_BWD, in_place)


BACKENDS: Mapping[
    str, Callable[[JetToken, JetParameters, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]
] = {"reference": _composed("reference"), "torch": _composed("torch"), "triton": _fused}
