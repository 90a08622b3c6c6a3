"""Causal depthwise short convolution: prefill and one decoding step, with the state that joins them.

The output at a token is the weighted sum of that token and the W - 1 before it, per channel; the state is those
W - 1 inputs. No activation is applied.

Shapes: x (B, T, D); weight (D, W), its last column for the newest token; state (B, W - 1, D), oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hwsearch.errors import InputError
from hwsearch.kernels import resolve

__all__ = ["BACKENDS", "reference_short_conv", "short_conv", "short_conv_step", "torch_short_conv"]


def short_conv(
    x_BTD: Tensor, weight_DW: Tensor, *, state_BWD: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D) and the state after the last token; before the first token comes `state_BWD` or zeros.

    Raises InputError for shapes that do not fit or an backend that cannot run here.
    """
    batch, _, channels = x_BTD.shape
    state_shape = (batch, weight_DW.shape[1] - 1, channels)
    if weight_DW.shape[0] != channels:
        raise InputError(f"short convolution: weight of {weight_DW.shape[0]} channels, input of {channels}")
    if state_BWD is None:
        state_BWD = x_BTD.new_zeros(state_shape)
    elif state_BWD.shape != state_shape:
        raise InputError(f"short convolution: state {tuple(state_BWD.shape)} must be {state_shape}")
    inputs = torch.cat((state_BWD, x_BTD), dim=1)
    backend = resolve(
        "short convolution", backend=backend, device_type=x_BTD.device.type, implementations=BACKENDS
    )
    # A slice from the length, not from the end: the state of width 1 is empty.
    return BACKENDS[backend](inputs, weight_DW), inputs[:, inputs.shape[1] - state_shape[1] :]


def short_conv_step(x_BD: Tensor, weight_DW: Tensor, state_BWD: Tensor) -> tuple[Tensor, Tensor]:
    """One token: outputs (B, D) and the new state; `state_BWD` is left as it is."""
    inputs = torch.cat((state_BWD, x_BD[:, None]), dim=1)
    return (inputs * weight_DW.T).sum(dim=1), inputs[:, 1:]


def reference_short_conv(inputs_BTD: Tensor, weight_DW: Tensor) -> Tensor:
    """Sum of shifted inputs: (B, W - 1 + T, D) -> (B, T, D)."""
    width = weight_DW.shape[1]
    length = inputs_BTD.shape[1] - width + 1
    out = torch.zeros_like(inputs_BTD[:, :length])
    for tap in range(width):
        out = out + weight_DW[:, tap] * inputs_BTD[:, tap : tap + length]
    return out


class _Taps(torch.autograd.Function):
    """The sum over taps in place, forward and backward: on a CPU some 7 to 28 times as fast as F.conv1d, whose backward
    over one group per channel is the slowest part of a training step."""

    @staticmethod
    def forward(inputs_BTD: Tensor, weight_DW: Tensor) -> Tensor:
        taps_WD = weight_DW.T.contiguous()
        length = inputs_BTD.shape[1] - len(taps_WD) + 1
        out = inputs_BTD[:, :length] * taps_WD[0]
        for tap in range(1, len(taps_WD)):
            out.addcmul_(inputs_BTD[:, tap : tap + length], taps_WD[tap])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor]:
        inputs_BTD, weight_DW = ctx.saved_tensors
        length, taps_WD = grad_BTD.shape[1], weight_DW.T.contiguous()
        grad_inputs, grad_taps = torch.zeros_like(inputs_BTD), torch.empty_like(taps_WD)
        for tap in range(len(taps_WD)):
            grad_inputs[:, tap : tap + length].addcmul_(grad_BTD, taps_WD[tap])
            grad_taps[tap] = (grad_BTD * inputs_BTD[:, tap : tap + length]).sum((0, 1))
        return grad_inputs, grad_taps.T


def torch_short_conv(inputs_BTD: Tensor, weight_DW: Tensor) -> Tensor:
    """The same through F.conv1d with one group per channel; on a CPU, tap by tap with a backward pass of its own."""
    if inputs_BTD.device.type == "cpu":
        # Under autocast inputs are bf16 and weights fp32: as for a convolution, the inputs decide.
        out: Tensor = _Taps.apply(inputs_BTD, weight_DW.to(inputs_BTD.dtype))  # type: ignore[no-untyped-call]
        return out
    channels_first = inputs_BTD.transpose(1, 2)
    return F.conv1d(channels_first, weight_DW[:, None], groups=weight_DW.shape[0]).transpose(1, 2)


def fla_short_conv(inputs_BTD: Tensor, weight_DW: Tensor) -> Tensor:
    """The same on the kernel of flash-linear-attention (fla-core 0.6)."""
    from fla.modules.causal_conv1d import causal_conv1d

    out: Tensor = causal_conv1d(inputs_BTD.contiguous(), weight_DW)[0]
    return out[:, weight_DW.shape[1] - 1 :]


BACKENDS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reference": reference_short_conv,
    "torch": torch_short_conv,
    "fla": fla_short_conv,
}
