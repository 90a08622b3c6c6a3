"""The dynamic convolution with SiLU in Triton: one launch forward, two backward.

The taps are W times the size of everything else that moves, so a program takes a tile of tokens and channels with
all taps of it, which lie side by side in memory: (BLOCK_T, BLOCK_D, WIDTH), WIDTH the next power of two of W. Inputs
before the piece come from the state. The backward pass recomputes the sum instead of storing it; its first kernel
writes the gradient of the taps and that of the sum, its second gathers the latter into the gradient of the inputs
and of the state.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hwsearch.kernels.chunks import arithmetic

__all__ = ["fused_dynamic_conv"]

_BLOCK_T = 16
_BLOCK_D = 64


def fused_dynamic_conv(x_BTD: Tensor, taps_BTDW: Tensor, state_BWD: Tensor) -> Tensor:
    """Outputs (B, T, D) in the dtype of x, after the W inputs of the state."""
    return _DynamicConv.apply(x_BTD, taps_BTDW, state_BWD)  # type: ignore[no-any-return]


class _DynamicConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, taps_BTDW: Tensor, state_BWD: Tensor) -> Tensor:
        x, taps, state = x_BTD.contiguous(), taps_BTDW.contiguous(), state_BWD.contiguous()
        ctx.save_for_backward(x, taps, state)
        out = torch.empty_like(x)
        _forward_kernel[_grid(x, x.shape[1])](x, taps, state, out, *_sizes(x, taps))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, taps, state = ctx.saved_tensors
        dtaps, dx, dstate = (torch.empty_like(value) for value in (taps, x, state))
        dsum = torch.empty_like(x, dtype=arithmetic(x))
        dout = gradients[0].contiguous()
        _taps_kernel[_grid(x, x.shape[1])](x, taps, state, dout, dtaps, dsum, *_sizes(x, taps))
        _inputs_kernel[_grid(x, x.shape[1] + taps.shape[3])](taps, dsum, dx, dstate, *_sizes(x, taps))
        return dx, dtaps, dstate


def _grid(x_BTD: Tensor, rows: int) -> tuple[int, int, int]:
    batch, _, channels = x_BTD.shape
    return triton.cdiv(channels, _BLOCK_D), triton.cdiv(rows, _BLOCK_T), batch


def _sizes(x_BTD: Tensor, taps_BTDW: Tensor) -> tuple[int, int, int, int, int, int, object]:
    width = taps_BTDW.shape[3]
    dtype = tl.float64 if x_BTD.dtype == torch.float64 else tl.float32
    return (
        x_BTD.shape[1],
        x_BTD.shape[2],
        width,
        triton.next_power_of_2(width),
        _BLOCK_T,
        _BLOCK_D,
        dtype,
    )


@triton.jit
def _tile(T, D, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    """Tokens (BLOCK_T, 1, 1) and channels (1, BLOCK_D, 1) of this program, and its sequence as a 64-bit index."""
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    return token[:, None, None], channel[None, :, None], tl.program_id(2).to(tl.int64)


@triton.jit
def _window(x, state, b, token, channel, tap, T, D, W: tl.constexpr, inside, DTYPE: tl.constexpr):
    """The inputs that each tap of each token meets: of this piece, or of the state before it."""
    position = token - (W - 1) + tap
    here = tl.load(x + (b * T + position) * D + channel, mask=inside & (position >= 0), other=0.0)
    earlier = tl.load(state + (b * W + W + position) * D + channel, mask=inside & (position < 0), other=0.0)
    return tl.where(position >= 0, here.to(DTYPE), earlier.to(DTYPE))


@triton.jit
def _forward_kernel(
    x,
    taps,
    state,
    out,
    T,
    D,
    W: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
):
    token, channel, b = _tile(T, D, BLOCK_T, BLOCK_D)
    tap = tl.arange(0, WIDTH)[None, None, :]
    inside = (token < T) & (channel < D) & (tap < W)
    inputs = _window(x, state, b, token, channel, tap, T, D, W, inside, DTYPE)
    weights = tl.load(taps + ((b * T + token) * D + channel) * W + tap, mask=inside, other=0.0)
    total = tl.sum(inputs * weights.to(DTYPE), axis=2)[:, :, None]
    value = total / (1 + tl.exp(-total))
    at = (b * T + token) * D + channel
    tl.store(out + at, value.to(out.dtype.element_ty), mask=(token < T) & (channel < D))


@triton.jit
def _taps_kernel(
    x,
    taps,
    state,
    dout,
    dtaps,
    dsum,
    T,
    D,
    W: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
):
    token, channel, b = _tile(T, D, BLOCK_T, BLOCK_D)
    tap = tl.arange(0, WIDTH)[None, None, :]
    valid = (token < T) & (channel < D)
    inside = valid & (tap < W)
    inputs = _window(x, state, b, token, channel, tap, T, D, W, inside, DTYPE)
    at = (b * T + token) * D + channel
    weights = tl.load(taps + at * W + tap, mask=inside, other=0.0)
    total = tl.sum(inputs * weights.to(DTYPE), axis=2)[:, :, None]
    gate = 1 / (1 + tl.exp(-total))
    gradient = tl.load(dout + at, mask=valid, other=0.0).to(DTYPE) * gate * (1 + total * (1 - gate))
    tl.store(dsum + at, gradient, mask=valid)
    tl.store(dtaps + at * W + tap, (gradient * inputs).to(dtaps.dtype.element_ty), mask=inside)


@triton.jit
def _inputs_kernel(
    taps,
    dsum,
    dx,
    dstate,
    T,
    D,
    W: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
):
    row, channel, b = _tile(T, D, BLOCK_T, BLOCK_D)
    position = row - W  # the state's W inputs come before the piece's T
    tap = tl.arange(0, WIDTH)[None, None, :]
    reader = position + W - 1 - tap  # the token that meets this input with its tap
    inside = (reader >= 0) & (reader < T) & (channel < D) & (tap < W)
    at = (b * T + reader) * D + channel
    gradient = tl.load(dsum + at, mask=inside, other=0.0)
    weights = tl.load(taps + at * W + tap, mask=inside, other=0.0)
    value = tl.sum(gradient * weights.to(DTYPE), axis=2)[:, :, None]
    tl.store(
        dx + (b * T + position) * D + channel,
        value.to(dx.dtype.element_ty),
        mask=(position >= 0) & (position < T) & (channel < D),
    )
    tl.store(
        dstate + (b * W + row) * D + channel,
        value.to(dstate.dtype.element_ty),
        mask=(row < W) & (channel < D),
    )
