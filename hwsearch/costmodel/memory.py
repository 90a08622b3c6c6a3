"""Memory of a running model in closed form: weights, caches, activations, and the largest batch that fits.

Activations: the residual stream stays while each operator runs, so the peak is the residual plus the inputs and
outputs of the largest operator. Weights are read, not produced, and caches are counted by themselves. A chunked
prefill holds activations for one chunk of every prompt. The host profile says which operators run, whether a
layer's cache exists twice while it is appended to, and what share of the device is left to the runtime and its
allocator: a tenth under a serving engine, the usual default of those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwsearch.costmodel.host import ENGINE, Host
from hwsearch.operators import Operator
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.workload import Workload

__all__ = ["USABLE_SHARE", "Memory", "head_activation_bytes", "layer_activation_bytes", "memory_of"]

USABLE_SHARE = ENGINE.usable_share


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at a workload; the caches are those of all its sequences."""

    weight_bytes: int
    cache_bytes: int
    conv_state_bytes: int
    activation_bytes: int
    max_batch: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.conv_state_bytes + self.activation_bytes


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


def head_activation_bytes(architecture: Architecture, workload: Workload) -> int:
    """Activation bytes while the LM head runs on the last token of each sequence; its logits are fp32."""
    base = architecture.base
    return (
        workload.pass_tokens * base.hidden_size * workload.element_bytes
        + workload.batch * base.vocab_size * 4
    )


def memory_of(
    architecture: Architecture, workload: Workload, *, device_bytes: int, host: Host = ENGINE
) -> Memory:
    """Memory of an architecture at a workload, and the largest batch that fits in what the host can use."""
    hidden, size = architecture.base.hidden_size, workload.element_bytes
    peak = max(
        head_activation_bytes(architecture, workload),
        *(layer_activation_bytes(layer, hidden, workload, host=host) for layer in set(architecture.layers)),
    )
    cache = architecture.cache_bytes(workload.context, size)
    conv_state = architecture.conv_state_bytes(size)
    weights = architecture.parameters * size
    # Every activation is proportional to the batch, so the largest batch follows by division.
    per_sequence = cache + conv_state + peak / workload.batch
    room = host.usable_share * device_bytes - weights
    return Memory(
        weight_bytes=weights,
        cache_bytes=cache * workload.batch,
        conv_state_bytes=conv_state * workload.batch,
        activation_bytes=peak,
        max_batch=max(0, int(room // per_sequence)),
    )
