"""The report on one architecture: whole-model figures and the table of layers, for people and as JSON."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console

from hwsearch.cli.output import milliseconds, size, table
from hwsearch.costmodel.attribution import Share, joined
from hwsearch.costmodel.cost import Latency, LayerCost, ModelCost
from hwsearch.costmodel.energy import energy_j
from hwsearch.costmodel.memory import Memory
from hwsearch.costmodel.model import MEASURED, PROVENANCES, CostModel

__all__ = ["model_cost_json", "print_model_cost", "setting", "setting_json"]

_MEASURED = PROVENANCES[MEASURED]


def setting(cost: ModelCost, model: CostModel) -> str:
    """What a prediction is for, on one line: devices, runtime, host and format of the weights."""
    devices = model.device.name if cost.tp == 1 else f"{cost.tp} {model.device.name}"
    weights = "" if cost.weights is None else f", {cost.weights} weights"
    return f"{devices} ({model.runtime}, host {cost.host.name}{weights})"


def setting_json(cost: ModelCost) -> dict[str, Any]:
    """How the architecture is run, as public keys."""
    return {"host": cost.host.name, "tp": cost.tp, "weights": cost.weights}


def model_cost_json(cost: ModelCost, model: CostModel) -> dict[str, Any]:
    """The public keys of a prediction; docs/json.md describes them."""
    a, w = cost.architecture, cost.workload
    return {
        "architecture": a.name,
        "device": model.device.name,
        "runtime": model.runtime,
        **setting_json(cost),
        "workload": str(w),
        "dtype": w.dtype,
        "parameters": a.parameters,
        "cache_bytes_per_sequence": a.cache_bytes(w.context, w.element_bytes),
        "conv_state_bytes_per_sequence": a.conv_state_bytes(w.element_bytes),
        "memory_bytes": cost.memory.total_bytes,
        "memory": {
            "weight_bytes": cost.memory.weight_bytes,
            "kv_cache_bytes": cost.memory.kv_cache_bytes,
            "recurrent_state_bytes": cost.memory.recurrent_state_bytes,
            "conv_state_bytes": cost.memory.conv_state_bytes,
            "activation_bytes": cost.memory.activation_bytes,
            "logit_bytes": cost.memory.logit_bytes,
        },
        "weight_bytes_by_dtype": dict(cost.memory.weight_bytes_by_dtype),
        "reserve_bytes": cost.memory.reserve_bytes,
        "fits": cost.memory.fits,
        "max_batch": cost.memory.max_batch,
        "latency_ms": cost.latency.median_ms,
        "latency_ms_low": cost.latency.low_ms,
        "latency_ms_high": cost.latency.high_ms,
        "predicted_from": cost.predicted_from,
        "latency_ms_from_operators": cost.operators_ms,
        "time_to_first_token_ms": cost.time_to_first_token_ms,
        "throughput_tokens_per_s": cost.throughput_tokens_per_s,
        "latency_ms_by_operator": cost.latency.by_operator,
        "latency_ms_by_provenance": cost.latency.by_provenance,
        "host_ms": cost.host_ms,
        "energy_j_analytic": energy_j(model.device, latency_ms=cost.latency.median_ms, devices=cost.tp),
        **_whole_json(cost.latency),
        "attribution": {kind: _share_json(share, cost) for kind, share in cost.latency.shares.items()},
        "embedding_ms": cost.embedding_ms,
        "head_ms": cost.head_ms,
        "layers": [_layer_json(layer, cost) for layer in cost.layers],
        "notes": list(cost.notes),
    }


def _layer_json(layer: LayerCost, cost: ModelCost) -> dict[str, Any]:
    mixer, w = layer.layer.mixer, cost.workload
    return {
        "index": layer.index,
        "mixer": mixer.model_dump(mode="json"),
        "ffn": layer.layer.ffn.model_dump(mode="json"),
        "latency_ms": layer.latency.median_ms,
        "latency_ms_low": layer.latency.low_ms,
        "latency_ms_high": layer.latency.high_ms,
        "mixer_ms": layer.mixer_ms,
        "ffn_ms": layer.ffn_ms,
        "cache_bytes_per_sequence": mixer.cache_bytes(w.context, w.element_bytes),
        "latency_ms_by_operator": layer.latency.by_operator,
        "latency_ms_by_provenance": layer.latency.by_provenance,
        **_whole_json(layer.latency),
    }


def _whole_json(latency: Latency) -> dict[str, Any]:
    whole = joined(latency.shares.values())
    return {
        "kernels": whole.kernels,
        "bound": whole.bound,
        "roofline_ms": whole.roofline_ms,
        "roofline_share": whole.roofline_share,
    }


def _share_json(share: Share, cost: ModelCost) -> dict[str, Any]:
    return {
        "kernels": share.kernels,
        "latency_ms": share.latency_ms,
        "latency_share": share.latency_ms / cost.operators_ms,
        "bound": share.bound,
        "latency_ms_by_bound": share.ms_by_bound,
        "roofline_ms": share.roofline_ms,
        "roofline_share": share.roofline_share,
    }


def print_model_cost(cost: ModelCost, model: CostModel, *, to: Console) -> None:
    """The table of layers, equal neighbours on one line, then the whole model."""
    a, w = cost.architecture, cost.workload
    shown = table(
        f"{a.name} on {setting(cost, model)}, {w}",
        "layers",
        "mixer",
        "mixer ms",
        "layer ms",
        "in data",
        "cache",
        left=2,
    )
    for _, run in groupby(cost.layers, key=lambda layer: layer.layer):
        layers = list(run)
        first, last = layers[0], layers[-1]
        mixer = first.layer.mixer
        shown.add_row(
            str(first.index) if first is last else f"{first.index}-{last.index}",
            f"{mixer.kind} {mixer.label}",
            milliseconds(first.mixer_ms),
            milliseconds(first.latency.median_ms),
            f"{first.latency.by_provenance.get(_MEASURED, 0.0) / first.latency.median_ms:.0%}",
            size(mixer.cache_bytes(w.context, w.element_bytes)),
        )
    to.print(shown)
    _print_attribution(cost, to=to)
    m, t = cost.memory, cost.latency
    total = t.median_ms
    each = " on each device" if cost.tp > 1 else ""
    what = "whole prefill: time to first token" if cost.time_to_first_token_ms else "one decode step"
    host = f"{cost.host.label}" + (f"; {milliseconds(cost.host_ms)} ms" if cost.host_ms else "")
    if cost.predicted_from == "blocks":
        host = f"in the latency: as it was measured; in times by operator: {host}"
    lines = [
        ("latency", f"{milliseconds(total, t.low_ms, t.high_ms)} ms, 90% interval; predicted, {what}"),
        ("throughput", f"{cost.throughput_tokens_per_s:,.0f} tokens/s"),
        ("host", host),
        (
            "time by source",
            ", ".join(f"{source} {ms / cost.operators_ms:.0%}" for source, ms in t.by_provenance.items()),
        ),
        ("embedding, LM head", f"{milliseconds(cost.embedding_ms)} ms, {milliseconds(cost.head_ms)} ms"),
        ("parameters", f"{a.parameters / 1e9:.3f} B"),
        ("cache per sequence", size(a.cache_bytes(w.context, w.element_bytes))),
        ("conv state per seq.", size(a.conv_state_bytes(w.element_bytes))),
        ("memory", f"{size(m.total_bytes)}{each}: {_memory_parts(m)}"),
        (
            "reserve",
            f"{size(m.reserve_bytes)} of {size(model.device.memory_bytes)} for runtime and allocator",
        ),
        ("largest batch", f"{m.max_batch}, in {size(m.usable_bytes)}{each}"),
    ]
    joules = energy_j(model.device, latency_ms=total, devices=cost.tp)
    if joules is not None:
        per_token = f"{joules / w.tokens:.3g} J per token"
        lines.append(("energy", f"at most {joules:.3g} J, {per_token}; analytic, from the power limit"))
    for name, text in lines:
        to.print(f"{name:<20}{text}", markup=False, soft_wrap=True)
    if not m.fits:
        to.print(
            f"does not fit: {cost.host.name} can use {size(m.usable_bytes)} of {model.device.name}",
            style="bold",
        )
    for text in cost.notes:
        to.print(f"note: {text}", markup=False, style="dim", soft_wrap=True)


def _memory_parts(memory: Memory) -> str:
    weights = [(f"weights ({dtype})", held) for dtype, held in memory.weight_bytes_by_dtype.items()]
    parts = [
        *weights,
        ("KV cache", memory.kv_cache_bytes),
        ("recurrent states", memory.recurrent_state_bytes),
        ("conv states", memory.conv_state_bytes),
        ("activations", memory.activation_bytes),
        ("logits", memory.logit_bytes),
    ]
    return ", ".join(f"{name} {size(held)}" for name, held in parts if held)


def _print_attribution(cost: ModelCost, *, to: Console) -> None:
    """Where the time goes, what bounds it, and how much of the roofline is reached."""
    total = cost.operators_ms
    shown = table("where the time goes", "operator", "kernels", "ms", "share", "bound by", "of roofline")
    for kind, share in sorted(cost.latency.shares.items(), key=lambda item: -item[1].latency_ms):
        bounds = sorted(share.ms_by_bound.items(), key=lambda item: -item[1])
        shown.add_row(
            kind,
            str(share.kernels) if share.kernels else "",
            milliseconds(share.latency_ms),
            f"{share.latency_ms / total:.0%}",
            ", ".join(f"{bound} {ms / share.latency_ms:.0%}" for bound, ms in bounds),
            f"{share.roofline_share:.0%}" if share.roofline_ms else "",
        )
    to.print(shown)
