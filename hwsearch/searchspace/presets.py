"""Ready-made search spaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hwsearch.errors import unknown_name
from hwsearch.searchspace.architecture import LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.mixers import GatedDeltaNet, JetBlock, MixerSpec, NoMixer, SlidingWindowAttention
from hwsearch.searchspace.space import SearchSpace

__all__ = ["PRESETS", "preset_named"]


def postnas(base: Base) -> SearchSpace:
    """The choices of PostNAS (arXiv 2508.15884): keep full attention, window it, make it linear, or drop it.

    The JetBlock and window follow the two published models: d_K 96 and a window of 1152 below a hidden size of
    2048, d_K 128 and 2048 from there on, d_V 256 and one head per 128 channels (an even number) in both. Its grid keeps
    d_K x d_V x heads, and so the cache, fixed, and all JetBlock layers share one grid point. The gated delta
    net has two value heads per key head of 128 x 128, the shape of Qwen3.5. Adjacent layers without a mixer
    are not allowed.
    """
    wide = base.hidden_size >= 2048
    heads = 2 * max(base.hidden_size // 256, 1)
    d_k, d_v = (128, 256) if wide else (96, 256)
    mixers: list[MixerSpec] = [
        base.mixer,
        SlidingWindowAttention(window=2048 if wide else 1152, **base.mixer.model_dump(exclude={"kind"})),
        GatedDeltaNet(num_k_heads=heads, num_v_heads=2 * heads, head_k_dim=128, head_v_dim=128),
        JetBlock(num_heads=heads, head_k_dim=d_k, head_v_dim=d_v),
        JetBlock(num_heads=heads, head_k_dim=d_k // 2, head_v_dim=2 * d_v),
        JetBlock(num_heads=heads // 2, head_k_dim=d_k, head_v_dim=2 * d_v),
        NoMixer(),
    ]
    return SearchSpace(
        base=base,
        choices=tuple(LayerSpec(mixer=mixer, ffn=base.ffn) for mixer in mixers),
        allowed=(tuple(range(len(mixers))),) * base.num_layers,
        ties=("jet_block",),
        forbidden=frozenset({("none", "none")}),
    )


PRESETS: Mapping[str, Callable[[Base], SearchSpace]] = {"postnas": postnas}


def preset_named(name: str, base: Base) -> SearchSpace:
    """A preset for a base. Raises InputError for an unknown name."""
    if name not in PRESETS:
        raise unknown_name("search space", name, PRESETS)
    return PRESETS[name](base)
