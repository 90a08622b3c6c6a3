"""The rule of RWKV-7 in chunks, in PyTorch, differentiable.

With G_t the sum of the log decays up to t within a chunk that starts from S_0, and u_t = S_{t-1}^T a_t,
    S_t = diag(e^{G_t}) S_0 + sum_{j <= t} diag(e^{G_t - G_j}) (k_j v_j^T + b_j u_j^T).
Inserted in the definition of u_t this is a unit lower triangular system,
    (I - A_ab) U = A_ak V + diag(e^{G_{t-1}}) a S_0,
with A_xy[t, j] = x_t . e^{G_{t-1} - G_j} y_j for j < t. Its solution U = X + Y S_0 needs no state.

Decays are per channel, so A_xy is a product of x e^{G_{t-1}} with y e^{-G_j}: exact as long as no sum of log decays
over a chunk passes the range of fp32. Exponents are taken about the chunk's middle, which halves them.
RWKV-7 bounds its log decay by -e^{-1/2}, and the chunk is short enough for four times that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwsearch.kernels.chunks import arithmetic, future, join, split

__all__ = ["LEAST_LOG_DECAY", "chunked_rwkv7"]

_CHUNK = 64
LEAST_LOG_DECAY = -2.5
"""The strongest decay per token for which the chunked form stays inside fp32: 32 tokens of it reach e^80."""


def chunked_rwkv7(
    r_BTHK: Tensor,
    w_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H, V) and the last state (B, H, K, V)."""
    dtype, length = arithmetic(v_BTHV), v_BTHV.shape[1]
    r, w, k, v, a, b = (split(x.to(dtype), _CHUNK) for x in (r_BTHK, w_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK))
    total = w.cumsum(dim=-2)  # G, (B, H, N, C, K)
    middle = total[..., _CHUNK // 2 - 1 : _CHUNK // 2, :]
    before = total - w  # G_{t-1}
    forward = (middle - total).exp()
    later = future(_CHUNK, v.device)
    not_earlier = later.T.logical_not()
    keys, bonus = (x.transpose(-1, -2) for x in (k * forward, b * forward))
    from_a, from_r = a * (before - middle).exp(), r * (total - middle).exp()
    a_b = (from_a @ bonus).masked_fill(not_earlier, 0)
    a_k = (from_a @ keys).masked_fill(not_earlier, 0)
    r_b = (from_r @ bonus).masked_fill(later, 0)
    r_k = (from_r @ keys).masked_fill(later, 0)

    right = torch.cat((a_k @ v, a * before.exp()), dim=-1)
    solved = torch.linalg.solve_triangular(-a_b, right, upper=False, unitriangular=True)
    x, y = solved.split((v.shape[-1], a.shape[-1]), dim=-1)
    last = total[..., -1:, :]
    to_end = (last - total).exp()
    written = (k * to_end).transpose(-1, -2) @ v
    b_to_end = (b * to_end).transpose(-1, -2)
    kept = last.exp().transpose(-1, -2)

    state = state_BHKV.to(dtype)
    starts, removed = [], []
    pieces = (value.unbind(dim=2) for value in (x, y, kept, written, b_to_end))
    for x_n, y_n, kept_n, written_n, b_n in zip(*pieces, strict=True):
        starts.append(state)
        u = x_n + y_n @ state
        removed.append(u)
        state = kept_n * state + written_n + b_n @ u
    out = (r * total.exp()) @ torch.stack(starts, dim=2) + r_k @ v + r_b @ torch.stack(removed, dim=2)
    return join(out, length).to(v_BTHV.dtype), state
