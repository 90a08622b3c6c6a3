"""Memory of a running model in closed form: weights, caches, activations, and the largest batch that fits.

Activations: the residual stream stays while each operator runs, so the peak is the residual plus the inputs and
outputs of the largest operator of a layer. Weights are read, not produced, and caches are counted by themselves. A
chunked prefill holds activations for one chunk of every prompt. Logits, one fp32 row for each sequence, have room of
their own: engines keep them beside the activations. The host profile says which operators run, whether a layer's
cache exists twice while it is appended to, and what share of the device is left to the runtime and its allocator: a
tenth under a serving engine, the usual default of those. Devices may share a model (parallel.py) and weights be
quantised (weights.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hwsearch.costmodel.host import ENGINE, Host
from hwsearch.costmodel.parallel import sharded
from hwsearch.costmodel.weights import weight_bytes
from hwsearch.operators import Operator
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.mixers import FullAttention, SlidingWindowAttention
from hwsearch.searchspace.workload import Workload

__all__ = ["USABLE_SHARE", "Memory", "layer_activation_bytes", "logit_bytes", "memory_of"]

USABLE_SHARE = ENGINE.usable_share


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at a workload; caches and states are those of all its sequences.

    weight_bytes_by_dtype: type of a weight -> bytes. reserve_bytes: left to the runtime and its allocator, not part of
    the total. usable_bytes: what the total may take.
    """

    weight_bytes_by_dtype: Mapping[str, int]
    kv_cache_bytes: int
    recurrent_state_bytes: int
    conv_state_bytes: int
    activation_bytes: int
    logit_bytes: int
    reserve_bytes: int
    usable_bytes: int
    max_batch: int

    @property
    def weight_bytes(self) -> int:
        return sum(self.weight_bytes_by_dtype.values())

    @property
    def cache_bytes(self) -> int:
        """Keys, values and recurrent states."""
        return self.kv_cache_bytes + self.recurrent_state_bytes

    @property
    def total_bytes(self) -> int:
        """What the model takes, the reserve not counted."""
        return (
            self.weight_bytes
            + self.cache_bytes
            + self.conv_state_bytes
            + self.activation_bytes
            + self.logit_bytes
        )

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.usable_bytes


def _live_elements(op: Operator) -> int:
    """Activation elements that an operator reads and writes, its weights and caches left out."""
    d = op.dims
    match op.kind:
        case "gemm":
            return d[0] * (d[1] + d[2])
        case "context_attention":
            batch, seq_len, _, heads, kv_heads, head_dim, _ = d
            return 2 * batch * seq_len * (heads + kv_heads) * head_dim
        case "generation_attention":
            batch, _, heads, kv_heads, head_dim, _ = d
            return 2 * batch * (heads + kv_heads) * head_dim
        case "delta_rule_prefill" | "delta_rule_decode":
            *tokens, k_heads, v_heads, k_dim, v_dim = d
            return math.prod(tokens) * 2 * (k_heads * k_dim + v_heads * v_dim + v_heads)
        case "linear_attention_prefill" | "linear_attention_decode":
            *tokens, k_heads, v_heads, k_dim, v_dim, gate_dim = d
            return math.prod(tokens) * (2 * k_heads * k_dim + v_heads * (2 * v_dim + gate_dim))
        case "rwkv7_prefill" | "rwkv7_decode":
            *tokens, heads, k_dim, v_dim = d
            return math.prod(tokens) * heads * (5 * k_dim + 2 * v_dim)
        case "diagonal_scan_prefill" | "diagonal_scan_decode":
            return 3 * math.prod(d)
        case "diagonal_ssm_prefill" | "diagonal_ssm_decode":
            return 2 * math.prod(d[:-1])
        case "short_conv_prefill":
            return 2 * d[0] * d[1] * d[2]
        case "short_conv_decode":
            return 2 * d[0] * d[1]
        case "elementwise":
            rows, width, reads, writes = d
            return rows * width * (reads + writes)
        case _:
            raise AssertionError(f"no activation formula for {op.kind}")


def layer_activation_bytes(
    layer: LayerSpec, hidden_size: int, workload: Workload, *, host: Host = ENGINE
) -> int:
    """Peak activation bytes while a layer runs, the residual stream included."""
    size = workload.element_bytes
    first = workload.passes[0]  # none is larger
    mixer = max((_live_elements(op) for op in host.mixer(layer, hidden_size, first)), default=0)
    ffn = max(_live_elements(op) for op in host.ffn(layer, hidden_size, first))
    largest = max(mixer * size + host.transient_bytes(layer, workload), ffn * size)
    return workload.pass_tokens * hidden_size * size + largest


def logit_bytes(architecture: Architecture, workload: Workload) -> int:
    """Bytes of the fp32 logits of the last token of each sequence."""
    return 4 * workload.batch * architecture.base.vocab_size


def memory_of(
    architecture: Architecture,
    workload: Workload,
    *,
    device_bytes: int,
    host: Host = ENGINE,
    tp: int = 1,
    weights: str | None = None,
) -> Memory:
    """Memory of an architecture at a workload, and the largest batch that fits in what the host can use.

    tp: how many devices share it; the figures are those of one, which holds all logits once they are gathered.
    weights: the format of quantised weights (weights.py), or None. InputError for one that does not exist, and where
    the architecture does not divide.
    """
    logits = logit_bytes(architecture, workload)
    architecture = sharded(architecture, tp)
    hidden, size = architecture.base.hidden_size, workload.element_bytes
    peak = max(
        layer_activation_bytes(layer, hidden, workload, host=host) for layer in set(architecture.layers)
    )
    cache = architecture.cache_bytes(workload.context, size)
    keys = sum(
        layer.mixer.cache_bytes(workload.context, size)
        for layer in architecture.layers
        if isinstance(layer.mixer, FullAttention | SlidingWindowAttention)
    )
    conv_state = architecture.conv_state_bytes(size)
    stored = weight_bytes(architecture, dtype=workload.dtype, size=size, weights=weights)
    usable = int(host.usable_share * device_bytes)
    # Every part but the weights is proportional to the batch, so the largest batch follows by division.
    per_sequence = cache + conv_state + (peak + logits) / workload.batch
    return Memory(
        weight_bytes_by_dtype=stored,
        kv_cache_bytes=keys * workload.batch,
        recurrent_state_bytes=(cache - keys) * workload.batch,
        conv_state_bytes=conv_state * workload.batch,
        activation_bytes=peak,
        logit_bytes=logits,
        reserve_bytes=device_bytes - usable,
        usable_bytes=usable,
        max_batch=max(0, int((usable - sum(stored.values())) // per_sequence)),
    )
