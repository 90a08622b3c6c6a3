"""Calibrated analytic latency of each operator family: a few physical constants fitted in log space.

latency = launch + p-norm(compute, memory) + what the family cannot hide. The constants are bounded (no fitted
efficiency exceeds the datasheet) and pulled towards a prior, so the form extrapolates where a learned residual
cannot. Functions work on whole columns of dimensions and return milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.tables import Table
from hwsearch.operators import CHUNK, KINDS, Columns, columns
from hwsearch.records import DeviceSpec

__all__ = ["FORMS", "Constant", "Constants", "Form", "analytic_ms", "fit_constants"]

FloatArray = NDArray[np.float64]
Constants = Mapping[str, float]

_PRIOR_SD = 1.0  # natural-log units: a constant is expected within a factor of e of its start
_FIT_ROWS = 3000


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


def _memory(working_set: FloatArray, moved: FloatArray, device: DeviceSpec, k: Constants) -> FloatArray:
    """Seconds to move bytes: slower from device memory, up to `l2_gain` times faster where L2 still holds them."""
    spilled = 1 / (1 + (working_set / (k["l2_fill"] * device.l2_bytes)) ** -3.0)
    share = spilled + (1 - spilled) / k["l2_gain"]
    return moved * share / (k["bandwidth"] * device.bandwidth)


_LAUNCH = Constant("launch_us", 2.5, 0.5, 20.0)
_BANDWIDTH = Constant("bandwidth", 0.88, 0.5, 1.0)
_L2 = (Constant("l2_fill", 0.8, 0.2, 2.0), Constant("l2_gain", 2.0, 1.0, 6.0))
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
            # Long runs of waves overlap, so only the last partial wave of a short run is paid in full.
            waves = waves + (np.ceil(waves) - waves) * k["tail"]
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
    memory = _memory(working, moved, device, k)
    compute = gemm_tiles_seconds(c, device, size, k)
    return k["launch_us"] * 1e-6 + _pnorm(compute, memory, k["power"])


def context_blocks(c: Columns) -> tuple[FloatArray, FloatArray]:
    """Row blocks of a prefill kernel with the query heads of a group packed, and the rows in a block."""
    rows = np.where(c["head_dim"] <= 64, 192.0, 128.0)
    packed = c["seq_len"] * c["num_heads"] / c["num_kv_heads"]
    return c["batch"] * c["num_kv_heads"] * np.ceil(packed / rows), rows


def _context_attention(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    flops = KINDS["context_attention"].flops(c)
    total = c["seq_len"] + c["past_len"]
    reach = np.where(c["window"] > 0, np.minimum(c["window"], total), total)
    blocks, rows = context_blocks(c)
    # Each block works on whole key blocks: on average half a key block and half its rows beyond the mask.
    keys = flops / (4 * c["batch"] * c["num_heads"] * c["head_dim"] * c["seq_len"])
    group = c["num_heads"] / c["num_kv_heads"]
    padded = np.minimum(keys + 64 + rows / group / 2, np.ceil(total / 128) * 128)
    block_flops = 4 * rows * padded * c["head_dim"]
    # Softmax costs an exponential per score, whatever the head size.
    rate = device.peak_flops / device.num_sms
    per_score = 4 * c["head_dim"] / (k["compute"] * rate) + k["softmax"] * 256 / rate
    block = rows * padded * per_score + k["block_us"] * 1e-6
    longest = rows * (reach + 64) * per_score + k["block_us"] * 1e-6
    waves = blocks / device.num_sms
    quantised = np.where(waves > 1, waves + (np.ceil(waves) - waves) * k["tail"], 1.0)
    compute = np.maximum(block * quantised, longest * np.minimum(1.0, k["tail"] + waves))
    moved = KINDS["context_attention"].bytes(c, size)
    memory = _memory(moved, moved, device, k)
    del block_flops
    return k["launch_us"] * 1e-6 + _pnorm(compute, memory, k["power"])


def generation_split(c: Columns, device: DeviceSpec) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Key blocks per sequence, the split the scheduler chooses, and the waves of blocks that result."""
    reach = np.where(c["window"] > 0, np.minimum(c["window"], c["kv_len"]), c["kv_len"])
    blocks = np.ceil(reach / 128)
    tiles = c["batch"] * c["num_kv_heads"] * np.ceil(c["num_heads"] / c["num_kv_heads"] / 64)
    best = np.zeros_like(tiles)
    split = np.ones_like(tiles)
    for candidate in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        waves = tiles * candidate / device.num_sms
        efficiency = waves / np.ceil(waves)
        allowed = (candidate <= blocks) & (tiles < 0.8 * device.num_sms)
        better = allowed & (efficiency > best / 0.85)
        split = np.where(better, candidate, split)
        best = np.where(better, efficiency, best)
    return blocks, split, tiles * split / device.num_sms


def _generation_attention(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
    blocks, split, waves = generation_split(c, device)
    moved = KINDS["generation_attention"].bytes(c, size)
    memory = _memory(moved, moved, device, k)
    feed = k["feed"] * device.bandwidth / device.num_sms
    tile_bytes = size * 2 * 128 * c["head_dim"]
    per_block = tile_bytes / feed + k["block_us"] * 1e-6
    waves = np.where(waves > 1, waves + (np.ceil(waves) - waves) * k["tail"], 1.0)
    chain = waves * (np.ceil(blocks / split) * per_block + k["wave_us"] * 1e-6)
    rows = c["batch"] * c["num_heads"]
    combine = np.where(
        split > 1, k["combine_us"] * 1e-6 + rows * split * c["head_dim"] * 8 / device.bandwidth, 0
    )
    per_head = rows * k["head_ns"] * 1e-9
    return k["launch_us"] * 1e-6 + _pnorm(chain, memory, k["power"]) + combine + per_head


def delta_lanes(c: Columns, k: Constants | None = None) -> FloatArray:
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
    memory = _memory(moved, moved, device, k)
    return k["launch_us"] * 1e-6 + _pnorm(chain, memory, k["power"])


def _streaming(kind: str, programs: Callable[[Columns], FloatArray]) -> Callable[..., FloatArray]:
    def seconds(c: Columns, device: DeviceSpec, size: int, k: Constants) -> FloatArray:
        moved = KINDS[kind].bytes(c, size)
        memory = _memory(moved, moved, device, k)
        issue = programs(c) * k["program_ns"] * 1e-9 / device.num_sms
        return k["launch_us"] * 1e-6 + _pnorm(memory, issue, k["power"])

    return seconds


_STREAM = (_LAUNCH, _BANDWIDTH, *_L2, _POWER, Constant("program_ns", 100.0, 1.0, 5000.0))


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
_FEED = Constant("feed", 2.0, 0.5, 8.0)

FORMS: Mapping[str, Form] = {
    "gemm": Form(
        (
            _LAUNCH,
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
            Constant("launch_us", 8.0, 0.5, 30.0),
            _BANDWIDTH,
            *_L2,
            _POWER,
            _COMPUTE,
            Constant("softmax", 0.3, 0.01, 3.0),
            Constant("block_us", 1.0, 0.02, 10.0),
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
            Constant("block_us", 0.3, 0.01, 5.0),
            Constant("wave_us", 1.0, 0.05, 10.0),
            Constant("combine_us", 2.0, 0.05, 10.0),
            Constant("head_ns", 0.02, 0.001, 1.0),
            _TAIL,
        ),
        _generation_attention,
    ),
    "delta_rule_prefill": Form(
        (
            Constant("launch_us", 5.0, 0.5, 40.0),
            _BANDWIDTH,
            *_L2,
            _POWER,
            _COMPUTE,
            Constant("chunk_us", 1.0, 0.05, 20.0),
            Constant("program_us", 1.0, 0.05, 20.0),
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


def fit_constants(
    table: Table,
    *,
    device: DeviceSpec,
    size: int,
    seed: int,
    around: Constants | None = None,
    prior_sd: float = _PRIOR_SD,
) -> dict[str, float]:
    """Constants of the table's form by robust least squares on log latency.

    The prior is centred on `around` (another device's constants, for transfer) or on the form's own start.
    """
    from scipy.optimize import least_squares

    form = FORMS[table.kind]
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(table), min(_FIT_ROWS, len(table)), replace=False)
    c = columns(table.kind, table.dims[chosen])
    measured = np.log(table.latency_ms[chosen])
    start = np.log([(around or {}).get(k.name, k.start) for k in form.constants])
    low = np.log([k.low for k in form.constants])
    high = np.log([k.high for k in form.constants])
    start = np.clip(start, low + 1e-6, high - 1e-6)

    def named(theta: Sequence[float] | FloatArray) -> dict[str, float]:
        return {k.name: float(np.exp(t)) for k, t in zip(form.constants, theta, strict=True)}

    def residuals(theta: FloatArray) -> FloatArray:
        predicted = np.log(analytic_ms(table.kind, c, device=device, size=size, constants=named(theta)))
        return np.concatenate([(predicted - measured) / 0.05, (theta - start) / prior_sd])

    fitted = least_squares(
        residuals,
        start,
        bounds=(low, high),
        loss="soft_l1",
        diff_step=1e-3,
        x_scale=0.3,
        max_nfev=60,
    )
    return named(fitted.x)
