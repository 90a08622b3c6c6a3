"""Other ways to predict kernel latency, each as its authors do it: what the cost model is compared with.

Every peer is a function (fitted table, operators to predict, device, seed) -> milliseconds (n,).

- roofline: the larger of FLOPs over peak and least bytes over bandwidth, datasheet figures; Williams et al. 2009.
- forest: a random forest on the raw dimensions, as in Vidur (Agrawal et al., arXiv 2405.05465): the latency in
  milliseconds is the target. Vidur searches a grid of 250 to 750 trees and depths 8 to 32; this is its 250 trees
  at depth 32.
- interpolation: as AIConfigurator resolves a query (github.com/ai-dynamo/aiconfigurator, sdk/perf_interp, August
  2026), written anew from its description. Products are curves over m at each (n, k): linear in m on a measured
  curve; an unknown (n, k) blends the utilisation of the four nearest curves that reach m, by inverse square
  distance in octaves, at most two octaves away. Attention is a nested grid (heads, then batch and length) within
  one slice of KV heads, head size and window, bracketed level by level and blended linearly (square root of
  latency for prefill). The delta rule is treated as a grid, mixtures of experts as curves over tokens. Beyond
  the data, and wherever a scattered table leaves a bracket open, utilisation (roofline over latency) is held:
  that of the four nearest measured rows, by inverse square distance in octaves. AIConfigurator itself refuses
  some of these queries, or holds the utilisation of the nearest path of its grid, which on scattered rows errs
  by hundreds of percent; the nearest rows are the stronger opponent.
- process: a Gaussian process with an ARD Matern-5/2 kernel on the logarithms of the dimensions, no physics
  (a window counts as the length it leaves). Hyperparameters are learned on at most 400 rows and the posterior
  uses at most 2000.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hwsearch.costmodel.tables import Table
from hwsearch.operators import KINDS, columns
from hwsearch.records import DeviceSpec

__all__ = ["PEERS", "forest", "interpolation", "process", "roofline"]

FloatArray = NDArray[np.float64]
Dims = NDArray[np.int64]
Peer = Callable[[Table, Dims, DeviceSpec, int], FloatArray]
_ELEMENT = 2  # bytes of bf16
_LEARN_ROWS, _POSTERIOR_ROWS = 400, 2000
_NEAREST = 4
_FARTHEST = 2.0  # octaves between a product and a curve that lends to it


def _ideal_ms(kind: str, dims: Dims, device: DeviceSpec) -> FloatArray:
    c = columns(kind, dims)
    compute = KINDS[kind].flops(c) / device.peak_flops
    return 1e3 * np.maximum(compute, KINDS[kind].bytes(c, _ELEMENT) / device.bandwidth)


def roofline(fitted: Table, dims: Dims, device: DeviceSpec, seed: int) -> FloatArray:
    """Datasheet ceilings alone; nothing is fitted."""
    return _ideal_ms(fitted.kind, dims, device)


def forest(fitted: Table, dims: Dims, device: DeviceSpec, seed: int) -> FloatArray:
    """Random forest on raw dimensions."""
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(n_estimators=250, max_depth=32, random_state=seed)
    predicted: FloatArray = model.fit(fitted.dims, fitted.latency_ms).predict(dims)
    return predicted


def _log_inputs(kind: str, dims: Dims) -> FloatArray:
    c = dict(columns(kind, dims))
    if "window" in c:
        total = c["kv_len"] if "kv_len" in c else c["seq_len"] + c["past_len"]
        c["window"] = np.where(c["window"] > 0, np.minimum(c["window"], total), total)
    return np.log2(np.maximum(np.stack([c[name] for name in KINDS[kind].dims], axis=1), 0.5))


def process(fitted: Table, dims: Dims, device: DeviceSpec, seed: int) -> FloatArray:
    """Gaussian process on logarithms, on log latency."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    x = _log_inputs(fitted.kind, fitted.dims)
    varied = x.std(axis=0) > 0
    mean, sd = x[:, varied].mean(axis=0), x[:, varied].std(axis=0)
    x = (x[:, varied] - mean) / sd
    y = np.log(fitted.latency_ms)
    rows = np.random.default_rng(seed).permutation(len(x))
    kernel = ConstantKernel(1.0, (1e-3, 1e4)) * Matern(
        np.full(x.shape[1], 2.0), (1e-2, 1e3), nu=2.5
    ) + WhiteKernel(1e-2, (1e-6, 1.0))
    learn = rows[:_LEARN_ROWS]
    learned = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed).fit(x[learn], y[learn])
    known = rows[:_POSTERIOR_ROWS]
    model = GaussianProcessRegressor(learned.kernel_, normalize_y=True, optimizer=None)
    model.fit(x[known], y[known])
    asked = (_log_inputs(fitted.kind, dims)[:, varied] - mean) / sd
    blocks = [model.predict(asked[i : i + 2000]) for i in range(0, len(asked), 2000)]
    predicted: FloatArray = np.exp(np.concatenate(blocks))
    return predicted


def interpolation(fitted: Table, dims: Dims, device: DeviceSpec, seed: int) -> FloatArray:
    """Curves or grids of measured latency where they reach, utilisation of the nearest rows elsewhere."""
    names = KINDS[fitted.kind].dims
    utilisation = _ideal_ms(fitted.kind, fitted.dims, device) / fitted.latency_ms
    if fitted.kind in _CURVE_AXIS:
        inside = _on_curves(fitted, dims, names.index(_CURVE_AXIS[fitted.kind]), device)
    else:
        inside = _on_grids(fitted, dims, [names.index(n) for n in _GRID_AXES[fitted.kind]])
    tree = cKDTree(_log_inputs(fitted.kind, fitted.dims))
    distance, row = tree.query(_log_inputs(fitted.kind, dims), k=_NEAREST)
    weight = 1 / (np.asarray(distance, dtype=np.float64) ** 2 + 1e-12)
    held = (weight * utilisation[row]).sum(axis=1) / weight.sum(axis=1)
    return np.where(np.isnan(inside), _ideal_ms(fitted.kind, dims, device) / held, inside)


_CURVE_AXIS = {"gemm": "m", "moe": "num_tokens", "delta_rule_decode": "batch"}
_GRID_AXES = {  # outermost first; the other dimensions tell slices apart
    "context_attention": ("num_heads", "seq_len", "batch"),
    "generation_attention": ("num_heads", "batch", "kv_len"),
    "delta_rule_prefill": ("num_v_heads", "seq_len", "batch"),
}
_ROOT = {"context_attention"}  # grids blended in the square root of latency


def _on_curves(fitted: Table, dims: Dims, axis: int, device: DeviceSpec) -> FloatArray:
    """Milliseconds (n,), NaN where no curve answers."""
    others = [i for i in range(dims.shape[1]) if i != axis]
    sites, site_of = np.unique(fitted.dims[:, others], axis=0, return_inverse=True)
    order = np.lexsort((fitted.dims[:, axis], site_of.reshape(-1)))
    edges = np.searchsorted(site_of.reshape(-1)[order], np.arange(len(sites) + 1))
    along, latency = fitted.dims[order, axis].astype(np.float64), fitted.latency_ms[order]
    first, last = along[edges[:-1]], along[edges[1:] - 1]
    log_sites = np.log2(sites)
    out = np.full(len(dims), np.nan)
    for i, row in enumerate(dims):
        q = float(row[axis])
        distance = ((log_sites - np.log2(row[others])) ** 2).sum(axis=1)
        reaching = np.flatnonzero((first <= q) & (q <= last) & (distance <= _FARTHEST**2))
        nearest = reaching[np.argsort(distance[reaching], kind="stable")[:_NEAREST]]
        if not len(nearest):
            continue
        if distance.min() == 0:
            nearest = nearest[:1] if distance[nearest[0]] == 0 else nearest[:0]
            if not len(nearest):
                continue
        on = [slice(edges[site], edges[site + 1]) for site in nearest]
        there = np.array([np.interp(q, along[own], latency[own]) for own in on])
        lenders = np.tile(row, (len(nearest), 1))
        lenders[:, others] = sites[nearest]
        weight = 1 / (distance[nearest] + 1e-12)
        share = (weight * _ideal_ms(fitted.kind, lenders, device) / there).sum() / weight.sum()
        out[i] = _ideal_ms(fitted.kind, row[None], device)[0] / share
    return out


_Node = dict[int, "_Node"] | float  # a level of a grid, or a latency


def _inside(node: _Node, at: list[int]) -> float:
    """The grid blended at these coordinates; NaN where a bracket is open."""
    if not isinstance(node, dict):
        return node
    q, rest = at[0], at[1:]
    if q in node:
        return _inside(node[q], rest)
    levels = sorted(node)
    if q < levels[0] or q > levels[-1]:
        return float("nan")
    high = bisect.bisect_left(levels, q)
    x0, x1 = levels[high - 1], levels[high]
    y0, y1 = _inside(node[x0], rest), _inside(node[x1], rest)
    return y0 + (y1 - y0) * (q - x0) / (x1 - x0)


def _on_grids(fitted: Table, dims: Dims, axes: list[int]) -> FloatArray:
    """Milliseconds (n,), NaN where no grid answers."""
    power = 0.5 if fitted.kind in _ROOT else 1.0
    slices: dict[tuple[int, ...], _Node] = {}
    keys = _slice_keys(fitted.kind, fitted.dims, axes)
    for key, row, latency in zip(keys, fitted.dims, fitted.latency_ms, strict=True):
        node = slices.setdefault(key, {})
        for axis in axes[:-1]:
            assert isinstance(node, dict)
            node = node.setdefault(int(row[axis]), {})
        assert isinstance(node, dict)
        node[int(row[axes[-1]])] = float(latency) ** power
    asked = zip(_slice_keys(fitted.kind, dims, axes), dims, strict=True)
    nan = float("nan")
    found = [_inside(slices.get(key, nan), [int(row[axis]) for axis in axes]) for key, row in asked]
    answer: FloatArray = np.array(found) ** (1 / power)
    return answer


def _slice_keys(kind: str, dims: Dims, axes: list[int]) -> list[tuple[int, ...]]:
    """What tells the slices of a row apart; as many KV heads as heads is one slice, written 0."""
    rest = np.delete(dims, axes, axis=1)
    names = [name for i, name in enumerate(KINDS[kind].dims) if i not in axes]
    if "num_kv_heads" in names:
        own = names.index("num_kv_heads")
        heads = dims[:, KINDS[kind].dims.index("num_heads")]
        rest[:, own] = np.where(rest[:, own] == heads, 0, rest[:, own])
    return [tuple(key) for key in rest.tolist()]


PEERS: Mapping[str, Peer] = {
    "roofline": roofline,
    "forest": forest,
    "interpolation": interpolation,
    "process": process,
}
