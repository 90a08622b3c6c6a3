"""The gated delta rule: token by token, in chunks, and one step of decoding.

Per head, with log decay g_t and write strength beta_t, q and k L2-normalised:
    S_t = e^{g_t} S_{t-1} + beta_t k_t (v_t - k_t^T e^{g_t} S_{t-1})^T,   o_t = S_t^T q_t / sqrt(d_k)

Chunked form (Yang et al., arXiv 2412.06464, WY representation). With G_t the sum of g up to t within a chunk
that starts from S_0, write S_t = e^{G_t} S_0 + sum_{j <= t} e^{G_t - G_j} k_j u_j^T. Inserting this in the
recurrence gives a unit lower triangular system for the rows u_t,
    (I + A) U = diag(beta) (V - diag(e^G) K S_0),   A_tj = beta_t e^{G_t - G_j} k_t . k_j for j < t,
whose solution for both right-hand sides, U = X - Y S_0, needs no state and is found for all chunks at once;
only X - Y S_0, the outputs and the state's update then go chunk by chunk.

Shapes: q, k (B, T, H_k, K); v (B, T, H_v, V); g, beta (B, T, H_v); state (B, H_v, K, V). H_k divides H_v: value
head h reads key head h // (H_v / H_k). The arithmetic and the state are fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import choose

__all__ = ["BACKENDS", "chunked_delta_rule", "delta_rule", "delta_rule_step", "recurrent_delta_rule"]

CHUNK = 64
_EPS = 1e-6  # under the root of the L2 norm


def delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    *,
    state_BHKV: Tensor | None = None,
    backend: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, H_v, V) in the dtype of v, and the state after the last token (B, H_v, K, V).

    g_BTH: log decay, at most 0. state_BHKV: the state to start from, zero where None.
    Raises InputError for shapes that do not fit or an unknown backend.
    """
    heads, value_heads = k_BTHK.shape[2], v_BTHV.shape[2]
    if q_BTHK.shape != k_BTHK.shape or q_BTHK.shape[:2] != v_BTHV.shape[:2] or value_heads % heads:
        raise InputError(
            f"delta rule: queries {tuple(q_BTHK.shape)}, keys {tuple(k_BTHK.shape)} and values "
            f"{tuple(v_BTHV.shape)} do not fit: the number of key heads must divide that of the value heads"
        )
    if g_BTH.shape != v_BTHV.shape[:3] or beta_BTH.shape != v_BTHV.shape[:3]:
        raise InputError(
            f"delta rule: gates {tuple(g_BTH.shape)} and {tuple(beta_BTH.shape)} must have the values' shape "
            f"{tuple(v_BTHV.shape[:3])} without the last dimension"
        )
    state_shape = (v_BTHV.shape[0], value_heads, k_BTHK.shape[3], v_BTHV.shape[3])
    if state_BHKV is None:
        state_BHKV = torch.zeros(state_shape, dtype=_arithmetic(v_BTHV), device=v_BTHV.device)
    elif state_BHKV.shape != state_shape:
        raise InputError(f"delta rule: state {tuple(state_BHKV.shape)} must be {state_shape}")
    rule = choose("delta rule", backend=backend, implementations=BACKENDS)
    return rule(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, state_BHKV)


def delta_rule_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BH: Tensor, beta_BH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: outputs (B, H_v, V) in the dtype of v, and the new state; `state_BHKV` is left as it is.

    The old state is read for q and k in one product, o_t = e^g S^T q + (q . k) u, so the new state is only
    written.
    """
    arithmetic = _arithmetic(v_BHV)
    group = v_BHV.shape[1] // k_BHK.shape[1]
    q = (_normalised(q_BHK, arithmetic) / math.sqrt(q_BHK.shape[-1])).repeat_interleave(group, dim=1)
    k = _normalised(k_BHK, arithmetic).repeat_interleave(group, dim=1)
    decay = g_BH.to(arithmetic).exp()[..., None, None]
    from_k, from_q = (decay * (torch.stack((k, q), dim=2) @ state_BHKV)).unbind(dim=2)
    u = beta_BH.to(arithmetic)[..., None] * (v_BHV.to(arithmetic) - from_k)
    out = from_q + (q * k).sum(dim=-1, keepdim=True) * u
    state = torch.addcmul(decay * state_BHKV, k[..., :, None], u[..., None, :])
    return out.to(v_BHV.dtype), state


def recurrent_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written above, one token after another."""
    arithmetic = _arithmetic(v_BTHV)
    group = v_BTHV.shape[2] // k_BTHK.shape[2]
    q = _normalised(q_BTHK, arithmetic).repeat_interleave(group, dim=2)
    k = _normalised(k_BTHK, arithmetic).repeat_interleave(group, dim=2)
    state = state_BHKV
    outputs = []
    for t in range(q.shape[1]):
        state = g_BTH[:, t, :, None, None].to(arithmetic).exp() * state
        error = v_BTHV[:, t].to(arithmetic) - (k[:, t, :, :, None] * state).sum(dim=-2)
        write = beta_BTH[:, t, :, None].to(arithmetic) * error
        state = state + k[:, t, :, :, None] * write[:, :, None, :]
        outputs.append((q[:, t, :, :, None] * state).sum(dim=-2) / math.sqrt(q.shape[-1]))
    return torch.stack(outputs, dim=1).to(v_BTHV.dtype), state


def chunked_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """The chunked form as it is derived above, in PyTorch; differentiable."""
    arithmetic, length = _arithmetic(v_BTHV), v_BTHV.shape[1]
    group, value_dim = v_BTHV.shape[2] // k_BTHK.shape[2], v_BTHV.shape[3]
    # From here on (B, H_v, N, C, ...): N chunks of C tokens.
    q = _chunks(_normalised(q_BTHK, arithmetic) / math.sqrt(q_BTHK.shape[-1])).repeat_interleave(group, dim=1)
    k = _chunks(_normalised(k_BTHK, arithmetic)).repeat_interleave(group, dim=1)
    v = _chunks(v_BTHV.to(arithmetic))
    beta = _chunks(beta_BTH.to(arithmetic)[..., None])
    total = _chunks(g_BTH.to(arithmetic)[..., None]).cumsum(dim=-2)  # G, (B, H_v, N, C, 1)
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=v.device).triu(1)
    # The exponents of the future are positive and may overflow: mask before exp, not after.
    decay = (total - total.transpose(-1, -2)).masked_fill(future, -math.inf).exp()

    system = beta * decay * (k @ k.transpose(-1, -2))  # solve_triangular ignores the diagonal and above
    right = torch.cat((beta * v, beta * total.exp() * k), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    x, y = solved.split((value_dim, k.shape[-1]), dim=-1)
    scores = decay * (q @ k.transpose(-1, -2))
    q_decayed = total.exp() * q
    last = total[..., -1:, :]
    k_to_end = (last - total).exp() * k

    state = state_BHKV.to(arithmetic)
    outputs = []
    for n in range(q.shape[2]):
        u = x[:, :, n] - y[:, :, n] @ state
        outputs.append(q_decayed[:, :, n] @ state + scores[:, :, n] @ u)
        state = last[:, :, n].exp() * state + k_to_end[:, :, n].transpose(-1, -2) @ u
    out = torch.cat(outputs, dim=2)[:, :, :length]
    return out.transpose(1, 2).to(v_BTHV.dtype), state


def _arithmetic(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _normalised(rows: Tensor, arithmetic: torch.dtype) -> Tensor:
    rows = rows.to(arithmetic)
    return rows * torch.rsqrt(rows.square().sum(dim=-1, keepdim=True) + _EPS)


def _chunks(tokens_BTHX: Tensor) -> Tensor:
    """(B, T, H, X) -> (B, H, N, C, X); padding tokens are zero: no decay, nothing written."""
    batch, length, heads, width = tokens_BTHX.shape
    padded = torch.nn.functional.pad(tokens_BTHX, (0, 0, 0, 0, 0, -length % CHUNK))
    return padded.transpose(1, 2).reshape(batch, heads, -1, CHUNK, width)


_Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

BACKENDS: Mapping[str, _Rule] = {"reference": recurrent_delta_rule, "torch": chunked_delta_rule}
