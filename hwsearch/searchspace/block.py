"""Blocks: the pieces of a model that are measured whole, and whose latencies add up to the model's.

A layer (mixer with its projections, feed-forward network, norms and residual additions), a feed-forward layer without a
mixer, and the frame around the layers: embedding, positions, final norm, LM head. What a framework spends between
kernels is inside a measured block, which a sum of kernels leaves out. A mix, the layers of a model of the space one
after the other, says what layers cost each other: equal ones find code and branch predictions where the last left them.

What a block costs depends on how much memory lies between two of its runs: a model that goes through less than a cache
holds finds its weights and its keys there, one that goes through more does not. So a block is measured among as many
bytes as the models of a space go through, at a few sizes where these differ.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StrictBool, StrictInt, ValidationError, model_validator

from hwsearch.errors import DataError
from hwsearch.records import Sampled
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.space import Genomes, SearchSpace
from hwsearch.searchspace.spec import PositiveInt, Spec, decode_json, problems
from hwsearch.searchspace.workload import Workload

__all__ = [
    "Block",
    "BlockMeasurement",
    "blocks_of",
    "blocks_of_space",
    "mixes_of_space",
    "pass_bytes_of",
    "pass_bytes_of_space",
]


_MIXES, _MIXED = 6, 12  # mixes of a space, and the most layers of one
_MOST_COPIES = 64
_SAMPLES, _TAILS = 256, (5, 95)  # models of a space that say what it goes through; percentiles
_MOST_SIZES = 3
_LEAST_BYTES = 1 << 20  # any core has such a cache of its own: less makes no difference


class Block(Spec):
    """One piece of a model at a workload: a layer, a mix of several, or the frame of a vocabulary.

    stretched_rope: whether a softmax mixer's rotary frequencies are rescaled, which costs a few kernels more.
    pass_bytes: memory that is gone through from one run to the next; None where it is not said.
    """

    hidden_size: PositiveInt
    workload: Workload
    layer: LayerSpec | None = None
    mix: tuple[LayerSpec, ...] | None = None
    vocab_size: PositiveInt | None = None
    stretched_rope: StrictBool = False
    pass_bytes: Annotated[StrictInt, Field(gt=0)] | None = None

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

    @property
    def copies(self) -> int:
        """How many of it, one after the other, go through `pass_bytes`; one of a frame."""
        if not self.layers or self.pass_bytes is None:
            return 1
        return max(1, min(_MOST_COPIES, round(self.pass_bytes / (self.weight_bytes + self.state_bytes))))

    def among(self, pass_bytes: int) -> Self:
        """The block with so many bytes gone through, as nearly as whole copies of it can."""
        asked = self.replace(pass_bytes=pass_bytes)
        if not self.layers:
            return asked
        return asked.replace(pass_bytes=asked.copies * (self.weight_bytes + self.state_bytes))

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
        among = "" if self.pass_bytes is None else f" among {self.pass_bytes / 2**20:.0f} MiB"
        if self.mix:
            what = f"mix of {len(self.mix)} layers"
        elif self.layer is None:
            what = f"frame of {self.vocab_size} x {self.hidden_size}"
        else:
            what = f"{self.layer.mixer.kind} {self.layer.mixer.label}".strip() + " layer"
        return f"{what} at {self.workload}{among}"


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


def pass_bytes_of(architecture: Architecture, workload: Workload) -> int:
    """The weights and caches that an architecture goes through in one pass."""
    blocks = blocks_of(architecture, workload)
    return sum(times * (block.weight_bytes + block.state_bytes) for block, times in blocks.items())


def pass_bytes_of_space(
    space: SearchSpace, workload: Workload, *, most_bytes: float = math.inf
) -> tuple[int, ...]:
    """Sizes of what the models of a space go through in one pass, in rising order, each about twice the one before.

    They span nine tenths of the space's models. most_bytes: beyond it more makes no difference either.
    """
    _, whole, _ = _sampled(space, workload)
    low, high = np.clip(np.percentile(whole, _TAILS), _LEAST_BYTES, most_bytes)
    count = min(_MOST_SIZES, 1 + round(math.log2(high / low)))
    sizes = np.geomspace(low, high, count) if count > 1 else [math.sqrt(low * high)]
    return tuple(round(size) for size in sizes)


def _layer(layer: LayerSpec, base: Base, workload: Workload) -> Block:
    rotates = layer.mixer.layer_type in ("full_attention", "sliding_attention")
    return Block(
        hidden_size=base.hidden_size,
        workload=workload,
        layer=layer,
        stretched_rope=rotates and base.rope_scaling is not None,
    )


def mixes_of_space(
    space: SearchSpace, workload: Workload, *, most_bytes: float = math.inf, fit_bytes: float = math.inf
) -> list[Block]:
    """The layers of models of a space from the smallest to the largest, at most _MIXED of each, at the model's size.

    Not of models whose layers are all the same: stacks of these are blocks of their own. fit_bytes: what a mix's own
    weights and caches may take.
    """
    genomes, whole, held = _sampled(space, workload)
    left = {
        picked: float(size)
        for picked, size, own in zip(
            map(tuple, genomes[:, :_MIXED].tolist()), whole, held[:, :_MIXED].sum(axis=1), strict=True
        )
        if len(set(picked)) > 1 and own <= fit_bytes
    }
    mixes = []
    for wanted in np.geomspace(min(left.values()), max(left.values()), _MIXES).tolist() if left else ():
        nearest = min(left, key=lambda picked: abs(math.log(left[picked] / wanted)), default=None)
        if nearest is None:
            break
        mix = Block(
            hidden_size=space.base.hidden_size,
            workload=workload,
            mix=tuple(space.choices[choice] for choice in nearest),
            stretched_rope=space.base.rope_scaling is not None,
        )
        mixes.append(mix.among(round(min(left.pop(nearest), most_bytes))))
    return mixes


def _sampled(space: SearchSpace, workload: Workload) -> tuple[Genomes, NDArray[np.int64], NDArray[np.int64]]:
    """Models of a space at random (n, layers), the bytes (n,) each goes through in one pass, and its layers' own."""
    layers = [_layer(choice, space.base, workload) for choice in space.choices]
    each = np.array([layer.weight_bytes + layer.state_bytes for layer in layers])
    genomes = space.sample(_SAMPLES, rng=np.random.default_rng(0))
    held = each[genomes]
    return genomes, _frame(space.base, workload).weight_bytes + held.sum(axis=1), held


def _frame(base: Base, workload: Workload) -> Block:
    return Block(hidden_size=base.hidden_size, workload=workload, vocab_size=base.vocab_size)
