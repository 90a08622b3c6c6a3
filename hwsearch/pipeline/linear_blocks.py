"""Linear blocks to choose from, and the shapes that keep a block's cache: steps 2 and 4 of PostNAS.

The blocks are those of table 1 of arXiv 2508.15884, with the heads of the space presets. The grid of a block takes
half, the same and twice its heads, and half, the same and twice its key dimension; the value dimension follows from the
recurrent state, which stays as large as it was (table 2 keeps 154 MB for all its rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from hwsearch.errors import InputError, unknown_name
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.mixers import (
    GLA,
    RWKV7,
    SOFTMAX_KINDS,
    DeltaNet,
    GatedDeltaNet,
    JetBlock,
    Mamba2,
    Mixer,
    RetNet,
)
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.space import SearchSpace

__all__ = ["BLOCKS", "block_named", "grid_of", "grid_space", "path_space", "with_block"]

BLOCKS = ("gated_delta_net", "jet_block", "gla", "delta_net", "retnet", "mamba2", "rwkv7")
"""Kinds of linear blocks that block selection knows."""

_SMALLEST, _LARGEST = (
    8,
    576,
)  # dimensions of a head: below, matrix units idle; above lies nothing that was published


def block_named(kind: str, base: Base) -> Mixer:
    """A block in the size that the presets give it for a base; equal recurrent state where the block allows it."""
    if kind not in BLOCKS:
        raise unknown_name("linear block", kind, BLOCKS)
    by_kind: dict[str, Mixer] = {
        choice.mixer.kind: choice.mixer for choice in preset_named("postnas-block", base).choices
    }
    jet = by_kind["jet_block"]
    assert isinstance(jet, JetBlock)
    heads, d_k, d_v = jet.num_heads, jet.head_k_dim, jet.head_v_dim
    match kind:
        case "gla":
            return GLA(num_heads=heads, head_k_dim=d_k, head_v_dim=d_v)
        case "delta_net":
            return DeltaNet(num_heads=heads, head_k_dim=d_k, head_v_dim=d_v)
        case "retnet":
            return RetNet(num_heads=heads, head_k_dim=d_k, head_v_dim=d_v)
        case "mamba2":
            return Mamba2(num_heads=heads, head_dim=d_v, state_size=d_k)
        case "rwkv7":
            width = 64 if base.hidden_size % 64 == 0 and base.hidden_size >= 512 else 32
            return RWKV7(num_heads=base.hidden_size // width, head_dim=width)
    return by_kind[kind]


def grid_of(block: Mixer) -> list[Mixer]:
    """The block itself, then its other shapes of the same recurrent state."""
    points: list[dict[str, Any]] = []
    match block:
        case GatedDeltaNet():
            heads, d_k, d_v = block.num_v_heads, block.head_k_dim, block.head_v_dim
            points = [
                {"num_k_heads": h, "num_v_heads": h, "head_k_dim": k, "head_v_dim": v}
                for h, k, v in _shapes(heads, d_k, d_v)
            ]
        case JetBlock() | GLA() | DeltaNet() | RetNet():
            points = [
                {"num_heads": h, "head_k_dim": k, "head_v_dim": v}
                for h, k, v in _shapes(block.num_heads, block.head_k_dim, block.head_v_dim)
            ]
        case Mamba2():
            points = [
                {"num_heads": h, "state_size": k, "head_dim": v}
                for h, k, v in _shapes(block.num_heads, block.state_size, block.head_dim)
            ]
    found = [block]
    for point in points:
        try:
            mixer = type(block).model_validate({**block.model_dump(), **point})
        except ValidationError:
            continue  # a shape that the block does not allow
        if mixer not in found:
            found.append(mixer)
    return found


def _shapes(heads: int, d_k: int, d_v: int) -> list[tuple[int, int, int]]:
    """Heads, key and value dimension with the product that is given."""
    state = heads * d_k * d_v
    return [
        (h, k, state // (h * k))
        for h in (heads // 2, heads, 2 * heads)
        for k in (d_k // 2, d_k, 2 * d_k)
        if h and k and state % (h * k) == 0
        if _SMALLEST <= k <= _LARGEST and _SMALLEST <= state // (h * k) <= _LARGEST
    ]


def with_block(placed: Architecture, block: Mixer, *, name: str) -> Architecture:
    """The softmax layers of an architecture as they are, and a block in all others."""
    layers = tuple(
        layer if _softmax(layer) else LayerSpec(mixer=block, ffn=layer.ffn) for layer in placed.layers
    )
    return Architecture(name=name, base=placed.base, layers=layers)


def grid_space(placed: Architecture, blocks: Sequence[Mixer]) -> SearchSpace:
    """The softmax layers of an architecture, and one of the blocks, the same in all other layers."""
    softmax = list(dict.fromkeys(layer for layer in placed.layers if _softmax(layer)))
    choices = (*softmax, *(LayerSpec(mixer=block, ffn=placed.base.ffn) for block in blocks))
    own = tuple(range(len(softmax), len(choices)))
    kinds = tuple(dict.fromkeys(choice.mixer.kind for choice in choices[len(softmax) :]))
    if len(kinds) != 1:
        raise InputError(f"a grid is over one kind of block, not {', '.join(kinds)}")
    return SearchSpace(
        base=placed.base,
        choices=choices,
        allowed=tuple((softmax.index(layer),) if _softmax(layer) else own for layer in placed.layers),
        ties=kinds,
    )


def path_space(architecture: Architecture) -> SearchSpace:
    """The space with one architecture in it, and the base's own attention among its choices, as a supernet needs it."""
    own = LayerSpec(mixer=architecture.base.mixer, ffn=architecture.base.ffn)
    choices = tuple(dict.fromkeys((own, *architecture.layers)))
    return SearchSpace(
        base=architecture.base,
        choices=choices,
        allowed=tuple((choices.index(layer),) for layer in architecture.layers),
    )


def _softmax(layer: LayerSpec) -> bool:
    return layer.mixer.kind in SOFTMAX_KINDS
