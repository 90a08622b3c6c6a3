"""The gated delta rule in chunks (Yang et al., arXiv 2412.06464, WY representation), in PyTorch, with its own backward.

With G_t the sum of g up to t within a chunk that starts from S_0, write
S_t = e^{G_t} S_0 + sum_{j <= t} e^{G_t - G_j} k_j u_j^T. Inserting this in the recurrence gives a unit lower
triangular system for the rows u_t,
    (I + A) U = diag(beta) (V - diag(e^G) K S_0),   A_tj = beta_t e^{G_t - G_j} k_t . k_j for j < t.
With T = (I + A)^{-1}, X = T diag(beta) V and Y = T diag(beta e^G) K need no state and are found for all chunks at
once. Chunk by chunk go only U = X - Y S_0 and S_C = e^{G_C} S_0 + E^T U, E_t = e^{G_C - G_t} k_t; the outputs
O = diag(e^G) Q S_0 + P U, P_tj = e^{G_t - G_j} q_t . k_j for j <= t, follow for all chunks at once.

Backwards likewise: chunk by chunk dU = P^T dO + E dS_C and dS_0 = (diag(e^G) Q)^T dO + e^{G_C} dS_C - Y^T dU; then
Z = T^T dU gives dA = -Z U^T and d(diag(beta e^G) K) = -Z S_0^T for all chunks. A decay multiplies queries and keys
that read by e^{G_t} and keys that write by e^{-G_t}, so that dG_t = q.dq + k.dk_read - k.dk_write, and <dS_C, S_C>
more for the last token of a chunk; a write strength multiplies what reads in A and Y.

Layout: chunks first, (N, L, C, X) with L = B H_v, so that the tensors of one chunk are contiguous and each product is
one batched call. Queries and keys lie side by side, (N, L, 2, C, K): both meet the same matrices.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hwsearch.kernels.chunks import EPS, arithmetic, future, spread, without_autocast

__all__ = ["CHUNK", "chunked_delta_rule"]

CHUNK = 64


def chunked_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H_v, V) and the last state (B, H_v, K, V); once differentiable."""
    dtype, heads = arithmetic(v_BTHV), v_BTHV.shape[2]
    q, k = (spread(x.to(dtype), heads) for x in (q_BTHK, k_BTHK))
    out, state = _ChunkedDeltaRule.apply(  # type: ignore[no-untyped-call]
        q, k, v_BTHV.to(dtype), g_BTH.to(dtype), beta_BTH.to(dtype), state_BHKV.to(dtype)
    )
    return out.to(v_BTHV.dtype), state


class _ChunkedDeltaRule(torch.autograd.Function):
    """As many key heads as value heads, one dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        g_BTH: Tensor,
        beta_BTH: Tensor,
        state_BHKV: Tensor,
    ) -> tuple[Tensor, Tensor]:
        length = v_BTHV.shape[1]
        chunk = min(CHUNK, length)
        v, beta = _split(v_BTHV, chunk), _split(beta_BTH[..., None], chunk)
        qk, inverse = _normalised(_split(q_BTHK, chunk), _split(k_BTHK, chunk))
        written = (v * beta).flatten(1, 2)
        total = _split(g_BTH[..., None], chunk).flatten(1, 2).cumsum(dim=-2)  # G, (N, L, C, 1)
        beta = beta.flatten(1, 2)
        q, k = qk.unbind(2)

        hidden = future(chunk, k.device)
        # Exponents of the future are positive and may overflow: masked before exp, not after.
        decay = (total - total.mT).masked_fill_(hidden, -torch.inf).exp_()
        grown, to_last = total.exp(), (total[:, :, -1:] - total).exp()
        scores = _product(qk.flatten(2, 3), k.mT).view(*qk.shape[:-1], chunk)
        p, a = scores.mul_(decay[:, :, None]).unbind(2)
        one = torch.eye(chunk, dtype=k.dtype, device=k.device)
        # The solver ignores the diagonal of A and what is above it.
        t = torch.linalg.solve_triangular(a * beta, one, upper=False, unitriangular=True)
        u, y = _product(t, written), _product(t, k * (beta * grown))  # u is X until the loop has come by
        to_end, from_start = k * to_last, q * grown

        states = k.new_empty(len(u) + 1, *k.shape[1:2], k.shape[-1], u.shape[-1])
        states[0] = state_BHKV.flatten(0, 1)
        for n in range(len(u)):
            u[n].baddbmm_(y[n], states[n], alpha=-1)
            states[n + 1] = states[n] * grown[n, :, -1:]
            states[n + 1].baddbmm_(to_end[n].mT, u[n])
        out = _product(p, u)
        _add_product(out, from_start, states[:-1])
        ctx.save_for_backward(
            v_BTHV, qk, inverse, beta, grown, to_last, decay, p, t, y, to_end, from_start, u, states
        )
        return _join(out.view_as(v), length), states[-1].view(state_BHKV.shape).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _backward(gradients[0], gradients[1], ctx.saved_tensors)


@without_autocast
def _backward(dout_BTHV: Tensor, dlast_BHKV: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, g, beta and the state."""
    v_BTHV, qk, inverse, beta, grown, to_last, decay, p, t, y, to_end, from_start, u, states = saved
    length, chunk = v_BTHV.shape[1], u.shape[2]
    v, k = _split(v_BTHV, chunk), qk[:, :, 1]
    # The gradient of the outputs, and -Z: what queries and keys that read meet.
    both = u.new_empty(*qk.shape[:-1], u.shape[-1])
    dout, minus_z = both.unbind(2)
    dout.view(v.shape).copy_(_split(dout_BTHV, chunk))
    du = _product(p.mT, dout)
    dstates = torch.empty_like(states)
    dstates[:-1] = _product(from_start.mT, dout)
    dstates[-1] = dlast_BHKV.flatten(0, 1)
    for n in reversed(range(len(u))):
        du[n].baddbmm_(to_end[n], dstates[n + 1])
        dstates[n].baddbmm_(y[n].mT, du[n], alpha=-1).addcmul_(dstates[n + 1], grown[n, :, -1:])
    minus_z.copy_(-_product(t.mT, du))

    dscores = _product(both.flatten(2, 3), u.mT).view(*qk.shape[:-1], chunk).mul_(decay[:, :, None])
    dscores[:, :, 1].diagonal(dim1=-2, dim2=-1).zero_()
    dread = _product(both.flatten(2, 3), states[:-1].mT).view_as(qk).mul_(grown[:, :, None])
    _add_product(dread.flatten(2, 3), dscores.flatten(2, 3), k)
    dscores[:, :, 1].mul_(beta)
    dwrite = _product(u, dstates[1:].mT).mul_(to_last)
    _add_product(dwrite, dscores.flatten(2, 3).mT, qk.flatten(2, 3))

    along_q, along_k = torch.linalg.vecdot(dread, qk)[..., None].unbind(2)
    along_write = torch.linalg.vecdot(dwrite, k)[..., None]
    dtotal = along_q + beta * along_k - along_write
    dtotal[:, :, -1, 0] += (dstates[1:] * states[1:]).sum(dim=(-1, -2))
    dg = dtotal.flip(-2).cumsum(dim=-2).flip(-2)
    dbeta = along_k - torch.linalg.vecdot(minus_z.view(v.shape), v).view_as(beta)
    dv = _join(minus_z.view(v.shape), length, factor=-beta)
    # Through the norms: dx = (dn - n (n . dn)) / |x|, with n the unit vector; the queries' n carry 1 / sqrt(K).
    dqk = dread
    dqk[:, :, 1] = torch.addcmul(dwrite, dread[:, :, 1], beta)
    along = torch.stack((k.shape[-1] * along_q, beta * along_k + along_write), dim=2)
    dqk.addcmul_(qk, along, value=-1)
    dq, dk = (
        _join(dx.view(*v.shape[:-1], -1), length, factor=factor)
        for dx, factor in zip(dqk.unbind(2), inverse.unbind(2), strict=True)
    )
    dg_BTH, dbeta_BTH = (_join(x.view(*v.shape[:-1], 1), length)[..., 0] for x in (dg, dbeta))
    return dq, dk, dv, dg_BTH, dbeta_BTH, dstates[0].view_as(dlast_BHKV)


def _normalised(q_NBHCK: Tensor, k_NBHCK: Tensor) -> tuple[Tensor, Tensor]:
    """(N, L, 2, C, K): queries of norm 1 / sqrt(K) and keys of norm 1; and what each was multiplied by."""
    normed, factors = [], []
    for rows, norm in ((q_NBHCK, k_NBHCK.shape[-1] ** -0.5), (k_NBHCK, 1.0)):
        squares = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square()
        factors.append(norm * torch.rsqrt(squares + EPS))
        normed.append(rows * factors[-1])
    return torch.stack(normed, dim=3).flatten(1, 2), torch.stack(factors, dim=3).flatten(1, 2)


def _product(left_NLXY: Tensor, right_NLYZ: Tensor) -> Tensor:
    """(N, L, X, Z), all chunks and heads in one call."""
    product = torch.bmm(left_NLXY.flatten(0, 1), right_NLYZ.flatten(0, 1))
    return product.view(*left_NLXY.shape[:-1], right_NLYZ.shape[-1])


def _add_product(sum_NLXZ: Tensor, left_NLXY: Tensor, right_NLYZ: Tensor) -> None:
    """sum += left @ right, in place."""
    sum_NLXZ.flatten(0, 1).baddbmm_(left_NLXY.flatten(0, 1), right_NLYZ.flatten(0, 1))


def _split(tokens_BTHX: Tensor, chunk: int) -> Tensor:
    """(B, T, H, X) -> (N, B, H, chunk, X), the last chunk padded with zeros; a view where nothing is padded."""
    padding = -tokens_BTHX.shape[1] % chunk
    if padding:
        tokens_BTHX = F.pad(tokens_BTHX, (0, 0, 0, 0, 0, padding))
    batch, _, heads, width = tokens_BTHX.shape
    return tokens_BTHX.reshape(batch, -1, chunk, heads, width).permute(1, 0, 3, 2, 4)


def _join(chunks_NBHCX: Tensor, length: int, *, factor: Tensor | None = None) -> Tensor:
    """(N, B, H, C, X) -> (B, length, H, X), times `factor` (N, L, C, 1)."""
    batch, heads, _, width = chunks_NBHCX.shape[1:]
    if factor is not None:
        chunks_NBHCX = chunks_NBHCX * factor.view(*chunks_NBHCX.shape[:-1], 1)
    return chunks_NBHCX.permute(1, 0, 3, 2, 4).reshape(batch, -1, heads, width)[:, :length]
