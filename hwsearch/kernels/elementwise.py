"""A stand-in for the memory-bound kernels between the others: norms, gates, residual additions.

What such a kernel costs is what it moves, so one function stands for all of them: it adds its inputs and applies
SiLU. PyTorch without a compiler runs it as one pass per addition and per output; a fused kernel would do with
one pass over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from hwsearch.errors import InputError

__all__ = ["elementwise"]


def elementwise(inputs_RW: Sequence[Tensor], *, writes: int) -> tuple[Tensor, ...]:
    """`writes` outputs of the shape (rows, width) of each input: SiLU of the sum, the sum, multiples of it.

    Raises InputError for no input or no output.
    """
    if not inputs_RW or writes < 1:
        raise InputError(
            f"elementwise: {len(inputs_RW)} inputs and {writes} outputs; both must be at least 1"
        )
    total, *others = inputs_RW
    if writes > 1 and not others:
        total = total.clone()  # an output is written even where it equals the input
    for rows in others:
        total = total + rows
    return (F.silu(total), total, *(total * times for times in range(2, writes)))[:writes]
