"""Gated linear attention token by token; and its step."""

from __future__ import annotations

import torch
from torch import Tensor

from hwsearch.kernels.chunks import arithmetic, spread

__all__ = ["linear_attention_step", "recurrent_linear_attention"]


def recurrent_linear_attention(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHG: Tensor, state_BHKV: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H_v, V) and the last state (B, H_v, K, V), one token after another."""
    dtype, heads = arithmetic(v_BTHV), v_BTHV.shape[2]
    q, k = spread(q_BTHK.to(dtype), heads), spread(k_BTHK.to(dtype), heads)
    state = state_BHKV
    outputs = []
    for t in range(q.shape[1]):
        decay = g_BTHG[:, t, :, :, None].to(dtype).exp()
        state = decay * state + k[:, t, :, :, None] * v_BTHV[:, t, :, None, :].to(dtype)
        outputs.append(scale * (q[:, t, :, :, None] * state).sum(dim=-2))
    return torch.stack(outputs, dim=1).to(v_BTHV.dtype), state


def linear_attention_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BHG: Tensor, state_BHKV: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """One token: outputs (B, H_v, V) and the new state; `state_BHKV` is left as it is."""
    dtype, heads = arithmetic(v_BHV), v_BHV.shape[1]
    q, k = spread(q_BHK.to(dtype) * scale, heads), spread(k_BHK.to(dtype), heads)
    decayed = g_BHG.to(dtype).exp()[..., None] * state_BHKV
    state = torch.addcmul(decayed, k[..., :, None], v_BHV.to(dtype)[..., None, :])
    return (q[..., None, :] @ state).squeeze(-2).to(v_BHV.dtype), state
