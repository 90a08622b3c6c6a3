"""What every token mixer is: one forward for training, prefill and decoding, and a state that joins the pieces.

A forward without a state neither reads nor returns one. With a state it goes on where the state ends, for any
number of tokens, and returns the state after the last of them; the state that was given stays as it was. Batches
are padded on the left only: a padded position writes to no state and influences no real token.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = ["Backend", "Mixer", "MixerState", "Rope", "fill", "zero_padding"]

Backend = Literal["auto", "torch", "triton", "fla", "reference"]


@dataclass(frozen=True)
class MixerState:
    """What a mixer keeps between pieces of a sequence: its fields that are tensors have the batch first."""

    def apply(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The state with `change` applied to each of its tensors."""
        changed = {name: change(tensor) for name, tensor in self._tensors().items()}
        return replace(self, **changed)

    def reorder(self, index_B: Tensor) -> Self:
        """The state of the sequences `index_B`, in that order; a sequence may be taken more than once."""
        return self.apply(lambda tensor: tensor.index_select(0, index_B.to(tensor.device)))

    @property
    def bytes(self) -> int:
        """Bytes held, over the whole batch."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding: its base and, where contexts are stretched as in Llama 3, how.

    `factor` 1 means no stretching. Wavelengths longer than original_max_position_embeddings / low_freq_factor are
    divided by the factor, those shorter than original_max_position_embeddings / high_freq_factor are kept, and those
    between pass from one to the other linearly.
    """

    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def frequencies(self, head_dim: int, device: torch.device) -> Tensor:
        """Radians per position, (head_dim / 2,) in fp32."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float, device=device) / head_dim
        frequencies = 1.0 / self.theta**exponents
        if self.factor == 1.0:
            return frequencies
        wavelengths = 2 * math.pi / frequencies
        longest, low, high = (
            self.original_max_position_embeddings,
            self.low_freq_factor,
            self.high_freq_factor,
        )
        smooth = (longest / wavelengths - low) / (high - low)
        stretched = frequencies / self.factor
        between = (1 - smooth) * frequencies / self.factor + smooth * frequencies
        kept = torch.where(wavelengths < longest / high, frequencies, between)
        return torch.where(wavelengths > longest / low, stretched, kept)


class Mixer(nn.Module, ABC):
    """A token mixer. `backend` is what was asked for, `kernel_used` what the last forward ran ("" before the first)."""

    backend: Backend
    kernel_used: str

    def __init__(self, *, backend: Backend = "auto") -> None:
        super().__init__()
        self.backend = backend
        self.kernel_used = ""

    @classmethod
    @abstractmethod
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
        """The module of a spec. A mixer ignores what it has no use for; one that rotates needs `rope`."""

    @abstractmethod
    def forward(
        self,
        hidden_BTD: Tensor,
        *,
        state: MixerState | None = None,
        mask_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        """Outputs (B, T, D), and the state after the last token where a state was given.

        mask_BT: bool, False at padded positions of these T tokens; None where all are real.
        positions_BT: of these T tokens, (B, T) or (1, T); None: counted from 0, or from the state's end.
        """

    @abstractmethod
    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MixerState:
        """The state before the first token. `dtype` is that of the activations; recurrent states are fp32."""

    def reset_parameters(self) -> None:
        """Initialise the mixer's own parameters; its linear layers and norms are the model's to initialise.

        Through `fill` or torch.nn.init only: both spare parameters that a checkpoint has filled already.
        """


def fill(parameter: Tensor, values: Tensor) -> None:
    """Set a parameter in place, except where transformers has just loaded it from a checkpoint."""
    if not getattr(parameter, "_is_hf_initialized", False):
        with torch.no_grad():
            parameter.copy_(values)


def zero_padding(tokens_BTX: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The tokens with zeros at padded positions; any number of dimensions after T."""
    if mask_BT is None:
        return tokens_BTX
    keep = mask_BT.reshape(*mask_BT.shape, *(1,) * (tokens_BTX.dim() - 2))
    return tokens_BTX.masked_fill(~keep, 0)
