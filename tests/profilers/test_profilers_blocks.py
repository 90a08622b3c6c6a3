"""Whole layers: stacks run what a model runs, decode where the workload says, and are measured into the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hwsearch.errors import InputError
from hwsearch.models.mixers.attention import AttentionState
from hwsearch.models.mixers.recurrent import RecurrentState
from hwsearch.profilers.bench import BenchSetup, LocalBench
from hwsearch.profilers.run import Progress, measure_all
from hwsearch.profilers.stack import _filled, block_runnable, model_runnable, random_model
from hwsearch.profilers.store import Store
from hwsearch.profilers.timing import TimingRule
from hwsearch.profilers.whole import WholeBench
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.block import (
    Block,
    BlockMeasurement,
    blocks_of,
    blocks_of_space,
    pass_bytes_of,
    pass_bytes_of_space,
)
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import (
    FullAttention,
    GatedDeltaNet,
    NoMixer,
    SharedKVAttention,
    SlidingWindowAttention,
)
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.workload import Workload
from tests.profilers.made_up import made_up_device

_CPU = torch.device("cpu")
_RULE = TimingRule(max_samples=3, min_seconds=0, warmup_seconds=0)
_ATTENTION = FullAttention(num_heads=2, num_kv_heads=1, head_dim=8, qk_norm=True)
_BASE = Base(
    name="tiny",
    family="qwen3",
    num_layers=4,
    hidden_size=16,
    vocab_size=32,
    mixer=_ATTENTION,
    ffn=SwiGLU(intermediate_size=24),
    tie_word_embeddings=True,
    max_position_embeddings=512,
)
_MIXERS = (
    _ATTENTION,
    SlidingWindowAttention(num_heads=2, num_kv_heads=1, head_dim=8, window=5),
    GatedDeltaNet(num_k_heads=1, num_v_heads=2, head_k_dim=8, head_v_dim=8),
    NoMixer(),
)
_LAYERS = tuple(LayerSpec(mixer=mixer, ffn=_BASE.ffn) for mixer in _MIXERS)
_HYBRID = Architecture(name="hybrid", base=_BASE, layers=_LAYERS)
_DECODE = Workload(phase="decode", batch=2, context=11, dtype="float32")
_PREFILL = Workload(phase="prefill", batch=2, context=11, dtype="float32")


def test_a_model_is_its_layers_and_its_frame() -> None:
    twice = Architecture(name="twice", base=_BASE, layers=(_LAYERS[0], _LAYERS[0], _LAYERS[3], _LAYERS[3]))
    counted = blocks_of(twice, _DECODE)
    assert sorted((block.part, times) for block, times in counted.items()) == [
        ("frame", 1),
        ("full_attention", 2),
        ("none", 2),
    ]
    weights = sum(block.weight_bytes * times for block, times in counted.items())
    assert weights == 4 * twice.parameters
    assert sum(block.state_bytes * n for block, n in counted.items()) == 2 * twice.cache_bytes(11, 4)
    space = space_named("postnas", _BASE)
    asked = blocks_of_space(space, [_DECODE, _PREFILL])
    assert len(asked) == len(set(asked)) == 2 * (1 + len(space.choices))


def test_the_sizes_of_a_space_span_its_models() -> None:
    space = space_named("postnas", _BASE)
    long = _DECODE.replace(batch=64, context=500)
    sizes = pass_bytes_of_space(space, long)
    models = [space.decode(genome, name="one") for genome in space.sample(50, rng=np.random.default_rng(1))]
    passed = sorted(pass_bytes_of(model, long) for model in models)
    assert len(sizes) == 3
    assert passed[5] >= 0.9 * sizes[0]
    assert passed[-6] <= 1.1 * sizes[-1]
    assert sizes[1] == pytest.approx((sizes[0] * sizes[2]) ** 0.5, abs=1)
    # Short caches: all models are about as large.
    assert len(pass_bytes_of_space(space, _DECODE.replace(batch=1, context=2))) == 1
    (beyond,) = pass_bytes_of_space(space, long, most_bytes=10)
    assert beyond == 10


@pytest.mark.parametrize("layer", _LAYERS, ids=lambda layer: layer.mixer.kind)
def test_blocks_survive_their_text(layer: LayerSpec) -> None:
    block = Block(hidden_size=16, workload=_PREFILL, layer=layer, stretched_rope=True)
    assert Block.from_json(block.to_json(), source="here") == block
    with pytest.raises(ValueError, match="a layer, a mix of layers, or the frame"):
        Block(hidden_size=16, workload=_PREFILL, layer=layer, vocab_size=3)


@pytest.mark.parametrize("workload", [_DECODE, _PREFILL, _PREFILL.replace(chunk=4)], ids=str)
@pytest.mark.parametrize("layer", _LAYERS, ids=lambda layer: layer.mixer.kind)
@torch.inference_mode()
def test_every_layer_runs_as_a_stack_again_and_again(layer: LayerSpec, workload: Workload) -> None:
    block = Block(hidden_size=16, workload=workload, layer=layer)
    runnable = block_runnable(block, device=_CPU, copies=3, seed=0)
    for _ in range(3):
        runnable.function()
    assert runnable.copies == 3
    assert runnable.kernel()
    assert runnable.state_bytes is not None
    if workload.phase == "decode":
        # The state before the last token, which is not in yet; softmax attention keeps a position beside it.
        token = (
            workload.batch * layer.mixer.cache_bytes(1, 4) if layer.mixer.kind.endswith("attention") else 0
        )
        assert block.state_bytes - token <= runnable.state_bytes <= block.state_bytes


_READING = SharedKVAttention(**_ATTENTION.model_dump(exclude={"kind"}))
_SHARING = _HYBRID.replace(layers=(*_LAYERS[:2], LayerSpec(mixer=_READING, ffn=_BASE.ffn), _LAYERS[3]))


@pytest.mark.parametrize("architecture", [_HYBRID, _SHARING], ids=["hybrid", "sharing"])
@torch.inference_mode()
def test_a_decode_step_repeats_itself_at_the_context_asked_for(architecture: Architecture) -> None:
    """Steps of a rewound cache give the same logits, which are those of a cache that a real prefill left."""
    model = random_model(architecture, device=_CPU, dtype="float32", seed=0)
    runnable = model_runnable(model, _DECODE, device=_CPU, seed=0)
    first, again = runnable.function(), runnable.function()
    assert isinstance(first, torch.Tensor)
    assert isinstance(again, torch.Tensor)
    assert first.shape == (2, 1, 32)
    assert torch.equal(first, again)
    states = _filled(model.model.mixers, _DECODE, device=_CPU, dtype=torch.float32)
    cache = model.new_cache()
    model(input_ids=torch.zeros(2, 10, dtype=torch.long), past_key_values=cache, use_cache=True)
    for ours, real in zip(states, cache.states, strict=True):
        assert (ours is None) == (real is None)
        if ours is None or real is None:
            continue
        shapes = [
            {k: v.shape for k, v in vars(state).items() if isinstance(v, torch.Tensor)}
            for state in (ours, real)
        ]
        assert shapes[0] == shapes[1]
        if isinstance(ours, AttentionState):
            assert isinstance(real, AttentionState)
            assert torch.equal(ours.seen_B, real.seen_B)
            assert (ours.room is None) == (real.room is None)


@torch.inference_mode()
def test_the_frame_is_a_model_without_layers() -> None:
    for workload in (_DECODE, _PREFILL):
        runnable = block_runnable(
            Block(hidden_size=16, workload=workload, vocab_size=32), device=_CPU, copies=1, seed=0
        )
        runnable.function()
        runnable.function()
        assert (runnable.copies, runnable.state_bytes) == (1, 0)


def test_stacks_are_as_high_as_a_model_is_large() -> None:
    block = Block(hidden_size=16, workload=_DECODE, layer=_LAYERS[3])
    each = block.weight_bytes
    assert block.copies == 1
    assert block.among(round(4.6 * each)) == block.replace(pass_bytes=5 * each)
    assert block.among(round(4.6 * each)).copies == 5
    assert block.among(1).copies == 1
    assert block.among(1 << 40).copies == 64
    frame = Block(hidden_size=16, workload=_DECODE, vocab_size=32).among(1 << 40)
    assert (frame.copies, frame.pass_bytes) == (1, 1 << 40)
    assert "among 1048576 MiB" in str(frame)


def test_blocks_are_measured_and_kept(tmp_path: Path) -> None:
    blocks = [
        block.among(200_000) for workload in (_DECODE, _PREFILL) for block in blocks_of(_HYBRID, workload)
    ]
    path = tmp_path / "a.db"
    with Store.open(path, create=True) as store, LocalBench(BenchSetup(rule=_RULE)) as bench:
        name = bench.environment.device_name
        store.add_device(made_up_device(name))
        first = measure_all(store, bench, [], blocks=blocks, visits=2)
        again = measure_all(store, bench, [], blocks=blocks, visits=2)
        rows = store.blocks()
    assert (first.measured, first.not_ok, again.skipped, again.measured) == (len(blocks), 0, len(blocks), 0)
    assert {row.block for row in rows} == set(blocks)
    for row in rows:
        assert row.conditions is not None
        assert row.conditions.visits == len(row.conditions.visit_ms) >= 2
        assert row.state_bytes is not None
        assert row.key in _keys(path)
    softmax = next(r for r in rows if r.block.part == "full_attention" and r.block.workload == _DECODE)
    assert softmax.kernel == "torch"


def test_mixes_are_visited_once_some_in_every_round(tmp_path: Path) -> None:
    (layer, other, *_) = _LAYERS
    mixes = [
        Block(hidden_size=_BASE.hidden_size, workload=_DECODE, mix=(layer, *[other] * n)).among(1)
        for n in (1, 2, 3)
    ]
    alone = Block(hidden_size=_BASE.hidden_size, workload=_DECODE, layer=layer).among(1)
    seen: list[Block] = []
    with Store.open(tmp_path / "a.db", create=True) as store, LocalBench(BenchSetup(rule=_RULE)) as bench:
        store.add_device(made_up_device(bench.environment.device_name))

        def watch(progress: Progress) -> None:
            assert isinstance(progress.measurement, BlockMeasurement)
            seen.append(progress.measurement.block)
            assert (progress.done, progress.total) == (min(len(seen), 6), 6)
            if len(seen) == 3:
                raise KeyboardInterrupt

        blocks = [*mixes, alone]
        with pytest.raises(KeyboardInterrupt):
            measure_all(store, bench, [], blocks=blocks, visits=3, on_progress=watch)
        summary = measure_all(store, bench, [], blocks=blocks, visits=3, on_progress=watch)
        visits = {row.block: row.conditions.visits for row in store.blocks() if row.conditions}
    rounds = [place for place, block in enumerate(seen) if block == alone]
    assert summary.not_ok == 0
    assert [seen.count(mix) for mix in mixes] == [1, 1, 1]
    assert {mix: visits[mix] for mix in mixes} == dict.fromkeys(mixes, 1)
    assert visits[alone] >= 3
    assert rounds[0] <= 1  # beside it one mix in the first round
    assert 2 <= rounds[1] <= 3


def _keys(path: Path) -> set[str]:
    with Store.open(path) as store:
        return store.keys()


def test_a_block_that_cannot_run_is_a_row() -> None:
    with LocalBench(BenchSetup(rule=_RULE)) as bench:
        huge = Block(
            hidden_size=1 << 20,
            workload=_DECODE,
            layer=LayerSpec(mixer=NoMixer(), ffn=SwiGLU(intermediate_size=1 << 20)),
        )
        row = bench.measure(huge)
        assert row.status == "oom"
        other = Block(hidden_size=16, workload=_DECODE.replace(dtype="bfloat16"), layer=_LAYERS[0])
        with pytest.raises(InputError, match="use one dtype"):
            bench.measure(other)


def test_a_long_cache_is_in_memory_once() -> None:
    """Also while it is filled: half of a device's memory would be the longest that can be measured otherwise."""
    block = Block(hidden_size=16, workload=_DECODE.replace(context=1 << 20), layer=_LAYERS[0])
    with LocalBench(BenchSetup(rule=_RULE)) as bench:
        row = bench.measure(block)
    if row.peak_memory_bytes is None:
        pytest.skip("this system does not tell a process's peak of memory")
    assert 0.9 * block.state_bytes < row.peak_memory_bytes < 1.4 * block.state_bytes


def test_states_are_drawn_without_running_the_mixer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt would have fla tune its kernels for prompts, for minutes, before a decode step is measured."""
    model = random_model(_HYBRID, device=_CPU, dtype="float32", seed=0)
    for mixer in model.model.mixers:
        if mixer is not None:
            monkeypatch.setattr(mixer, "forward", None)
    states = _filled(model.model.mixers, _DECODE, device=_CPU, dtype=torch.float32)
    recurrent = states[2]
    assert isinstance(recurrent, RecurrentState)
    assert recurrent.state.std() > 0.5


def test_a_whole_model_is_measured_and_its_largest_batch_found() -> None:
    whole = WholeBench(_CPU, dtype="float32", backend="torch", rule=_RULE).open(_HYBRID, seed=0)
    time = whole.visit(_DECODE)
    assert time.median_ms > 0
    kept = 2 * (_HYBRID.cache_bytes(10, 4) + _HYBRID.conv_state_bytes(4))
    assert time.state_bytes == pytest.approx(kept, rel=0.05)
    tried: list[tuple[int, bool]] = []
    large = Workload(phase="decode", batch=1, context=4096, dtype="float32")
    cap = 40_000_000
    found = whole.largest_batch(large, cap_bytes=cap, on_try=lambda batch, ok: tried.append((batch, ok)))
    each = _HYBRID.cache_bytes(4096, 4)
    # Resident memory also holds the library's own, so fewer fit than the caches alone would allow.
    assert 0.3 * cap / each < found <= cap / each
    assert (found, True) in tried
    with pytest.raises(InputError, match="needs a cap"):
        whole.largest_batch(large, cap_bytes=None)
    with pytest.raises(InputError, match="needs a CUDA device"):
        WholeBench(_CPU, dtype="float32", backend="torch", execution="cuda-graph")
