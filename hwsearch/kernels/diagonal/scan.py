"""A gated diagonal recurrence, h_t = a_t h_{t-1} + x_t per channel: what an RG-LRU runs (De et al., arXiv 2402.19427).

"torch" scans in two levels: C tokens of every one of N chunks side by side, then the N chunks one after another,
with C about sqrt(T). That is 2 sqrt(T) vector operations instead of T, and no more work than the recurrence. The
backward pass is the same scan from the other end: dL/dx_t = dL/dh_t + a_{t+1} dL/dx_{t+1}.

Shapes: a, x (B, T, D); state (B, D). The arithmetic and the state are fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import resolve
from hwsearch.kernels.chunks import arithmetic

__all__ = ["BACKENDS", "diagonal_scan"]


def diagonal_scan(
    a_BTD: Tensor, x_BTD: Tensor, *, state_BD: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Every h_t, (B, T, D) in the dtype of x, and the last one (B, D).

    a_BTD: decay between 0 and 1. state_BD: h before the first token, zero where None.
    Raises InputError for shapes that do not fit or an unknown backend.
    """
    if a_BTD.shape != x_BTD.shape:
        raise InputError(f"diagonal scan: decays {tuple(a_BTD.shape)} and inputs {tuple(x_BTD.shape)} differ")
    batch, _, channels = x_BTD.shape
    dtype = arithmetic(x_BTD)
    if state_BD is None:
        state_BD = torch.zeros(batch, channels, dtype=dtype, device=x_BTD.device)
    elif state_BD.shape != (batch, channels):
        raise InputError(f"diagonal scan: state {tuple(state_BD.shape)} must be {(batch, channels)}")
    backend = resolve(
        "diagonal scan", backend=backend, device_type=x_BTD.device.type, implementations=BACKENDS
    )
    h = BACKENDS[backend](a_BTD.to(dtype), x_BTD.to(dtype), state_BD.to(dtype))
    return h.to(x_BTD.dtype), h[:, -1]


def reference_scan(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor) -> Tensor:
    """The recurrence as it is written."""
    h = state_BD
    every = []
    for a, x in zip(a_BTD.unbind(dim=1), x_BTD.unbind(dim=1), strict=True):
        h = a * h + x
        every.append(h)
    return torch.stack(every, dim=1)


def torch_scan(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor) -> Tensor:
    """The two-level scan, differentiable."""
    return _Scan.apply(a_BTD, x_BTD, state_BD)  # type: ignore[no-any-return, no-untyped-call]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor) -> Tensor:
        h = _two_level_scan(a_BTD, x_BTD, state_BD)
        ctx.save_for_backward(a_BTD, h, state_BD)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, h, state = ctx.saved_tensors
        # Reversed in time, the decay that meets gradient t is that of token t + 1.
        next_a = F.pad(a[:, 1:], (0, 0, 0, 1)).flip(1)
        dx = _two_level_scan(next_a, gradients[0].flip(1), torch.zeros_like(state)).flip(1)
        previous = torch.cat((state[:, None], h[:, :-1]), dim=1)
        return dx * previous, dx, dx[:, 0] * a[:, 0]


def _two_level_scan(a_BTD: Tensor, x_BTD: Tensor, state_BD: Tensor) -> Tensor:
    batch, length, channels = x_BTD.shape
    chunk = math.isqrt(length - 1) + 1
    padding = (0, 0, 0, -length % chunk)
    a, x = (F.pad(rows, padding).view(batch, -1, chunk, channels) for rows in (a_BTD, x_BTD))
    # Within each chunk from a zero state, and the decay from the chunk's start.
    h, kept = torch.empty_like(x), torch.empty_like(a)
    h[:, :, 0], kept[:, :, 0] = x[:, :, 0], a[:, :, 0]
    for t in range(1, chunk):
        torch.addcmul(x[:, :, t], a[:, :, t], h[:, :, t - 1], out=h[:, :, t])
        torch.mul(a[:, :, t], kept[:, :, t - 1], out=kept[:, :, t])
    starts = torch.empty_like(h[:, :, 0])
    state = state_BD
    for n in range(h.shape[1]):
        starts[:, n] = state
        state = torch.addcmul(h[:, n, -1], kept[:, n, -1], state)
    return h.addcmul_(kept, starts[:, :, None]).view(batch, -1, channels)[:, :length]


BACKENDS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reference": reference_scan,
    "torch": torch_scan,
}
