"""Features of the learned residual: what a kernel's speed depends on beside its analytic latency.

Every feature is computed from shapes and the device's ceilings, vectorised over columns; the log-scaled ones
are base 2. The delta rule and the streaming kernels get no feature of the head sizes alone: their tables hold
a single head size, and a residual must not guess what another would do.

The features of a CPU are the logarithms of the dimensions and of total FLOPs and bytes: it has neither waves nor tiles
of blocks, and its tables are small and hold every dimension at many values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.forms.attention import reach
from hwsearch.costmodel.forms.context_attention import context_blocks, context_splits
from hwsearch.costmodel.forms.delta_rule import delta_lanes
from hwsearch.costmodel.forms.gemm import cheapest_kernel
from hwsearch.costmodel.forms.generation_attention import generation_split, planned
from hwsearch.costmodel.region import octaves_of
from hwsearch.operators import CHUNK, KINDS, Columns
from hwsearch.records import DeviceSpec

__all__ = ["FEATURES", "feature_matrix"]

FloatArray = NDArray[np.float64]
_Features = dict[str, FloatArray]


def _wave_efficiency(tiles: FloatArray, device: DeviceSpec) -> FloatArray:
    """Share of the multiprocessors at work over the waves that `tiles` equal blocks take."""
    waves = tiles / device.num_sms
    return waves / np.ceil(waves)


def _totals(kind: str, c: Columns, device: DeviceSpec, size: int) -> _Features:
    flops = KINDS[kind].flops(c)
    moved = KINDS[kind].bytes(c, size)
    return {
        "log_flops": np.log2(flops),
        "log_bytes": np.log2(moved),
        "log_intensity": np.log2(flops / moved),
    }


def _gemm(c: Columns, device: DeviceSpec, size: int) -> _Features:
    m, n, k = c["m"], c["n"], c["k"]
    f = {"log_m": np.log2(m), "log_n": np.log2(n), "log_k": np.log2(k), **_totals("gemm", c, device, size)}
    f["log_working_set"] = np.log2(size * (6 * n * k + m * k + m * n) / device.l2_bytes)
    f["log_weight"] = np.log2(n * k)
    f["log_output"] = np.log2(m * n)
    f["log_aspect"] = np.log2(m / n)
    for tm, tn in ((64, 64), (64, 128), (128, 128), (64, 256), (128, 256), (256, 128), (64, 32)):
        tiles = np.ceil(m / tm) * np.ceil(n / tn)
        f[f"waves_{tm}x{tn}"] = np.log2(tiles / device.num_sms)
        f[f"efficiency_{tm}x{tn}"] = _wave_efficiency(tiles, device)
    for tm in (64, 128, 256):
        f[f"fill_m_{tm}"] = m / (np.ceil(m / tm) * tm)
    kernel = cheapest_kernel(c, device=device, size=size)
    tiles = np.ceil(m / kernel.rows) * np.ceil(n / kernel.columns)
    blocks = tiles * kernel.split
    f["kernel_area"] = np.log2(kernel.rows * kernel.columns)
    f["kernel_aspect"] = np.log2(kernel.rows / kernel.columns)
    f["kernel_split"] = np.log2(kernel.split)
    f["kernel_waves"] = np.log2(blocks / device.num_sms)
    f["kernel_efficiency"] = _wave_efficiency(blocks, device)
    f["kernel_padding"] = np.minimum(np.log2(tiles * kernel.rows * kernel.columns / (m * n)), 4)
    f["kernel_seconds"] = np.log2(kernel.seconds)
    f["kernel_bound"] = np.log2(kernel.seconds * device.bandwidth / KINDS["gemm"].bytes(c, size))
    f["kernel_loss"] = np.log2(kernel.seconds * device.peak_flops / KINDS["gemm"].flops(c))
    f["m_mod_8"] = m % 8
    f["m_mod_16"] = m % 16
    f["m_mod_64"] = m % 64
    return f


def _context_attention(c: Columns, device: DeviceSpec, size: int) -> _Features:
    total = c["seq_len"] + c["past_len"]
    seen = reach(c)
    blocks, rows, keys = context_blocks(c)
    splits = context_splits(c, device)
    group = c["num_heads"] / c["num_kv_heads"]
    return {
        "log_batch": np.log2(c["batch"]),
        "log_seq": np.log2(c["seq_len"]),
        "log_heads": np.log2(c["num_heads"]),
        "log_kv_heads": np.log2(c["num_kv_heads"]),
        "head_dim": c["head_dim"],
        "log_group": np.log2(group),
        "log_tokens": np.log2(c["batch"] * c["seq_len"]),
        "log_batch_heads": np.log2(c["batch"] * c["num_heads"]),
        "log_batch_kv": np.log2(c["batch"] * c["num_kv_heads"]),
        "log_copied": np.log2(c["batch"] * c["seq_len"] * np.minimum(c["num_kv_heads"] * c["head_dim"], 512)),
        "windowed": (c["window"] > 0).astype(np.float64),
        "log_reach": np.log2(seen),
        "log_reach_share": np.log2(seen / total),
        "log_split": np.log2(splits),
        "efficiency_split": _wave_efficiency(blocks * splits, device),
        "log_blocks": np.log2(blocks / device.num_sms),
        "log_keys": np.log2(keys),
        "efficiency": _wave_efficiency(blocks, device),
        "efficiency_unpacked": _wave_efficiency(
            c["batch"] * c["num_heads"] * np.ceil(c["seq_len"] / rows), device
        ),
        "log_blocks_unpacked": np.log2(c["batch"] * c["num_heads"] * np.ceil(c["seq_len"] / rows)),
        "fill": c["seq_len"] * group / (np.ceil(c["seq_len"] * group / rows) * rows),
        "group_fill": group / 2 ** np.ceil(np.log2(group)),
        "log_kv_bytes": np.log2(
            size * c["batch"] * total * c["num_kv_heads"] * c["head_dim"] / device.l2_bytes
        ),
        **_totals("context_attention", c, device, size),
    }


def _generation_attention(c: Columns, device: DeviceSpec, size: int) -> _Features:
    blocks, split, waves = generation_split(c, device)
    seen = reach(c)
    group = c["num_heads"] / c["num_kv_heads"]
    tiles = c["batch"] * c["num_kv_heads"]
    return {
        "log_batch": np.log2(c["batch"]),
        "log_kv_len": np.log2(c["kv_len"]),
        "log_heads": np.log2(c["num_heads"]),
        "log_kv_heads": np.log2(c["num_kv_heads"]),
        "head_dim": c["head_dim"],
        "log_group": np.log2(group),
        "windowed": (c["window"] > 0).astype(np.float64),
        "log_reach": np.log2(seen),
        "planned": planned(c),
        "log_blocks": np.log2(blocks),
        "log_split": np.log2(split),
        "log_waves": np.log2(waves),
        "efficiency": waves / np.ceil(waves),
        "log_tiles": np.log2(tiles / device.num_sms),
        "tile_efficiency": _wave_efficiency(tiles, device),
        "log_blocks_per_sm": np.log2(tiles * blocks / device.num_sms),
        "log_rows": np.log2(c["batch"] * c["num_heads"]),
        "log_kv_over_l2": np.log2(size * 2 * tiles * seen * c["head_dim"] / device.l2_bytes),
        **_totals("generation_attention", c, device, size),
    }


def _delta_prefill(c: Columns, device: DeviceSpec, size: int) -> _Features:
    lanes = delta_lanes(c)
    chunks = np.ceil(c["seq_len"] / CHUNK)
    return {
        "log_batch": np.log2(c["batch"]),
        "log_seq": np.log2(c["seq_len"]),
        "log_k_heads": np.log2(c["num_k_heads"]),
        "log_v_heads": np.log2(c["num_v_heads"]),
        "log_group": np.log2(c["num_v_heads"] / c["num_k_heads"]),
        "log_lanes": np.log2(lanes / device.num_sms),
        "efficiency": _wave_efficiency(lanes, device),
        "waves": np.minimum(np.ceil(lanes / device.num_sms), 32),
        "log_chain": np.log2(chunks * np.ceil(lanes / device.num_sms)),
        "log_tokens": np.log2(c["batch"] * c["seq_len"]),
        "log_token_lanes": np.log2(lanes * c["seq_len"]),
        "chunk_fill": c["seq_len"] / (chunks * CHUNK),
    }


def _delta_decode(c: Columns, device: DeviceSpec, size: int) -> _Features:
    state = KINDS["delta_rule_decode"].bytes(c, size)
    return {
        "log_batch": np.log2(c["batch"]),
        "log_k_heads": np.log2(c["num_k_heads"]),
        "log_v_heads": np.log2(c["num_v_heads"]),
        "log_group": np.log2(c["num_v_heads"] / c["num_k_heads"]),
        "log_lanes": np.log2(delta_lanes(c)),
        "log_state_over_l2": np.log2(state / device.l2_bytes),
    }


def _conv_prefill(c: Columns, device: DeviceSpec, size: int) -> _Features:
    moved = KINDS["short_conv_prefill"].bytes(c, size)
    return {
        "log_batch": np.log2(c["batch"]),
        "log_seq": np.log2(c["seq_len"]),
        "log_channels": np.log2(c["channels"]),
        "log_tokens": np.log2(c["batch"] * c["seq_len"]),
        "log_bytes": np.log2(moved / device.l2_bytes),
        "log_programs": np.log2(c["batch"] * np.ceil(c["seq_len"] / 8) * np.ceil(c["channels"] / 256)),
        "log_rows": np.log2(c["batch"] * c["channels"]),
    }


def _conv_decode(c: Columns, device: DeviceSpec, size: int) -> _Features:
    moved = KINDS["short_conv_decode"].bytes(c, size)
    return {
        "log_batch": np.log2(c["batch"]),
        "log_channels": np.log2(c["channels"]),
        "log_bytes": np.log2(moved / device.l2_bytes),
    }


def _elementwise(c: Columns, device: DeviceSpec, size: int) -> _Features:
    moved = KINDS["elementwise"].bytes(c, size)
    return {
        "log_rows": np.log2(c["rows"]),
        "log_width": np.log2(c["width"]),
        "reads": c["reads"],
        "writes": c["writes"],
        "log_bytes": np.log2(moved / device.l2_bytes),
    }


def _recurrent(kind: str) -> Callable[[Columns, DeviceSpec, int], _Features]:
    """Batch, length where there is one, and totals: what any recurrence's speed depends on."""

    def features(c: Columns, device: DeviceSpec, size: int) -> _Features:
        lengths = {"log_seq": np.log2(c["seq_len"])} if "seq_len" in c else {}
        return {"log_batch": np.log2(c["batch"]), **lengths, **_totals(kind, c, device, size)}

    return features


_RECURRENT = tuple(
    f"{family}_{phase}"
    for family in ("linear_attention", "rwkv7", "diagonal_scan", "diagonal_ssm")
    for phase in ("prefill", "decode")
)


def _moe(c: Columns, device: DeviceSpec, size: int) -> _Features:
    rows = c["num_tokens"] * c["topk"]
    active = np.minimum(c["num_experts"], rows)
    per_expert = rows / active
    f = {
        "log_tokens": np.log2(c["num_tokens"]),
        "log_hidden": np.log2(c["hidden_size"]),
        "log_inter": np.log2(c["inter_size"]),
        "log_topk": np.log2(c["topk"]),
        "log_experts": np.log2(c["num_experts"]),
        "log_rows": np.log2(rows),
        "log_per_expert": np.log2(per_expert),
        "log_active": np.log2(active),
        "log_weights": np.log2(active * c["hidden_size"] * c["inter_size"]),
        **_totals("moe", c, device, size),
    }
    for tm in (16, 64, 128):
        padded = active * np.ceil(per_expert / tm)
        f[f"fill_{tm}"] = rows / (padded * tm)
        f[f"waves_{tm}"] = np.log2(padded * np.ceil(2 * c["inter_size"] / 128) / device.num_sms)
    return f


FEATURES: Mapping[str, Callable[[Columns, DeviceSpec, int], _Features]] = {
    "gemm": _gemm,
    "context_attention": _context_attention,
    "generation_attention": _generation_attention,
    "delta_rule_prefill": _delta_prefill,
    "delta_rule_decode": _delta_decode,
    "short_conv_prefill": _conv_prefill,
    "short_conv_decode": _conv_decode,
    "elementwise": _elementwise,
    **{kind: _recurrent(kind) for kind in _RECURRENT},
    "moe": _moe,
}


def feature_matrix(kind: str, c: Columns, *, device: DeviceSpec, size: int) -> NDArray[np.float32]:
    """Features (n, F) of a family, each contiguous; `size` is the bytes per element."""
    if device.kind == "cpu":
        return np.asfortranarray(octaves_of(kind, c, size=size), np.float32)
    found = FEATURES[kind](c, device, size)
    return np.stack([np.asarray(column, np.float32) for column in found.values()]).T
