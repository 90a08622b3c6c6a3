"""Feed-forward networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hwsearch.searchspace.ffn import FFNSpec

__all__ = ["SwiGLU", "ffn_for"]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), no bias; (..., hidden_size) to the same."""

    def __init__(self, hidden_size: int, *, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def ffn_for(spec: FFNSpec, hidden_size: int) -> SwiGLU:
    """The module of a feed-forward spec."""
    return SwiGLU(hidden_size, intermediate_size=spec.intermediate_size)
