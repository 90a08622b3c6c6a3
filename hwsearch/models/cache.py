"""The cache of a hybrid model: one mixer state per layer, whatever the mixer keeps, behind transformers' interface.

transformers' own DynamicCache knows keys and values of one window and convolution states of one layout; JetBlock,
RWKV7 and windows that differ by layer fit neither, so each mixer's own state is kept instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from hwsearch.errors import InputError
from hwsearch.models.mixers.base import Mixer, MixerState

__all__ = ["HybridCache"]


class HybridCache(Cache):
    """States of all layers, None for a layer that keeps none or has not run yet. Starts empty."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[])
        self.num_layers = num_layers
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.states: list[MixerState | None] = [None] * self.num_layers
        self.length = 0
        self.padding_B: Tensor | None = None
        self.padding_over = False  # a column without padding was seen: all later tokens are real

    def prepare(
        self, mixers: Sequence[Mixer | None], batch: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Give each layer its empty state, before the first token."""
        self.states = [
            None if mixer is None else mixer.new_state(batch, device=device, dtype=dtype) for mixer in mixers
        ]

    def advance(self, length: int, mask_BT: Tensor | None) -> None:
        """Count `length` tokens, those outside the mask as padding."""
        self.length += length
        if mask_BT is not None:
            padding_B = (~mask_BT).sum(dim=1)
            self.padding_B = padding_B if self.padding_B is None else self.padding_B + padding_B

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, padding included."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the sequences `beam_idx`, in that order."""
        self.states = [None if state is None else state.reorder(beam_idx) for state in self.states]
        if self.padding_B is not None:
            self.padding_B = self.padding_B.index_select(0, beam_idx.to(self.padding_B.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(torch.arange(self.batch_size, device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(self.batch_size).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: a recurrent state cannot forget its last tokens."""
        if tokens_to_remove:
            raise InputError("a hybrid cache cannot be cropped: recurrent states do not forget single tokens")

    @property
    def batch_size(self) -> int:
        """Sequences held; -1 before the first token."""
        for state in self.states:
            if state is not None:
                tensor: Tensor = getattr(state, dataclasses.fields(state)[0].name)
                return tensor.shape[0]
        return -1

    @property
    def bytes(self) -> int:
        """Bytes of all states."""
        return sum(state.bytes for state in self.states if state is not None)

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.length > 0

    def __len__(self) -> int:
        return self.num_layers

    def __repr__(self) -> str:
        return f"HybridCache({self.num_layers} layers, {self.length} tokens, {self.bytes} bytes)"
