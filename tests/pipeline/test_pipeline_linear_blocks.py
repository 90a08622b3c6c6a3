"""Blocks, their shapes of equal cache, and what training them is predicted to cost."""

from __future__ import annotations

import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from hwsearch.costmodel.compose import latency_of
from hwsearch.errors import InputError
from hwsearch.operators import Operator
from hwsearch.pipeline.linear_blocks import BLOCKS, block_named, grid_of, grid_space, path_space, with_block
from hwsearch.pipeline.training_cost import local_training, path_training, scoring_cost
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload

BASE = BASES["Qwen2.5-1.5B"]
PLACED = architecture_named("jet-nemotron-2b")
MODEL = load_builtin("h100-sxm")


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_block_takes_the_linear_layers_and_its_shapes_keep_the_cache(kind: str) -> None:
    block = block_named(kind, BASE)
    architecture = with_block(PLACED, block, name=kind)
    assert architecture.count() == {"full_attention": 2, "sliding_window_attention": 2, kind: 24}
    shapes = grid_of(block)
    assert shapes[0] == block
    assert len({shape.cache_bytes(65536, 2) for shape in shapes}) == 1
    space = grid_space(PLACED, shapes)
    assert space.size == len(shapes) == (1 if kind == "rwkv7" else len(set(map(repr, shapes))))
    assert path_space(architecture).size == 1


def test_the_published_shape_is_in_the_grid_of_the_published_block() -> None:
    labels = {shape.label for shape in grid_of(block_named("jet_block", BASE))}
    assert any("12 heads x 96/256" in label for label in labels)
    assert len(labels) > 4


def test_unknown_blocks_and_mixed_grids_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean gla"):
        block_named("gal", BASE)
    with pytest.raises(InputError, match="one kind of block"):
        grid_space(PLACED, [block_named("gla", BASE), block_named("jet_block", BASE)])


def test_frozen_kernels_cost_two_forward_passes_and_trained_ones_three() -> None:
    workload = Workload(phase="prefill", batch=2, context=1024)
    hidden = BASE.hidden_size
    mixers = [op for layer in PLACED.layers for op in layer.lower_mixer(hidden, workload)]
    others = [op for layer in PLACED.layers for op in layer.lower_ffn(hidden, workload)]
    head = Operator("gemm", (workload.tokens, BASE.vocab_size, hidden))
    trained, frozen = latency_of(MODEL, [mixers, [*others, *PLACED.lower_embedding(workload), head]])
    cost = path_training(PLACED, model=MODEL, batch=2, context=1024)
    assert cost.student_ms == pytest.approx(3 * trained.median_ms + 2 * frozen.median_ms)
    assert cost.teacher_ms == pytest.approx(
        scoring_cost(Architecture.of_base(BASE), model=MODEL, batch=2, context=1024).student_ms
    )
    assert path_training(PLACED, model=MODEL, batch=2, context=1024, distilled=False).teacher_ms == 0
    assert cost.hours(2e9) == pytest.approx(2 * cost.hours(1e9))
    assert cost.hours(3600 * cost.tokens_per_s) == pytest.approx(1)


def test_local_training_leaves_the_feed_forward_networks_out() -> None:
    space = preset_named("postnas-placement", BASE)
    local = local_training(space, model=MODEL, batch=2, context=1024)
    workload = Workload(phase="prefill", batch=2, context=1024)
    ops = [op for c in space.choices[1:] for op in c.lower_mixer(BASE.hidden_size, workload)]
    assert local.student_ms == pytest.approx(3 * 28 * latency_of(MODEL, [ops])[0].median_ms)
