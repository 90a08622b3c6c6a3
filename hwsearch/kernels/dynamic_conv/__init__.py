"""Causal depthwise convolution whose kernel is generated per token and channel, with SiLU on its output.

    y_t = silu(sum_{w < W} taps_{t,w} x_{t-W+1+w})
(the dynamic convolution of JetBlock, arXiv 2508.15884, section 2.3). The last tap weighs the newest token. The state
is the last W inputs, oldest first; the oldest of them is not read, but W are what published decoders keep.

Shapes: x (B, T, D); taps (B, T, D, W); state (B, W, D). Sums are fp32 (fp64 for fp64 inputs), outputs and state in
the dtype of x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import resolve
from hwsearch.kernels.chunks import arithmetic

__all__ = ["BACKENDS", "dynamic_conv", "shifted_window"]


def dynamic_conv(
    x_BTD: Tensor, taps_BTDW: Tensor, *, state_BWD: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D) and the state after the last token; before the first token comes `state_BWD` or zeros.

    Raises InputError for shapes that do not fit or a backend that cannot run here.
    """
    batch, _, channels = x_BTD.shape
    width = taps_BTDW.shape[-1]
    if taps_BTDW.shape[:3] != x_BTD.shape:
        raise InputError(
            f"dynamic convolution: taps {tuple(taps_BTDW.shape)} must be {tuple(x_BTD.shape)} with the width at "
            "the end"
        )
    if state_BWD is None:
        state_BWD = x_BTD.new_zeros(batch, width, channels)
    elif state_BWD.shape != (batch, width, channels):
        raise InputError(
            f"dynamic convolution: state {tuple(state_BWD.shape)} must be {(batch, width, channels)}"
        )
    backend = resolve(
        "dynamic convolution", backend=backend, device_type=x_BTD.device.type, implementations=BACKENDS
    )
    return BACKENDS[backend](x_BTD, taps_BTDW, state_BWD), shifted_window(state_BWD, x_BTD)


def shifted_window(state_BWD: Tensor, x_BTD: Tensor) -> Tensor:
    """The last W inputs, (B, W, D), after W earlier ones and the T of x."""
    width = state_BWD.shape[1]
    if x_BTD.shape[1] >= width:
        return x_BTD[:, -width:].to(state_BWD.dtype)
    return torch.cat((state_BWD[:, x_BTD.shape[1] :], x_BTD.to(state_BWD.dtype)), dim=1)


def reference_dynamic_conv(x_BTD: Tensor, taps_BTDW: Tensor, state_BWD: Tensor) -> Tensor:
    """Token by token, from a window that moves with it."""
    window, outputs = state_BWD, []
    for x, taps in zip(x_BTD.unbind(dim=1), taps_BTDW.unbind(dim=1), strict=True):
        window = shifted_window(window, x[:, None])
        total = (window.transpose(1, 2).to(arithmetic(x)) * taps.to(arithmetic(x))).sum(dim=-1)
        outputs.append(F.silu(total).to(x.dtype))
    return torch.stack(outputs, dim=1)


def torch_dynamic_conv(x_BTD: Tensor, taps_BTDW: Tensor, state_BWD: Tensor) -> Tensor:
    """The sum over taps of the inputs shifted by as many tokens; differentiable."""
    dtype, length, width = arithmetic(x_BTD), x_BTD.shape[1], taps_BTDW.shape[-1]
    inputs = torch.cat((state_BWD[:, 1:].to(dtype), x_BTD.to(dtype)), dim=1)
    total = torch.zeros_like(inputs[:, :length])
    for tap in range(width):
        total = torch.addcmul(total, taps_BTDW[..., tap].to(dtype), inputs[:, tap : tap + length])
    return F.silu(total).to(x_BTD.dtype)


def triton_dynamic_conv(x_BTD: Tensor, taps_BTDW: Tensor, state_BWD: Tensor) -> Tensor:
    """This package's kernels; differentiable."""
    from hwsearch.kernels.dynamic_conv.triton import fused_dynamic_conv

    return fused_dynamic_conv(x_BTD, taps_BTDW, state_BWD)


BACKENDS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reference": reference_dynamic_conv,
    "torch": torch_dynamic_conv,
    "triton": triton_dynamic_conv,
}
