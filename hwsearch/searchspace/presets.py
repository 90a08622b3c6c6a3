"""Ready-made search spaces, written as the space files that a user could write.

`hwsearch spaces` lists them with their sizes; `hwsearch spaces NAME --base BASE` prints one as a file to start from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwsearch.errors import unknown_name
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.spacefile import SpaceSpec
from hwsearch.searchspace.spaceloader import SUFFIXES, load_space

__all__ = ["PRESETS", "Preset", "preset_named", "space_named"]

_NO_TWO_EMPTY = [("none", "none")]
_SMALL = 512  # below this hidden size a model is a toy for tests and studies, and head dimensions of 128 would dwarf it


@dataclass(frozen=True)
class Preset:
    """What a space is for, in one line, and the space for a base."""

    summary: str
    spec: Callable[[Base], SpaceSpec]


def _spec(**content: Any) -> SpaceSpec:
    return SpaceSpec.model_validate(content)


def _jet(base: Base) -> tuple[int, int, int]:
    """Heads, d_K and d_V of the published JetBlocks: d_K 96 below a hidden size of 2048, 128 from there on, d_V 256,
    and one head per 128 channels, an even number. Small models get heads of 32, as many as fill their hidden size."""
    if base.hidden_size < _SMALL:
        return 2 * max(base.hidden_size // 64, 1), 32, 32
    return 2 * max(base.hidden_size // 256, 1), 128 if base.hidden_size >= 2048 else 96, 256


def _window(base: Base) -> int:
    if base.hidden_size < _SMALL:
        return max(base.max_position_embeddings // 16, 16)
    return 2048 if base.hidden_size >= 2048 else 1152


def _delta(base: Base) -> dict[str, Any]:
    """A gated delta net with two value heads per key head of 128 x 128, the shape of Qwen3.5; small ones: 32 x 32."""
    heads, _, _ = _jet(base)
    small = base.hidden_size < _SMALL
    key_heads, dims = (heads // 2, 32) if small else (heads, 128)
    return {
        "kind": "gated_delta_net",
        "num_k_heads": key_heads,
        "num_v_heads": 2 * key_heads,
        "head_k_dim": dims,
        "head_v_dim": dims,
    }


def _postnas(base: Base) -> SpaceSpec:
    heads, d_k, d_v = _jet(base)
    return _spec(
        description="PostNAS (arXiv 2508.15884) in one step: placement, block and grid together.",
        mixers=[
            {"kind": "full_attention"},
            {"kind": "sliding_window_attention", "window": _window(base)},
            _delta(base),
            {"kind": "jet_block", "num_heads": heads, "head_k_dim": d_k, "head_v_dim": d_v},
            {"kind": "jet_block", "num_heads": heads, "head_k_dim": d_k // 2, "head_v_dim": 2 * d_v},
            {"kind": "jet_block", "num_heads": heads // 2, "head_k_dim": d_k, "head_v_dim": 2 * d_v},
            {"kind": "none"},
        ],
        ties=["jet_block"],
        forbidden=_NO_TWO_EMPTY,
    )


def _placement(base: Base) -> SpaceSpec:
    return _spec(
        description="Step 1 of PostNAS: which layers keep softmax attention, over one linear block.",
        mixers=[
            {"kind": "full_attention"},
            {"kind": "sliding_window_attention", "window": _window(base)},
            _delta(base),
        ],
    )


def _block(base: Base) -> SpaceSpec:
    heads, d_k, d_v = _jet(base)
    return _spec(
        description="Step 2 of PostNAS: one linear block for all layers without softmax attention (--placement).",
        mixers=[
            {"kind": "full_attention"},
            {"kind": "sliding_window_attention", "window": _window(base)},
            _delta(base),
            {"kind": "jet_block", "num_heads": heads, "head_k_dim": d_k, "head_v_dim": d_v},
        ],
        groups={"linear": ["gated_delta_net", "jet_block"]},
        ties=["linear"],
    )


def _grid(base: Base, *, kind: str, heads_of: tuple[str, ...]) -> SpaceSpec:
    """The nine points of table 2 (arXiv 2508.15884), scaled from the 1.5B model's state of 294,912 to the base's.

    heads_of: the fields of the mixer that hold the number of heads.
    """
    heads, d_k, d_v = _jet(base)
    if base.hidden_size < _SMALL:
        points: Iterable[tuple[int, list[int]]] = [(count, [16, 32, 64]) for count in (heads // 2, heads)]
    else:
        counts = (heads // 3, 2 * heads // 3, heads) if heads % 3 == 0 else (heads // 4, heads // 2, heads)
        points = zip(counts, ([256, 192, 128], [256, 192, 128], [128, 96, 64]), strict=True)
    return _spec(
        description=f"Step 4 of PostNAS: heads, d_K and d_V of the {kind} at fixed cache (--placement).",
        mixers=[
            {"kind": "full_attention"},
            {"kind": "sliding_window_attention", "window": _window(base)},
            *(
                {
                    "kind": kind,
                    **dict.fromkeys(heads_of, count),
                    "head_k_dim": dims,
                    "state_size": heads * d_k * d_v,
                }
                for count, dims in points
            ),
        ],
        ties=[kind],
    )


def _delta_grid(base: Base) -> SpaceSpec:
    return _grid(base, kind="gated_delta_net", heads_of=("num_k_heads", "num_v_heads"))


def _jet_grid(base: Base) -> SpaceSpec:
    return _grid(base, kind="jet_block", heads_of=("num_heads",))


def _puzzle(base: Base) -> SpaceSpec:
    heads = base.mixer.num_kv_heads
    return _spec(
        description=(
            "In the manner of Puzzle (arXiv 2411.19146): attention with fewer KV heads, or none, and narrower "
            "feed-forward networks, layer by layer."
        ),
        mixers=[
            {"kind": "full_attention", "num_kv_heads": [n for n in (heads, heads // 2, heads // 4) if n]},
            {"kind": "none"},
        ],
        ffn={"share": [1.0, 0.87, 0.75, 0.5, 0.25, 0.1]},
    )


def _nemotron_flash(base: Base) -> SpaceSpec:
    return _spec(
        description=(
            "In the manner of Nemotron-Flash (arXiv 2511.18890): few attention layers among delta-rule layers, at most "
            "one in every four. Its DeltaNet is the gated one here, and its Mamba2 is left out."
        ),
        mixers=[
            {"kind": "full_attention"},
            {"kind": "sliding_window_attention", "window": [512, _window(base)]},
            _delta(base),
            {"kind": "none"},
        ],
        groups={"softmax": ["full_attention", "sliding_window_attention"]},
        limits=[{"of": "softmax", "at_most": 1, "every": 4}],
        forbidden=_NO_TWO_EMPTY,
    )


def _kv_sharing(base: Base) -> SpaceSpec:
    window = _window(base)
    return _spec(
        description=(
            "Attention layers with keys and values of their own, full or windowed, and ones that read an earlier "
            "layer's, as in cross-layer attention (arXiv 2405.12981), YOCO (arXiv 2405.05254) and Gemma 3n."
        ),
        mixers=[
            {"kind": "full_attention"},
            {"kind": "sliding_window_attention", "window": window},
            {"kind": "shared_kv_attention"},
            {"kind": "shared_kv_attention", "window": window},
        ],
    )


def _all(base: Base) -> SpaceSpec:
    heads, d_k, d_v = _jet(base)
    kv = base.mixer.num_kv_heads
    return _spec(
        description=(
            "Every mixer whose kernels the shipped cost models have measurements of, with its grid, and feed-forward "
            "widths; JetBlocks share one point of theirs."
        ),
        mixers=[
            {"kind": "full_attention", "num_kv_heads": [n for n in (kv, kv // 2, kv // 4) if n]},
            {"kind": "sliding_window_attention", "window": [512, 1024, _window(base)]},
            _delta(base),
            {
                "kind": "jet_block",
                "num_heads": [heads // 2, heads],
                "head_k_dim": [d_k // 2, d_k, 2 * d_k],
                "state_size": heads * d_k * d_v,
            },
            {"kind": "none"},
        ],
        ffn={"share": [1.0, 0.75, 0.5, 0.25]},
        ties=["jet_block"],
        forbidden=_NO_TWO_EMPTY,
    )


PRESETS: Mapping[str, Preset] = {
    "postnas": Preset("placement, block and grid of PostNAS at once", _postnas),
    "postnas-placement": Preset("PostNAS step 1: where softmax attention stays", _placement),
    "postnas-block": Preset("PostNAS step 2: which linear block, the same in all layers", _block),
    "postnas-grid": Preset(
        "PostNAS step 4: heads, d_K and d_V of the gated delta net at fixed cache, as in table 2", _delta_grid
    ),
    "postnas-grid-jet": Preset("the same grid for the JetBlock, whose generator grows with it", _jet_grid),
    "puzzle": Preset("fewer KV heads, no attention, narrower feed-forward networks, as in Puzzle", _puzzle),
    "nemotron-flash": Preset(
        "few attention layers among delta-rule layers, as in Nemotron-Flash", _nemotron_flash
    ),
    "kv-sharing": Preset("attention that reads an earlier layer's keys and values", _kv_sharing),
    "all": Preset("every mixer of the shipped cost models with its grid, and feed-forward widths", _all),
}


def preset_named(name: str, base: Base) -> SearchSpace:
    """A preset for a base. Raises InputError for an unknown name."""
    if name not in PRESETS:
        raise unknown_name("search space", name, PRESETS)
    return PRESETS[name].spec(base).build(base)


def space_named(name: str, base: Base) -> SearchSpace:
    """A preset, or the space that a file describes, for a base.

    Raises InputError for an unknown name, DataError for a file that does not describe a space.
    """
    if name not in PRESETS and (name.endswith(SUFFIXES) or Path(name).is_file()):
        return load_space(Path(name)).build(base)
    return preset_named(name, base)
