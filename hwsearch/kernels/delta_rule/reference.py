"""The gated delta rule token by token, as the recurrence is written; and one step, arranged to read the state once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hwsearch.kernels.chunks import arithmetic, normalised, spread

__all__ = ["delta_rule_step", "recurrent_delta_rule"]


def recurrent_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H_v, V) and the last state (B, H_v, K, V), one token after another."""
    dtype, heads = arithmetic(v_BTHV), v_BTHV.shape[2]
    q = spread(normalised(q_BTHK, dtype), heads)
    k = spread(normalised(k_BTHK, dtype), heads)
    state = state_BHKV
    outputs = []
    for t in range(q.shape[1]):
        state = g_BTH[:, t, :, None, None].to(dtype).exp() * state
        error = v_BTHV[:, t].to(dtype) - (k[:, t, :, :, None] * state).sum(dim=-2)
        write = beta_BTH[:, t, :, None].to(dtype) * error
        state = state + k[:, t, :, :, None] * write[:, :, None, :]
        outputs.append((q[:, t, :, :, None] * state).sum(dim=-2) / math.sqrt(q.shape[-1]))
    return torch.stack(outputs, dim=1).to(v_BTHV.dtype), state


def delta_rule_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BH: Tensor, beta_BH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: outputs (B, H_v, V) in the dtype of v, and the new state; `state_BHKV` is left as it is.

    The old state is read for q and k in one product, o_t = e^g S^T q + (q . k) u, so the new state is only
    written.
    """
    dtype, heads = arithmetic(v_BHV), v_BHV.shape[1]
    q = spread(normalised(q_BHK, dtype) / math.sqrt(q_BHK.shape[-1]), heads)
    k = spread(normalised(k_BHK, dtype), heads)
    decay = g_BH.to(dtype).exp()[..., None, None]
    from_k, from_q = (decay * (torch.stack((k, q), dim=2) @ state_BHKV)).unbind(dim=2)
    u = beta_BH.to(dtype)[..., None] * (v_BHV.to(dtype) - from_k)
    out = from_q + (q * k).sum(dim=-1, keepdim=True) * u
    state = torch.addcmul(decay * state_BHKV, k[..., :, None], u[..., None, :])
    return out.to(v_BHV.dtype), state
