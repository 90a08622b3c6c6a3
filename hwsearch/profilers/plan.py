"""What to measure: a list of operators without repeats, in an order that a seed decides.

The order is shuffled so that a slow drift of the machine (temperature, neighbours) does not line up with size,
and so that a run cut short has seen a bit of everything. The default plan spreads its points log-uniformly by
Latin hypercubes (McKay, Beckman and Conover, Technometrics 21, 1979): each dimension's range is cut into as many
strata as there are points, and every stratum is used once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import InputError, unknown_name
from hwsearch.operators import KINDS, Operator, columns, operator

__all__ = ["default_plan", "plan"]

_FRUITLESS_ROUNDS = 10  # rounds without a new operator after which a range counts as exhausted


def plan(operators: Iterable[Operator], *, seed: int) -> tuple[Operator, ...]:
    """`operators` without repeats, shuffled; the result does not depend on the order they come in."""
    distinct = sorted(set(operators))
    order = np.random.default_rng(seed).permutation(len(distinct))
    return tuple(distinct[i] for i in order)


def default_plan(device_type: str, *, points: int, seed: int) -> tuple[Operator, ...]:
    """`points` operators spread over what hybrid models of a few billion parameters ask for, shuffled.

    device_type: "cpu" (small shapes, milliseconds each) or "cuda". The kinds share the points evenly.
    Raises InputError for another device type, or for a number of points below one or beyond what the ranges hold.
    """
    if device_type not in _RANGES:
        raise unknown_name("device type", device_type, _RANGES)
    if points < 1:
        raise InputError(f"a plan needs at least one point, got {points}")
    ranges = _RANGES[device_type]
    rng = np.random.default_rng(seed)
    chosen: list[Operator] = []
    for i, (kind, make) in enumerate(_MAKERS.items()):
        share = points // len(_MAKERS) + (i < points % len(_MAKERS))
        chosen += _spread(kind, make, share, ranges, rng)
    return plan(chosen, seed=seed)


@dataclass(frozen=True, kw_only=True)
class _Ranges:
    """Sizes of a device class: inclusive bounds of log-uniform dimensions, choices of the others."""

    tokens: tuple[int, int]  # rows of a gemm, tokens of a prefill
    batch: tuple[int, int]
    width: tuple[int, int]  # hidden and intermediate sizes, channels
    context: tuple[int, int]
    head_dims: tuple[int, ...]
    key_dims: tuple[int, ...]
    value_dims: tuple[int, ...]
    kv_heads: tuple[int, ...]
    groups: tuple[int, ...]
    windows: tuple[int, ...]
    most_flops: float
    most_bytes: float


_RANGES: Mapping[str, _Ranges] = {
    "cpu": _Ranges(
        tokens=(1, 512),
        batch=(1, 16),
        width=(64, 2048),
        context=(32, 2048),
        head_dims=(32, 64, 128),
        key_dims=(32, 64, 96),
        value_dims=(32, 64, 128),
        kv_heads=(1, 2, 4),
        groups=(1, 2, 4),
        windows=(0, 64, 256),
        most_flops=1e9,
        most_bytes=64e6,
    ),
    "cuda": _Ranges(
        tokens=(1, 32768),
        batch=(1, 512),
        width=(256, 16384),
        context=(64, 131072),
        head_dims=(64, 128, 256),
        key_dims=(64, 96, 128, 192, 256),
        value_dims=(64, 128, 192, 256, 384),
        kv_heads=(1, 2, 4, 8),
        groups=(1, 2, 4, 6, 8),
        windows=(0, 512, 1152, 2048, 4096),
        most_flops=2e13,
        most_bytes=2e10,
    ),
}

_Unit = NDArray[np.float64]  # (7,) coordinates in [0, 1)
_Maker = Callable[[_Unit, _Ranges], Operator]
_COORDINATES = 7


def _log_uniform(unit: float, bounds: tuple[int, int], *, multiple: int = 1) -> int:
    low, high = bounds
    value = low * math.exp(unit * math.log(high / low))
    return max(multiple, round(value / multiple) * multiple)


def _pick(unit: float, choices: Sequence[int]) -> int:
    return choices[int(unit * len(choices))]


def _gemm(u: _Unit, r: _Ranges) -> Operator:
    n, k = (_log_uniform(x, r.width, multiple=32) for x in u[1:3])
    return operator("gemm", m=_log_uniform(u[0], r.tokens), n=n, k=k)


def _context_attention(u: _Unit, r: _Ranges) -> Operator:
    kv_heads = _pick(u[2], r.kv_heads)
    # Half of the points continue a sequence that is already cached, as chunked prefill does.
    past_len = _log_uniform(2 * u[5] - 1, r.context) if u[5] >= 0.5 else 0
    return operator(
        "context_attention",
        batch=_log_uniform(u[0], r.batch),
        seq_len=_log_uniform(u[1], r.context),
        past_len=past_len,
        num_heads=kv_heads * _pick(u[3], r.groups),
        num_kv_heads=kv_heads,
        head_dim=_pick(u[4], r.head_dims),
        window=_pick(u[6], r.windows),
    )


def _generation_attention(u: _Unit, r: _Ranges) -> Operator:
    kv_heads = _pick(u[2], r.kv_heads)
    return operator(
        "generation_attention",
        batch=_log_uniform(u[0], r.batch),
        kv_len=_log_uniform(u[1], r.context),
        num_heads=kv_heads * _pick(u[3], r.groups),
        num_kv_heads=kv_heads,
        head_dim=_pick(u[4], r.head_dims),
        window=_pick(u[6], r.windows),
    )


def _delta_heads(u: _Unit, r: _Ranges) -> dict[str, int]:
    num_k_heads = 2 * _pick(u[0], r.kv_heads)
    return {
        "num_k_heads": num_k_heads,
        "num_v_heads": num_k_heads * (1 + int(2 * u[1])),
        "head_k_dim": _pick(u[2], r.key_dims),
        "head_v_dim": _pick(u[3], r.value_dims),
    }


def _delta_rule_prefill(u: _Unit, r: _Ranges) -> Operator:
    batch, seq_len = _log_uniform(u[0], r.batch), _log_uniform(u[1], r.context)
    return operator("delta_rule_prefill", batch=batch, seq_len=seq_len, **_delta_heads(u[2:], r))


def _delta_rule_decode(u: _Unit, r: _Ranges) -> Operator:
    return operator("delta_rule_decode", batch=_log_uniform(u[0], r.batch), **_delta_heads(u[2:], r))


def _short_conv_prefill(u: _Unit, r: _Ranges) -> Operator:
    batch, seq_len = _log_uniform(u[0], r.batch), _log_uniform(u[1], r.context)
    channels = _log_uniform(u[2], r.width, multiple=32)
    return operator("short_conv_prefill", batch=batch, seq_len=seq_len, channels=channels, width=4)


def _short_conv_decode(u: _Unit, r: _Ranges) -> Operator:
    channels = _log_uniform(u[2], r.width, multiple=32)
    return operator("short_conv_decode", batch=_log_uniform(u[0], r.batch), channels=channels, width=4)


def _elementwise(u: _Unit, r: _Ranges) -> Operator:
    reads, writes = ((1, 1), (2, 1), (2, 2))[int(3 * u[2])]
    width = _log_uniform(u[1], r.width, multiple=32)
    return operator("elementwise", rows=_log_uniform(u[0], r.tokens), width=width, reads=reads, writes=writes)


_MAKERS: Mapping[str, _Maker] = {
    "gemm": _gemm,
    "context_attention": _context_attention,
    "generation_attention": _generation_attention,
    "delta_rule_prefill": _delta_rule_prefill,
    "delta_rule_decode": _delta_rule_decode,
    "short_conv_prefill": _short_conv_prefill,
    "short_conv_decode": _short_conv_decode,
    "elementwise": _elementwise,
}


def _spread(
    kind: str, make: _Maker, points: int, ranges: _Ranges, rng: np.random.Generator
) -> list[Operator]:
    """`points` distinct operators of one kind that are not too large; whole hypercubes until there are enough."""
    chosen: dict[Operator, None] = {}
    fruitless = 0
    while len(chosen) < points:
        before = len(chosen)
        strata = rng.permuted(np.tile(np.arange(points), (_COORDINATES, 1)), axis=1).T
        for unit in (strata + rng.random(strata.shape)) / points:
            candidate = make(unit, ranges)
            if len(chosen) < points and _fits(candidate, ranges):
                chosen[candidate] = None
        fruitless = fruitless + 1 if len(chosen) == before else 0
        if fruitless == _FRUITLESS_ROUNDS:
            raise InputError(
                f"the default plan holds no more than about {len(chosen)} distinct {kind} operators and "
                f"{points} were asked for: ask for fewer points"
            )
    return list(chosen)


def _fits(candidate: Operator, ranges: _Ranges) -> bool:
    kind = KINDS[candidate.kind]
    shape = columns(candidate.kind, [candidate.dims])
    # Element sizes differ little enough for a cap: two bytes on CUDA, four on a CPU.
    return bool(kind.flops(shape)[0] <= ranges.most_flops and kind.bytes(shape, 4)[0] <= ranges.most_bytes)
