"""Presets of toy models: mixers that fill the hidden size, and a grid of equal cache."""

from __future__ import annotations

import pytest

from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import FullAttention, GatedDeltaNet, JetBlock, SlidingWindowAttention
from hwsearch.searchspace.presets import PRESETS, preset_named

TOY = BASES["Qwen3-1.7B"].replace(
    name="toy",
    num_layers=8,
    hidden_size=128,
    vocab_size=1000,
    max_position_embeddings=512,
    mixer=FullAttention(num_heads=4, num_kv_heads=2, head_dim=32),
    ffn=SwiGLU(intermediate_size=384),
)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_architectures_for_a_toy(name: str) -> None:
    assert preset_named(name, TOY).size > 1


def test_the_mixers_of_a_toy_are_as_wide_as_it_is() -> None:
    mixers = [choice.mixer for choice in preset_named("postnas-block", TOY).choices]
    (delta,) = [m for m in mixers if isinstance(m, GatedDeltaNet)]
    (jet,) = [m for m in mixers if isinstance(m, JetBlock)]
    (window,) = [m for m in mixers if isinstance(m, SlidingWindowAttention)]
    assert delta.num_v_heads * delta.head_v_dim == jet.num_heads * jet.head_v_dim == TOY.hidden_size
    assert delta.cache_bytes(1, 2) == jet.cache_bytes(1, 2)
    assert window.window == 32
    grid = [c.mixer for c in preset_named("postnas-grid-jet", TOY).choices if isinstance(c.mixer, JetBlock)]
    assert len(grid) == 6
    assert len({mixer.cache_bytes(1, 2) for mixer in grid}) == 1
