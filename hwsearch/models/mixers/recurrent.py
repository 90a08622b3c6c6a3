"""What the linear mixers share: their state, their construction from a spec, short convolutions and gated norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwsearch.kernels import kernel_name, resolve_each
from hwsearch.kernels.dynamic_conv import shifted_window
from hwsearch.kernels.short_conv import BACKENDS as SHORT_CONV
from hwsearch.kernels.short_conv import short_conv
from hwsearch.models.mixers.base import Backend, Mixer, MixerState, Rope, zero_padding
from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = [
    "SHORT_CONV",
    "CausalConv",
    "GatedRMSNorm",
    "RecurrentMixer",
    "RecurrentState",
    "convolve",
    "heads_of",
    "recurrent_dtype",
]


@dataclass(frozen=True)
class RecurrentState(MixerState):
    """The recurrent state, fp32, its shape the mixer's own; and the last inputs of the short convolutions (of the
    token shift), (B, W, channels), oldest first, in the dtype of the activations."""

    state: Tensor
    conv_BWD: Tensor | None = None


class RecurrentMixer(Mixer):
    """A mixer that is built from its spec. `depth` is the layer's place in the stack, 0 for the first, 1 for the last.

    operations: what its forward runs, by name, each with the backends it has.
    """

    operations: ClassVar[Mapping[str, Mapping[str, object]]]

    def __init__(
        self,
        spec: Spec,
        hidden_size: int,
        *,
        norm_eps: float = 1e-6,
        depth: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(backend=backend)

    @classmethod
    def from_spec(
        cls,
        spec: Spec,
        hidden_size: int,
        *,
        layer_index: int,
        num_layers: int,
        norm_eps: float,
        rope: Rope | None,
        backend: Backend,
    ) -> Self:
        depth = layer_index / max(num_layers - 1, 1)
        return cls(spec, hidden_size, norm_eps=norm_eps, depth=depth, backend=backend)

    def choose_kernels(self, hidden_BTD: Tensor) -> dict[str, str]:
        """The backend of each operation for this input; recorded in `kernel_used`."""
        chosen = resolve_each(self.operations, backend=self.backend, device_type=hidden_BTD.device.type)
        length = hidden_BTD.shape[1]
        self.kernel_used = " + ".join(
            kernel_name(operation, backend=backend, length=length) for operation, backend in chosen.items()
        )
        return chosen


class CausalConv(nn.Module):
    """The parameters of a causal depthwise convolution, in nn.Conv1d's layout (channels, 1, width)."""

    def __init__(self, channels: int, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def reset_parameters(self) -> None:
        """As nn.Conv1d's own: uniform within 1 / sqrt(width)."""
        bound = self.weight.shape[2] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class GatedRMSNorm(nn.Module):
    """RMS norm over the last dimension times silu(gate), in fp32; fla's order, the gate after the norm."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        normed = F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps)
        return (normed * F.silu(gate.to(wide))).to(x.dtype)


def convolve(
    x_BTC: Tensor,
    convolutions: tuple[CausalConv, ...],
    *,
    state: RecurrentState | None,
    mask_BT: Tensor | None,
    backend: str,
    activate: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Short convolutions over adjoining channels as one, with SiLU; and the new convolution state where there was one.

    A bias would let padded positions through, so they are cleared again behind it.
    """
    weight = torch.cat([convolution.weight for convolution in convolutions]).squeeze(1)
    before = None if state is None else state.conv_BWD
    out, _ = short_conv(
        x_BTC, weight, state_BWD=None if before is None else before[:, 1:].to(x_BTC.dtype), backend=backend
    )
    biases: list[Tensor] = [c.bias for c in convolutions if c.bias is not None]
    if biases:
        out = zero_padding(out + torch.cat(biases), mask_BT)
    return F.silu(out) if activate else out, None if before is None else shifted_window(before, x_BTC)


def heads_of(x_BTC: Tensor, width: int) -> Tensor:
    """(..., H width) -> (..., H, width)."""
    return x_BTC.view(*x_BTC.shape[:-1], -1, width)


def recurrent_dtype(activations: torch.dtype | None) -> torch.dtype:
    """The dtype of a recurrent state: fp32, or fp64 beside fp64 activations."""
    return torch.promote_types(activations or torch.float32, torch.float32)
