"""One step of the gated delta rule in one Triton launch; and the tile of it that the JetBlock step shares.

A step costs its recurrent state, K V fp32 numbers read and written. A program reads a tile of all K rows and some
columns of one head once, keeps it in registers and writes it back: o = S'^T q = e^g S^T q + (q . k) u needs nothing
of the new state. Columns do not depend on one another, so every tile is a program and a small batch fills the GPU too.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hwsearch.kernels.chunks import EPS, arithmetic

__all__ = ["TILE", "WARPS", "block_sizes", "delta_tile", "float_type", "fused_delta_step", "unit_row"]

TILE = 4096
"""fp32 numbers of state that a program holds at a time; not chosen on a GPU yet (docs/gpu-queue.md)."""
WARPS = 4


def fused_delta_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    g_BH: Tensor,
    beta_BH: Tensor,
    state_BHKV: Tensor,
    *,
    in_place: bool = False,
    tile: int = TILE,
    num_warps: int = WARPS,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, H_v, V) in the dtype of v and the new state, in the old one's tensor where `in_place`; no gradient.

    `tile` and `num_warps` change the speed only.
    """
    batch, heads, key_dim, value_dim = state_BHKV.shape
    state = state_BHKV if in_place else torch.empty_like(state_BHKV, memory_format=torch.contiguous_format)
    assert state.is_contiguous(), "a state that is updated in place is contiguous"
    out = torch.empty_like(v_BHV, memory_format=torch.contiguous_format)
    block_k, block_v = block_sizes(key_dim, value_dim, tile)
    _kernel[(batch * heads, triton.cdiv(value_dim, block_v))](
        *(tensor.contiguous() for tensor in (q_BHK, k_BHK, v_BHV, g_BH, beta_BH, state_BHKV)),
        state,
        out,
        1 / math.sqrt(key_dim),
        EPS,
        heads,
        heads // k_BHK.shape[1],
        key_dim,
        value_dim,
        block_k,
        block_v,
        float_type(arithmetic(out)),
        num_warps=num_warps,
    )
    return out, state


def block_sizes(key_dim: int, value_dim: int, tile: int) -> tuple[int, int]:
    """Rows and columns of a tile, powers of two: every key channel and as many value channels as the tile holds."""
    rows = triton.next_power_of_2(key_dim)
    return rows, min(triton.next_power_of_2(value_dim), max(8, tile // rows))


def float_type(dtype: torch.dtype) -> object:
    """Triton's name of fp32 or fp64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def unit_row(x, eps):
    """A row over its L2 norm."""
    return x / tl.sqrt(tl.sum(x * x, axis=0) + eps)


@triton.jit
def delta_tile(state, new_state, at, inside, queries, keys, value, decay, beta, DTYPE: tl.constexpr):
    """Outputs of a tile of the state at the offsets `at` (rows, columns); the tile moves on by one token.

    All loads of the program come before the barrier, so that the new state may lie where the old one does.
    """
    tile = decay * tl.load(state + at, mask=inside, other=0.0).to(DTYPE)
    write = beta * (value - tl.sum(tile * keys[:, None], axis=0))
    output = tl.sum(tile * queries[:, None], axis=0) + tl.sum(queries * keys, axis=0) * write
    tile += keys[:, None] * write[None, :]
    tl.debug_barrier()
    tl.store(new_state + at, tile.to(new_state.dtype.element_ty), mask=inside)
    return output


@triton.jit
def _kernel(
    q,
    k,
    v,
    g,
    beta,
    state,
    new_state,
    out,
    scale,
    eps,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    DTYPE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)  # sequence * H + head
    key_head = (program // H) * (H // GROUP) + (program % H) // GROUP
    row = tl.arange(0, BLOCK_K)
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    queries = scale * unit_row(tl.load(q + key_head * K + row, mask=row < K, other=0.0).to(DTYPE), eps)
    keys = unit_row(tl.load(k + key_head * K + row, mask=row < K, other=0.0).to(DTYPE), eps)
    value = tl.load(v + program * V + column, mask=column < V, other=0.0).to(DTYPE)
    decay = tl.exp(tl.load(g + program).to(DTYPE))
    strength = tl.load(beta + program).to(DTYPE)
    inside = (row < K)[:, None] & (column < V)[None, :]
    at = (program * K + row[:, None]) * V + column[None, :]
    output = delta_tile(state, new_state, at, inside, queries, keys, value, decay, strength, DTYPE)
    tl.store(out + program * V + column, output.to(out.dtype.element_ty), mask=column < V)
