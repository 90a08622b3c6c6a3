"""The rule of RWKV-7 on the kernels of flash-linear-attention (fla-core 0.6)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fla_rwkv7"]


def fla_rwkv7(
    r_BTHK: Tensor,
    w_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the last state (B, H, K, V)."""
    from fla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7

    single = r_BTHK.shape[1] == 1 and not torch.is_grad_enabled()  # the step has no gradient
    run = fused_recurrent_rwkv7 if single else chunk_rwkv7
    r, k, a, b = (x.to(v_BTHV.dtype) for x in (r_BTHK, k_BTHK, a_BTHK, b_BTHK))
    out, state = run(
        r, w_BTHK.float(), k, v_BTHV, a, b, scale=1.0, initial_state=state_BHKV, output_final_state=True
    )
    return out, state
