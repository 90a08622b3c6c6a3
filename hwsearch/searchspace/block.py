"""Blocks: the pieces of a model that are measured whole, and whose latencies add up to the model's.

A layer (mixer with its projections, feed-forward network, norms and residual additions), a feed-forward layer without a
mixer, and the frame around the layers: embedding, positions, final norm, LM head. What a framework spends between
kernels is inside a measured block, which a sum of kernels leaves out. A mix of a space's layers, one after the other,
says what layers cost each other: equal layers in a row find code and branch predictions where the last one left them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Self

from pydantic import StrictBool, ValidationError, model_validator

from hwsearch.errors import DataError
from hwsearch.records import Sampled
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.spec import PositiveInt, Spec, decode_json, problems
from hwsearch.searchspace.workload import Workload

__all__ = ["Block", "BlockMeasurement", "blocks_of", "blocks_of_space", "mix_of_space", "working_set_bytes"]


_MIXED = 12


class Block(Spec):
    """One piece of a model at a workload: a layer, a mix of several, or the frame of a vocabulary.

    stretched_rope: whether a softmax mixer's rotary frequencies are rescaled, which costs a few kernels more.
    """

    hidden_size: PositiveInt
    workload: Workload
    layer: LayerSpec | None = None
    mix: tuple[LayerSpec, ...] | None = None
    vocab_size: PositiveInt | None = None
    stretched_rope: StrictBool = False

    @model_validator(mode="after")
    def _one_part(self) -> Self:
        if sum(part is not None for part in (self.layer, self.mix, self.vocab_size)) != 1:
            raise ValueError("a block is a layer, a mix of layers, or the frame of a vocabulary")
        return self

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers in their order; none in a frame."""
        return self.mix or (() if self.layer is None else (self.layer,))

    @property
    def part(self) -> str:
        """The kind of the layer's mixer ("none" for a feed-forward layer), "mix" or "frame"."""
        return "mix" if self.mix else "frame" if self.layer is None else self.layer.mixer.kind

    @property
    def weight_bytes(self) -> int:
        """Bytes of the block's weights; embedding and LM head of a frame share theirs."""
        frame = 0 if self.vocab_size is None else self.hidden_size * (self.vocab_size + 1)
        return self.workload.element_bytes * (
            frame + sum(layer.parameters(self.hidden_size) for layer in self.layers)
        )

    @property
    def state_bytes(self) -> int:
        """Bytes that the block keeps between calls, for the workload's whole batch."""
        context, size = self.workload.context, self.workload.element_bytes
        return self.workload.batch * sum(
            layer.mixer.cache_bytes(context, size) + layer.mixer.conv_state_bytes(size)
            for layer in self.layers
        )

    def to_json(self) -> str:
        """Canonical: equal blocks have equal texts."""
        content = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Self:
        """Raises DataError, naming `source` and what is wrong."""
        data: Any = decode_json(text, source=source)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DataError(f"{source} is not a block: {problems(error)}") from None

    def __str__(self) -> str:
        if self.mix:
            return f"mix of {len(self.mix)} layers at {self.workload}"
        if self.layer is None:
            return f"frame of {self.vocab_size} x {self.hidden_size} at {self.workload}"
        mixer = self.layer.mixer
        return f"{mixer.kind} {mixer.label}".strip() + f" layer at {self.workload}"


@dataclass(frozen=True, kw_only=True)
class BlockMeasurement(Sampled):
    """One block measured in one environment; samples are those of a single block."""

    block: Block

    @property
    def key(self) -> str:
        """Identity of what was measured: equal for two measurements of the same thing in the same place."""
        return self.identity(["block", self.block.to_json()])


def blocks_of(architecture: Architecture, workload: Workload) -> Counter[Block]:
    """The blocks whose latencies add up to the architecture's at a workload, and how often each is there."""
    found: Counter[Block] = Counter({_frame(architecture.base, workload): 1})
    for layer, times in Counter(architecture.layers).items():
        found[_layer(layer, architecture.base, workload)] += times
    return found


def blocks_of_space(space: SearchSpace, workloads: Iterable[Workload]) -> list[Block]:
    """The distinct blocks that the architectures of a space are made of at some workloads."""
    found: dict[Block, None] = {}
    for workload in workloads:
        found[_frame(space.base, workload)] = None
        found |= dict.fromkeys(_layer(choice, space.base, workload) for choice in space.choices)
    return list(found)


def working_set_bytes(space: SearchSpace, workload: Workload) -> int:
    """About the weights and caches that a model of the space goes through in one pass, its layers drawn evenly."""
    frame = _frame(space.base, workload)
    layers = [_layer(choice, space.base, workload) for choice in space.choices]
    touched = sum(layer.weight_bytes + layer.state_bytes for layer in layers)
    return frame.weight_bytes + space.base.num_layers * touched // len(layers)


def _layer(layer: LayerSpec, base: Base, workload: Workload) -> Block:
    rotates = layer.mixer.layer_type in ("full_attention", "sliding_attention")
    return Block(
        hidden_size=base.hidden_size,
        workload=workload,
        layer=layer,
        stretched_rope=rotates and base.rope_scaling is not None,
    )


def mix_of_space(space: SearchSpace, workload: Workload) -> Block:
    """Up to _MIXED of the space's choices, evenly from first to last, no two that stand side by side there."""
    count = min(_MIXED, len(space.choices))
    picked = [space.choices[i * len(space.choices) // count] for i in range(count)]
    half = -(-count // 2)
    apart = [
        layer for pair in zip_longest(picked[:half], picked[half:]) for layer in pair if layer is not None
    ]
    return Block(
        hidden_size=space.base.hidden_size,
        workload=workload,
        mix=tuple(apart),
        stretched_rope=space.base.rope_scaling is not None,
    )


def _frame(base: Base, workload: Workload) -> Block:
    return Block(hidden_size=base.hidden_size, workload=workload, vocab_size=base.vocab_size)
