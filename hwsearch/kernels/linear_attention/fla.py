"""Gated linear attention on the kernels of flash-linear-attention (fla-core 0.6): GLA for gates per channel, simple
GLA (of which SSD and retention are cases) for gates per head."""

from __future__ import annotations

from torch import Tensor

from hwsearch.kernels.chunks import spread

__all__ = ["fla_linear_attention"]


def fla_linear_attention(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHG: Tensor, state_BHKV: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H_v, V) and the last state (B, H_v, K, V)."""
    from fla.ops.gla import chunk_gla, fused_recurrent_gla
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    dtype, heads = v_BTHV.dtype, v_BTHV.shape[2]
    # fla's kernels for these rules have as many key heads as value heads.
    q, k = (spread(x.to(dtype), heads).contiguous() for x in (q_BTHK, k_BTHK))
    settings = {"scale": scale, "initial_state": state_BHKV, "output_final_state": True}
    single = q.shape[1] == 1
    if g_BTHG.shape[-1] == 1:
        run = fused_recurrent_simple_gla if single else chunk_simple_gla
        out, state = run(q, k, v_BTHV, g=g_BTHG[..., 0].float(), **settings)
    elif single:
        out, state = fused_recurrent_gla(q, k, v_BTHV, gk=g_BTHG.float(), **settings)
    else:
        out, state = chunk_gla(q, k, v_BTHV, g=g_BTHG.float(), **settings)
    return out, state
