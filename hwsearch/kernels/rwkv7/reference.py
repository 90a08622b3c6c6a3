"""The rule of RWKV-7 token by token; and its step."""

from __future__ import annotations

import torch
from torch import Tensor

from hwsearch.kernels.chunks import arithmetic

__all__ = ["recurrent_rwkv7", "rwkv7_step"]


def recurrent_rwkv7(
    r_BTHK: Tensor,
    w_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the last state (B, H, K, V), one token after another."""
    state = state_BHKV
    outputs = []
    for t in range(r_BTHK.shape[1]):
        out, state = rwkv7_step(
            r_BTHK[:, t], w_BTHK[:, t], k_BTHK[:, t], v_BTHV[:, t], a_BTHK[:, t], b_BTHK[:, t], state
        )
        outputs.append(out)
    return torch.stack(outputs, dim=1), state


def rwkv7_step(
    r_BHK: Tensor,
    w_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    a_BHK: Tensor,
    b_BHK: Tensor,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token: outputs (B, H, V) in the dtype of v, and the new state; `state_BHKV` is left as it is."""
    dtype = arithmetic(v_BHV)
    r, w, k, v, a, b = (x.to(dtype) for x in (r_BHK, w_BHK, k_BHK, v_BHV, a_BHK, b_BHK))
    removed = a[..., None, :] @ state_BHKV  # a^T S, (B, H, 1, V)
    state = w.exp()[..., None] * state_BHKV + b[..., None] * removed + k[..., None] * v[..., None, :]
    return (r[..., None, :] @ state).squeeze(-2).to(v_BHV.dtype), state
