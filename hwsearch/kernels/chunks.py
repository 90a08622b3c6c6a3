"""Sequences in chunks: what the chunked forms of the linear mixers share.

Shapes: (B, T, H, X) token by token, (B, H, N, C, X) as N chunks of C tokens. The last chunk is padded with zeros,
which for a log decay means no decay and for a write means nothing written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "EPS",
    "arithmetic",
    "future",
    "join",
    "normalised",
    "pairwise_decay",
    "split",
    "spread",
    "without_autocast",
]

EPS = 1e-6  # under the root of the L2 norm

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def without_autocast(rule: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The rule, its first argument a tensor, with autocast off: autocast would round fp32 states and gates to bf16."""

    @functools.wraps(rule)
    def run(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        first = arguments[0]
        assert isinstance(first, Tensor)
        if first.device.type == "meta":  # it has no autocast
            return rule(*arguments, **options)
        with torch.autocast(first.device.type, enabled=False):
            return rule(*arguments, **options)

    return run


def arithmetic(values: Tensor) -> torch.dtype:
    """The dtype to compute and keep states in: fp32, or fp64 for fp64 inputs."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def normalised(rows_X: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of unit L2 norm along the last dimension."""
    rows = rows_X.to(dtype)
    return rows * torch.rsqrt(rows.square().sum(dim=-1, keepdim=True) + EPS)


def spread(tokens_BTHX: Tensor, heads: int) -> Tensor:
    """Each of H heads repeated for the heads / H that read it."""
    group = heads // tokens_BTHX.shape[-2]
    return tokens_BTHX if group == 1 else tokens_BTHX.repeat_interleave(group, dim=-2)


def split(tokens_BTHX: Tensor, chunk: int) -> Tensor:
    """(B, T, H, X) -> (B, H, N, chunk, X)."""
    batch, length, heads, width = tokens_BTHX.shape
    padded = F.pad(tokens_BTHX, (0, 0, 0, 0, 0, -length % chunk))
    return padded.transpose(1, 2).reshape(batch, heads, -1, chunk, width)


def join(chunks_BHNCX: Tensor, length: int) -> Tensor:
    """(B, H, N, C, X) -> (B, length, H, X): the padding of the last chunk is dropped."""
    return chunks_BHNCX.flatten(2, 3)[:, :, :length].transpose(1, 2)


def future(chunk: int, device: torch.device) -> Tensor:
    """(chunk, chunk) of bool: True where the column's token comes after the row's."""
    return torch.ones(chunk, chunk, dtype=torch.bool, device=device).triu(1)


def pairwise_decay(total_BHNC1: Tensor) -> Tensor:
    """(B, H, N, C, C): decay of one log decay per head from the column's token to the row's, 0 for the future.

    The exponents of the future are positive and may overflow: they are masked before exp, not after.
    """
    chunk, device = total_BHNC1.shape[-2], total_BHNC1.device
    difference = total_BHNC1 - total_BHNC1.transpose(-1, -2)
    return difference.masked_fill(future(chunk, device), -math.inf).exp()
