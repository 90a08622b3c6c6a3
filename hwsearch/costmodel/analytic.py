"""Analytic latency of each operator family, with a few physical constants that calibration.py fits.

latency = launch + p-norm(compute, memory) + what the family cannot hide. The constants are bounded (no fitted
efficiency exceeds the datasheet) and pulled towards a prior, so the form extrapolates where a learned residual
cannot. Functions work on whole columns of dimensions and return milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.operators import CHUNK, KINDS, STATE_BYTES, Columns, attended_pairs
from hwsearch.records import DeviceSpec

__all__ = ["FORMS", "Constant", "Constants", "Form", "analytic_ms"]

FloatArray = NDArray[np.float64]
Constants = Mapping[str, float]


@dataclass(frozen=True)
class Constant:
    """A positive constant: where the fit starts (also the centre of its prior) and the bounds it stays in."""

    name: str
    start: float
    low: float
    high: float


@dataclass(frozen=True)
class Form:
    """The analytic form of a family: columns (n,), device, bytes per element, constants -> seconds (n,)."""

    constants: tuple[Constant, ...]
    seconds: Callable[[Columns, DeviceSpec, int, Constants], FloatArray]


def _pnorm(a: FloatArray, b: FloatArray, p: float) -> FloatArray:
    larger = np.maximum(a, b)
    ratio = np.minimum(a, b) / larger
    return larger * np.exp(np.log1p(ratio**p) / p)


def _spilled(working_set: FloatArray, device: DeviceSpec, k: Constants) -> FloatArray:
    """Share of the traffic that the L2 cannot keep."""
    share: FloatArray = 1 / (1 + (working_set / (k["l2_fill"] * device.l2_bytes)) ** -k["l2_edge"])
    return share


def _memory(working_set: FloatArray, moved: FloatArray, device: DeviceSpec, k: Constants) -> FloatArray:
    """Seconds to move bytes: slower from device memory, up to `l2_gain` times faster where L2 still holds them."""
    spilled = _spilled(working_set, device, k)
    return moved * (spilled + (1 - spilled) / k["l2_gain"]) / (k["bandwidth"] * device.bandwidth)


_LAUNCH = Constant("launch_us", 2.5, 0.5, 20.0)
_BANDWIDTH = Constant("bandwidth", 0.88, 0.5, 1.0)
_L2 = (
    Constant("l2_fill", 0.8, 0.2, 2.0),
    Constant("l2_gain", 2.0, 1.0, 6.0),
    Constant("l2_edge", 4.0, 1.0, 20.0),
)
_POWER = Constant("power", 3.0, 1.2, 10.0)

# Tile shapes of the library's kernels (rows, columns) and the ways it splits the inner dimension.
_TILES = tuple((tm, tn) for tm in (64, 128, 256) for tn in (32, 64, 128, 192, 256) if tm * tn <= 256 * 128)
_SPLITS = (1, 2, 4, 8)


def gemm_tiles_seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    """Seconds of the best tile shape and split: waves of tiles, each bound by its FLOPs or by its operands."""
    m, n, inner = c["m"], c["n"], c["k"]
    rate = k["compute"] * device.peak_flops / device.num_sms
    feed = k["feed"] * device.bandwidth / device.num_sms
    best = np.full(len(m), np.inf)
    for tm, tn in _TILES:
        tiles = np.ceil(m / tm) * np.ceil(n / tn)
        for split in _SPLITS:
            depth = np.ceil(inner / (64 * split)) * 64
            tile = np.maximum(2 * tm * tn * depth / rate, size * (tm + tn) * depth / feed)
            waves = tiles * split / device.num_sms
            # A last partial wave overlaps with the one before it; a first one has nothing to overlap with.
            waves = np.where(waves > 1, waves + (np.ceil(waves) - waves) * k["tail"], 1.0)
            cost = waves * (tile + k["wave_us"] * 1e-6)
            if split > 1:
                cost = cost + k["split_us"] * 1e-6 + 4 * split * m * n / (2 * device.bandwidth)
            np.minimum(best, cost, out=best)
    return best


def _gemm(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    m, n, inner = c["m"], c["n"], c["k"]
    moved = KINDS["gemm"].bytes(c, size)
    # Measurement loops keep several weights in flight: six weights and their activations.
    working = size * (6 * n * inner + m * inner + m * n)
    memory = k["ramp_us"] * 1e-6 + _memory(working, moved, device, k)
    compute = gemm_tiles_seconds(c, device, size, k)
    return k["launch_us"] * 1e-6 + _pnorm(compute, memory, k["power"])


def _key_block(head_dim: FloatArray) -> FloatArray:
    """Keys that a FlashAttention-3 block takes at a time from a paged cache."""
    return np.select([head_dim <= 128, head_dim <= 192], [128.0, 96.0], 80.0)


def _reach(c: Columns) -> FloatArray:
    """Keys that the last query sees."""
    total = c["kv_len"] if "kv_len" in c else c["seq_len"] + c["past_len"]
    return np.where(c["window"] > 0, np.minimum(c["window"], total), total)


def context_blocks(c: Columns) -> tuple[FloatArray, FloatArray, FloatArray]:
    """FlashAttention-3 prefill: row blocks with a group's heads packed, their rows, their mean key blocks."""
    rows = np.where(c["head_dim"] <= 64, 192.0, 128.0)
    group = c["num_heads"] / c["num_kv_heads"]
    blocks = c["batch"] * c["num_kv_heads"] * np.ceil(c["seq_len"] * group / rows)
    pairs = attended_pairs(c["seq_len"], c["past_len"], c["window"])
    span = np.minimum(rows / group, c["seq_len"])
    step = _key_block(c["head_dim"])
    total = c["seq_len"] + c["past_len"]
    # A block starts and ends inside key blocks: half a step more on average at each masked end.
    ends = np.where((c["window"] > 0) & (c["window"] < total), 1.0, 0.5)
    keys = np.minimum((pairs / c["seq_len"] + span / 2) / step + ends, np.ceil(total / step))
    return blocks, rows, np.maximum(keys, 1.0)


def _context_attention(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    blocks, rows, keys = context_blocks(c)
    step = _key_block(c["head_dim"])
    rate = device.peak_flops / device.num_sms
    # Softmax costs an exponential per score, whatever the head size.
    per_keys = rows * step * (4 * c["head_dim"] / (k["compute"] * rate) + k["softmax"] * 256 / rate)
    octaves = np.log2(c["num_heads"] / c["num_kv_heads"])
    # Packing a group that is no power of two costs divisions in every block.
    odd = np.abs(octaves - np.round(octaves)) > 1e-6
    start = (k["block_us"] + odd * k["odd_us"]) * 1e-6
    waves = blocks / device.num_sms
    mean = (start + keys * per_keys) * np.where(
        waves > 1, waves + (np.ceil(waves) - waves) * k["tail"], waves + (1 - waves) * k["tail"]
    )
    longest = (
        start + np.minimum(_reach(c) / step + 0.5, np.ceil(_reach(c) / step) + 1) * per_keys * k["longest"]
    )
    compute = _pnorm(mean, longest, 6.0)
    per_token = size * c["batch"] * c["head_dim"]
    queries = per_token * 2 * c["seq_len"] * c["num_heads"]
    cache = per_token * 2 * (c["seq_len"] + c["past_len"]) * c["num_kv_heads"]
    # A page of the cache is read in longer runs where it holds more heads.
    cache_share = k["cache_share"] * (1 + k["cache_wide"] * c["num_kv_heads"])
    traffic = (queries / k["query_share"] + cache / cache_share) / device.bandwidth
    return k["launch_us"] * 1e-6 + _pnorm(compute, traffic, k["power"])


def generation_split(c: Columns, device: DeviceSpec) -> tuple[FloatArray, FloatArray, FloatArray]:
    """FlashAttention-3 decode: key blocks per sequence, its split over blocks, and waves of blocks.

    The scheduler cuts all key blocks of the batch into equal shares per multiprocessor, with a tenth to spare.
    """
    blocks = np.ceil(_reach(c) / _key_block(c["head_dim"]))
    blocks = blocks + (c["window"] > 0) * (c["window"] < c["kv_len"])
    tiles = c["batch"] * c["num_kv_heads"] * np.ceil(c["num_heads"] / c["num_kv_heads"] / 64)
    share = np.ceil(1.1 * tiles * blocks / device.num_sms)
    split = np.ceil(blocks / share)
    return blocks, split, tiles * split / device.num_sms


def _generation_attention(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    blocks, split, waves = generation_split(c, device)
    moved = KINDS["generation_attention"].bytes(c, size)
    memory = _memory(moved, moved, device, k) + k["ramp_us"] * 1e-6 * _spilled(moved, device, k)
    feed = k["feed"] * device.bandwidth / device.num_sms
    per_block = k["block_us"] * 1e-6 + size * 2 * _key_block(c["head_dim"]) * c["head_dim"] / feed
    waves = np.where(waves > 1, waves + (np.ceil(waves) - waves) * k["tail"], 1.0)
    chain = waves * (np.ceil(blocks / split) * per_block + k["wave_us"] * 1e-6)
    rows = c["batch"] * c["num_heads"]
    combine = np.where(blocks > 1, k["combine_us"] * 1e-6, 0.0)
    combine = combine + np.where(split > 1, 8 * rows * split * c["head_dim"] / device.bandwidth, 0.0)
    # Up to 992 sequences a kernel of its own plans the splits, and every block searches the plan.
    sequences = np.where(c["batch"] <= 992, c["batch"] * k["sequence_ns"] * 1e-9, 0.0)
    launch = (k["launch_us"] + k["dim_us"] * c["head_dim"] / 128) * 1e-6
    return launch + _pnorm(chain, memory, k["power"]) + combine + sequences


def delta_lanes(c: Columns) -> FloatArray:
    """Programs of the delta rule: one per sequence, value head and slice of 128 value channels."""
    return c["batch"] * c["num_v_heads"] * np.ceil(c["head_v_dim"] / 128)


def _delta_prefill(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    dk, dv = c["head_k_dim"], np.minimum(c["head_v_dim"], 128)
    programs = delta_lanes(c)
    chunks = np.ceil(c["seq_len"] / CHUNK)
    flops = 4 * CHUNK**2 * dk + 4 / 3 * CHUNK**3 + 2 * CHUNK**2 * (dk + 2 * dv) + 6 * CHUNK * dk * dv
    rate = k["compute"] * device.peak_flops / device.num_sms
    chunk = k["chunk_us"] * 1e-6 + flops / rate
    waves = programs / device.num_sms
    waves = np.where(waves > 1, waves + (np.ceil(waves) - waves) * k["tail"], 1.0)
    chain = waves * (chunks * chunk + k["program_us"] * 1e-6)
    moved = KINDS["delta_rule_prefill"].bytes(c, size)
    # Tokens stream while the chunks run; the final state is written when a program has nothing else to do.
    state = STATE_BYTES * c["batch"] * c["num_v_heads"] * c["head_k_dim"] * c["head_v_dim"]
    streamed = (moved - state) / (k["bandwidth"] * device.bandwidth)
    written = state / (k["state_share"] * device.bandwidth)
    return k["launch_us"] * 1e-6 + _pnorm(chain, streamed, k["power"]) + written


def _streaming(kind: str, programs: Callable[[Columns], FloatArray]) -> Callable[..., FloatArray]:
    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        moved = KINDS[kind].bytes(c, size)
        memory = _memory(moved, moved, device, k)
        issue = programs(c) * k["program_ns"] * 1e-9 / device.num_sms
        return k["launch_us"] * 1e-6 + _pnorm(memory, issue, k["power"])

    return seconds


_STREAM = (_LAUNCH, _BANDWIDTH, *_L2, _POWER, Constant("program_ns", 100.0, 1.0, 5000.0))


def _chunked(kind: str) -> Callable[..., FloatArray]:
    """A chunked recurrence of which no table is known: launch, then the slower of arithmetic and traffic."""

    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        compute = KINDS[kind].flops(c) / (k["compute"] * device.peak_flops)
        memory = KINDS[kind].bytes(c, size) / (k["bandwidth"] * device.bandwidth)
        chunks = np.ceil(c["seq_len"] / CHUNK) * k["chunk_us"] * 1e-6
        return k["launch_us"] * 1e-6 + _pnorm(_pnorm(compute, chunks, k["power"]), memory, k["power"])

    return seconds


_CHUNKED = (
    _LAUNCH,
    _BANDWIDTH,
    _POWER,
    Constant("compute", 0.3, 0.01, 1.0),
    Constant("chunk_us", 1.0, 0.05, 20.0),
)


def _moe(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    rows = c["num_tokens"] * c["topk"]
    active = np.minimum(c["num_experts"], rows)
    per_expert = np.ceil(rows / active)
    rate = k["compute"] * device.peak_flops / device.num_sms
    feed = k["feed"] * device.bandwidth / device.num_sms
    compute = np.zeros(len(rows))
    for width, inner in ((2 * c["inter_size"], c["hidden_size"]), (c["hidden_size"], c["inter_size"])):
        best = np.full(len(rows), np.inf)
        for tm in (16, 32, 64, 128):
            tiles = active * np.ceil(per_expert / tm) * np.ceil(width / 128)
            waves = tiles / device.num_sms
            waves = waves + (np.ceil(waves) - waves) * k["tail"]
            tile = np.maximum(2 * max(tm, 64) * 128 * inner / rate, size * (tm + 128) * inner / feed)
            np.minimum(best, waves * (tile + k["wave_us"] * 1e-6), out=best)
        compute = compute + best
    weights = size * active * 3 * c["hidden_size"] * c["inter_size"]
    routed = size * rows * (2 * c["hidden_size"] + 3 * c["inter_size"])
    memory = _memory(weights + routed, weights, device, k)
    around = k["rows"] * routed / device.bandwidth
    return k["launch_us"] * 1e-6 + _pnorm(compute, memory, k["power"]) + around


_TAIL = Constant("tail", 0.6, 0.02, 1.0)
_COMPUTE = Constant("compute", 0.75, 0.3, 1.0)
_FEED = Constant("feed", 4.0, 0.5, 8.0)

FORMS: Mapping[str, Form] = {
    "gemm": Form(
        (
            Constant("launch_us", 0.6, 0.1, 20.0),
            Constant("ramp_us", 1.5, 0.05, 10.0),
            _BANDWIDTH,
            *_L2,
            _POWER,
            _COMPUTE,
            _FEED,
            _TAIL,
            Constant("wave_us", 1.0, 0.05, 10.0),
            Constant("split_us", 1.5, 0.1, 10.0),
        ),
        _gemm,
    ),
    "context_attention": Form(
        (
            Constant("launch_us", 9.0, 0.5, 30.0),
            Constant("power", 1.5, 1.0, 10.0),
            _COMPUTE,
            Constant("softmax", 0.3, 0.01, 3.0),
            Constant("block_us", 3.0, 0.05, 10.0),
            Constant("query_share", 0.5, 0.1, 1.0),
            Constant("cache_share", 0.2, 0.05, 0.5),
            Constant("cache_wide", 0.03, 0.001, 0.05),
            Constant("odd_us", 0.4, 0.01, 5.0),
            Constant("longest", 0.8, 0.1, 1.5),
            _TAIL,
        ),
        _context_attention,
    ),
    "generation_attention": Form(
        (
            Constant("launch_us", 8.0, 0.5, 30.0),
            _BANDWIDTH,
            *_L2,
            _POWER,
            _FEED,
            Constant("block_us", 1.5, 0.02, 10.0),
            Constant("wave_us", 3.0, 0.05, 10.0),
            Constant("combine_us", 1.0, 0.05, 10.0),
            Constant("sequence_ns", 10.0, 0.01, 100.0),
            Constant("ramp_us", 5.0, 0.1, 60.0),
            Constant("dim_us", 0.6, 0.01, 5.0),
            _TAIL,
        ),
        _generation_attention,
    ),
    "delta_rule_prefill": Form(
        (
            Constant("launch_us", 4.0, 0.5, 40.0),
            _BANDWIDTH,
            Constant("power", 4.0, 1.2, 12.0),
            _COMPUTE,
            Constant("chunk_us", 1.0, 0.05, 20.0),
            Constant("program_us", 5.0, 0.05, 20.0),
            Constant("state_share", 0.7, 0.1, 1.0),
            _TAIL,
        ),
        _delta_prefill,
    ),
    "delta_rule_decode": Form(
        _STREAM,
        _streaming(
            "delta_rule_decode", lambda c: c["batch"] * c["num_v_heads"] * np.ceil(c["head_v_dim"] / 32)
        ),
    ),
    "short_conv_prefill": Form(
        _STREAM,
        _streaming(
            "short_conv_prefill",
            lambda c: c["batch"] * np.ceil(c["seq_len"] / 8) * np.ceil(c["channels"] / 256),
        ),
    ),
    "short_conv_decode": Form(
        _STREAM,
        _streaming("short_conv_decode", lambda c: c["batch"] * np.ceil(c["channels"] / 256)),
    ),
    "elementwise": Form(
        _STREAM,
        _streaming("elementwise", lambda c: c["rows"] * np.ceil(c["width"] / 4096)),
    ),
    **{
        kind: Form(_CHUNKED, _chunked(kind))
        for kind in (
            "linear_attention_prefill",
            "rwkv7_prefill",
            "diagonal_scan_prefill",
            "diagonal_ssm_prefill",
        )
    },
    "linear_attention_decode": Form(
        _STREAM,
        _streaming(
            "linear_attention_decode",
            lambda c: c["batch"] * c["num_v_heads"] * np.ceil(c["head_v_dim"] / 32),
        ),
    ),
    "rwkv7_decode": Form(
        _STREAM,
        _streaming("rwkv7_decode", lambda c: c["batch"] * c["num_heads"] * np.ceil(c["head_v_dim"] / 32)),
    ),
    "diagonal_scan_decode": Form(
        _STREAM,
        _streaming("diagonal_scan_decode", lambda c: c["batch"] * np.ceil(c["channels"] / 256)),
    ),
    "diagonal_ssm_decode": Form(
        _STREAM,
        _streaming("diagonal_ssm_decode", lambda c: c["batch"] * np.ceil(c["channels"] / 256)),
    ),
    "moe": Form(
        (
            Constant("launch_us", 20.0, 1.0, 80.0),
            _BANDWIDTH,
            *_L2,
            _POWER,
            _COMPUTE,
            _FEED,
            _TAIL,
            Constant("wave_us", 1.0, 0.05, 10.0),
            Constant("rows", 1.0, 0.2, 5.0),
        ),
        _moe,
    ),
}


def analytic_ms(kind: str, c: Columns, *, device: DeviceSpec, size: int, constants: Constants) -> FloatArray:
    """Milliseconds (n,) of the calibrated form; `size` is the bytes per element."""
    return 1e3 * FORMS[kind].seconds(c, device, size, constants)
