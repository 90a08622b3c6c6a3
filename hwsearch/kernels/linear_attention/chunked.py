"""Gated linear attention in chunks, in PyTorch, differentiable, exact for decays of any strength.

With G_t the sum of the log decays up to t within a chunk that starts from S_0,
    o_t = (e^{G_t} q_t)^T S_0 + sum_{j <= t} (q_t . e^{G_t - G_j} k_j) v_j,
so each chunk needs its start state, and the start states are a recurrence over chunks. One decay per head gives a
(C, C) matrix of decays; one per channel a (C, C, K) block, for which the chunks are short (the secondary chunks of
Yang et al., arXiv 2312.06635): a factorisation e^{G_t} e^{-G_j} would overflow for strong decays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hwsearch.kernels.chunks import arithmetic, future, join, pairwise_decay, split, spread

__all__ = ["chunked_linear_attention"]

_CHUNK = 64
_CHANNEL_CHUNK = 16


def chunked_linear_attention(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHG: Tensor, state_BHKV: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H_v, V) and the last state (B, H_v, K, V)."""
    dtype, (length, heads) = arithmetic(v_BTHV), v_BTHV.shape[1:3]
    chunk = _CHUNK if g_BTHG.shape[-1] == 1 else _CHANNEL_CHUNK
    q = split(spread(q_BTHK.to(dtype) * scale, heads), chunk)
    k = split(spread(k_BTHK.to(dtype), heads), chunk)
    v = split(v_BTHV.to(dtype), chunk)
    total = split(g_BTHG.to(dtype), chunk).cumsum(dim=-2)  # G, (B, H_v, N, C, 1 or K)
    if g_BTHG.shape[-1] == 1:
        scores = pairwise_decay(total) * (q @ k.transpose(-1, -2))
    else:
        scores = _channel_scores(q, k, total)
    last = total[..., -1:, :]
    written = ((last - total).exp() * k).transpose(-1, -2) @ v  # (B, H_v, N, K, V)
    kept = last.exp().transpose(-1, -2)
    state = state_BHKV.to(dtype)
    starts = []
    for kept_n, written_n in zip(kept.unbind(dim=2), written.unbind(dim=2), strict=True):
        starts.append(state)
        state = kept_n * state + written_n
    out = (total.exp() * q) @ torch.stack(starts, dim=2) + scores @ v
    return join(out, length).to(v_BTHV.dtype), state


def _channel_scores(q_BHNCK: Tensor, k_BHNCK: Tensor, total_BHNCK: Tensor) -> Tensor:
    """(B, H, N, C, C): products of queries and keys, each channel decayed by its own gate; 0 for the future."""
    hidden = future(q_BHNCK.shape[-2], q_BHNCK.device)[..., None]
    difference = total_BHNCK[..., :, None, :] - total_BHNCK[..., None, :, :]
    decay = difference.masked_fill(hidden, -math.inf).exp()
    return (decay * q_BHNCK[..., :, None, :] * k_BHNCK[..., None, :, :]).sum(dim=-1)
