"""The gated delta rule on the kernels of flash-linear-attention (fla-core 0.6): chunked, and one step."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fla_delta_rule"]


def fla_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H_v, V) and the last state (B, H_v, K, V)."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    single = q_BTHK.shape[1] == 1 and not torch.is_grad_enabled()  # the step has no gradient
    run = fused_recurrent_gated_delta_rule if single else chunk_gated_delta_rule
    out, state = run(
        q_BTHK.to(v_BTHV.dtype),
        k_BTHK.to(v_BTHV.dtype),
        v_BTHV,
        g=g_BTH.float(),
        beta=beta_BTH.to(v_BTHV.dtype),
        initial_state=state_BHKV,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return out, state
