"""Root-mean-square normalisation, rounded where transformers rounds it, so that checkpoints give equal logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in fp32, cast to the dtype of x, times a weight per channel (last dimension).

    groups: the mean is over each of so many equal parts of the channels.
    """

    def __init__(self, width: int, *, eps: float, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float().view(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
        normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normalised.view(x.shape).to(x.dtype)
