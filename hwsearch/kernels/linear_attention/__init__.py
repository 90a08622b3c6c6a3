"""Gated linear attention: retention and SSD with one decay per head, GLA with one per key channel.

Per head, with log decay g_t a number or a vector over the key channels:
    S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T,   o_t = scale S_t^T q_t
(Yang et al., arXiv 2312.06635; Sun et al., arXiv 2307.08621; Dao and Gu, arXiv 2405.21060).

Shapes: q, k (B, T, H_k, K); v (B, T, H_v, V); g (B, T, H_v, 1) or (B, T, H_v, K); state (B, H_v, K, V). H_k
divides H_v: value head h reads key head h // (H_v / H_k). The arithmetic and the state are fp32 (fp64 for fp64).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import resolve
from hwsearch.kernels.chunks import arithmetic, without_autocast
from hwsearch.kernels.linear_attention.chunked import chunked_linear_attention
from hwsearch.kernels.linear_attention.fla import fla_linear_attention
from hwsearch.kernels.linear_attention.reference import linear_attention_step, recurrent_linear_attention

__all__ = ["BACKENDS", "linear_attention", "linear_attention_step"]

_Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def torch_linear_attention(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHG: Tensor, state_BHKV: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The step for one token, the chunked form for more."""
    if v_BTHV.shape[1] > 1:
        return chunked_linear_attention(q_BTHK, k_BTHK, v_BTHV, g_BTHG, state_BHKV, scale)
    out, state = linear_attention_step(
        q_BTHK[:, 0], k_BTHK[:, 0], v_BTHV[:, 0], g_BTHG[:, 0], state_BHKV, scale
    )
    return out[:, None], state


BACKENDS: Mapping[str, _Rule] = {
    "reference": recurrent_linear_attention,
    "torch": torch_linear_attention,
    "fla": fla_linear_attention,
}


@without_autocast
def linear_attention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHG: Tensor,
    *,
    scale: float,
    state_BHKV: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H_v, V) in the dtype of v, and the state after the last token (B, H_v, K, V).

    g_BTHG: log decay, at most 0, last dimension 1 or K. state_BHKV: the state to start from, zero where None.
    Raises InputError for shapes that do not fit or a backend that cannot run here.
    """
    heads, (key_heads, key_dim) = v_BTHV.shape[2], k_BTHK.shape[2:]
    if q_BTHK.shape != k_BTHK.shape or q_BTHK.shape[:2] != v_BTHV.shape[:2] or heads % key_heads:
        raise InputError(
            f"linear attention: queries {tuple(q_BTHK.shape)}, keys {tuple(k_BTHK.shape)} and values "
            f"{tuple(v_BTHV.shape)} do not fit: the number of key heads must divide that of the value heads"
        )
    if g_BTHG.shape[:3] != v_BTHV.shape[:3] or g_BTHG.shape[3] not in (1, key_dim):
        raise InputError(
            f"linear attention: gates {tuple(g_BTHG.shape)} must be {tuple(v_BTHV.shape[:3])} with 1 or {key_dim} "
            "at the end"
        )
    state_shape = (v_BTHV.shape[0], heads, key_dim, v_BTHV.shape[3])
    if state_BHKV is None:
        state_BHKV = torch.zeros(state_shape, dtype=arithmetic(v_BTHV), device=v_BTHV.device)
    elif state_BHKV.shape != state_shape:
        raise InputError(f"linear attention: state {tuple(state_BHKV.shape)} must be {state_shape}")
    backend = resolve(
        "linear attention", backend=backend, device_type=v_BTHV.device.type, implementations=BACKENDS
    )
    return BACKENDS[backend](q_BTHK, k_BTHK, v_BTHV, g_BTHG, state_BHKV, scale)
