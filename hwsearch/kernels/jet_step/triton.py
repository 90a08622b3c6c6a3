"""A decoding step of JetBlock in one Triton launch, with no host work besides: it can be captured in a CUDA graph.

One program does one head of one sequence. What a step costs is the recurrent state, K V fp32 numbers read and
written, so the program walks over it once, in tiles of all K rows and BLOCK_V columns that stay in registers. A
tile's outputs need the tile alone but for the norm over all V, so they go to a scratch of V numbers and are
normalised and gated at the end. Both states may be updated in place: a barrier between a tile's loads and its
stores keeps threads from reading what others have written already.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from hwsearch.kernels.chunks import EPS, arithmetic
from hwsearch.kernels.delta_rule.triton import block_sizes, delta_tile, float_type, unit_row

if TYPE_CHECKING:
    from hwsearch.kernels.jet_step import JetParameters, JetToken

__all__ = ["TILE", "WARPS", "fused_jet_step"]

TILE = 16384
"""fp32 numbers of state in registers at a time: 64 for each of 256 threads; not chosen on a GPU yet."""
WARPS = 8


def fused_jet_step(
    token: JetToken,
    parameters: JetParameters,
    state_BHKV: Tensor,
    conv_state_BWD: Tensor,
    in_place: bool,
    *,
    tile: int = TILE,
    num_warps: int = WARPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (B, H, V) and the new states, in the tensors of the old ones where `in_place`.

    `tile` and `num_warps` change the speed only.
    """
    batch, heads, key_dim, value_dim = state_BHKV.shape
    width = conv_state_BWD.shape[1]
    state, conv_state = state_BHKV, conv_state_BWD
    if not in_place:
        state, conv_state = torch.empty_like(state_BHKV), torch.empty_like(conv_state_BWD)
    elif not (state_BHKV.is_contiguous() and conv_state_BWD.is_contiguous()):
        raise AssertionError("states that are updated in place are contiguous")
    out = torch.empty_like(token.v_BHV, memory_format=torch.contiguous_format)
    dtype = arithmetic(out)
    block_k, block_v = block_sizes(key_dim, value_dim, tile)
    _kernel[(batch * heads,)](
        *(
            tensor.contiguous()
            for tensor in (
                token.q_BHK,
                token.k_BHK,
                token.v_BHV,
                token.taps_BDW,
                token.a_BH,
                token.b_BH,
                token.gate_BHV,
                *parameters[:3],
                state_BHKV,
                conv_state_BWD,
            )
        ),
        state,
        conv_state,
        torch.empty(batch, heads, value_dim, dtype=dtype, device=out.device),
        out,
        1 / math.sqrt(key_dim),
        EPS,
        parameters.norm_eps,
        heads,
        key_dim,
        value_dim,
        width,
        triton.next_power_of_2(width),
        block_k,
        block_v,
        float_type(dtype),
        num_warps=num_warps,
    )
    return out, state, conv_state


@triton.jit
def _silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def _kernel(
    q,
    k,
    v,
    taps,
    a,
    b,
    gate,
    a_log,
    dt_bias,
    norm_weight,
    state,
    conv_state,
    new_state,
    new_conv_state,
    scratch,
    out,
    scale,
    l2_eps,
    norm_eps,
    H: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    DTYPE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)  # sequence * H + head
    sequence, head = program // H, program % H
    row = tl.arange(0, BLOCK_K)
    queries = _silu(tl.load(q + program * K + row, mask=row < K, other=0.0).to(DTYPE))
    keys = _silu(tl.load(k + program * K + row, mask=row < K, other=0.0).to(DTYPE))
    queries = scale * unit_row(queries, l2_eps)
    keys = unit_row(keys, l2_eps)

    shifted = tl.load(a + program).to(DTYPE) + tl.load(dt_bias + head).to(DTYPE)
    # softplus: above 20 it is its argument, and exp would overflow further up
    softplus = tl.where(shifted > 20, shifted, tl.log(1 + tl.exp(tl.minimum(shifted, 20))))
    decay = tl.exp(-tl.exp(tl.load(a_log + head).to(DTYPE)) * softplus)
    beta = 1 / (1 + tl.exp(-tl.load(b + program).to(DTYPE)))

    tap = tl.arange(0, WIDTH)[None, :]
    squares = tl.zeros([BLOCK_V], dtype=DTYPE)
    for start in range(0, V, BLOCK_V):
        column = start + tl.arange(0, BLOCK_V)
        channel = (head * V + column)[:, None]
        valid = (column < V)[:, None] & (tap < W)
        newest = tl.load(v + sequence * H * V + channel, mask=(column < V)[:, None], other=0.0)
        conv_at = (sequence * W + tap) * H * V + channel
        kept = tl.load(conv_state + conv_at + H * V, mask=valid & (tap < W - 1), other=0.0)
        window = tl.where(tap == W - 1, newest.to(kept.dtype), kept)
        weights = tl.load(taps + (sequence * H * V + channel) * W + tap, mask=valid, other=0.0)
        value = _silu(tl.sum(window.to(DTYPE) * weights.to(DTYPE), axis=1))

        inside = (row < K)[:, None] & (column < V)[None, :]
        at = (program * K + row[:, None]) * V + column[None, :]
        output = delta_tile(state, new_state, at, inside, queries, keys, value, decay, beta, DTYPE)
        tl.store(new_conv_state + conv_at, window, mask=valid)  # behind the barrier in delta_tile
        tl.store(scratch + program * V + column, output, mask=column < V)
        squares += tl.where(column < V, output * output, 0.0)

    norm = 1 / tl.sqrt(tl.sum(squares, axis=0) / V + norm_eps)
    tl.debug_barrier()
    for start in range(0, V, BLOCK_V):
        column = start + tl.arange(0, BLOCK_V)
        at = program * V + column
        output = tl.load(scratch + at, mask=column < V, other=0.0) * norm
        output *= tl.load(norm_weight + column, mask=column < V, other=0.0).to(DTYPE)
        output *= _silu(tl.load(gate + at, mask=column < V, other=0.0).to(DTYPE))
        tl.store(out + at, output.to(out.dtype.element_ty), mask=column < V)
