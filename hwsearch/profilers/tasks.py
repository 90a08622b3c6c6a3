"""From an operator to something to time: its tensors, the callable, and the memory both need.

Inputs are random, drawn from a seed. What runs is the backend asked for where hwsearch.kernels has it for the operator,
and torch otherwise; the kernel's name in a measurement says which, and which path took the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import kernel_name, resolve
from hwsearch.kernels.attention import attention, torch_path
from hwsearch.kernels.delta_rule import BACKENDS as DELTA_RULE
from hwsearch.kernels.delta_rule import delta_rule, delta_rule_step
from hwsearch.kernels.diagonal import diagonal_scan, diagonal_ssm
from hwsearch.kernels.elementwise import elementwise
from hwsearch.kernels.linear_attention import BACKENDS as LINEAR_ATTENTION
from hwsearch.kernels.linear_attention import linear_attention
from hwsearch.kernels.rwkv7 import BACKENDS as RWKV7
from hwsearch.kernels.rwkv7 import rwkv7
from hwsearch.kernels.short_conv import BACKENDS as SHORT_CONV
from hwsearch.kernels.short_conv import short_conv, short_conv_step
from hwsearch.operators import CHUNK, KINDS, STATE_BYTES, Operator, columns, dtype_bytes
from hwsearch.profilers.sampling import Runnable

__all__ = ["BACKEND", "Draw", "needed_bytes", "operator_runnable"]

BACKEND = "torch"
_DECAY = -0.05  # log decay of the delta rule's inputs: memory over some twenty tokens, far from denormals


@dataclass(frozen=True)
class Draw:
    """Draws random tensors in the dtype of activations; `backend` is the one asked for."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator
    backend: str

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype or self.dtype)

    def backend_of(self, operation: str, implementations: Mapping[str, object]) -> str:
        """The backend that runs an operation: the one asked for where the operation has it, torch elsewhere."""
        if self.backend != "auto" and self.backend not in implementations:
            return "torch"
        return resolve(
            operation,
            backend=self.backend,
            device_type=self.device.type,
            implementations=implementations,
        )


def needed_bytes(operator: Operator, dtype: str) -> int:
    """About the memory that measuring `operator` takes: its operands and the torch backend's temporaries."""
    kind, size = KINDS[operator.kind], dtype_bytes(dtype)
    least = float(kind.bytes(columns(operator.kind, [operator.dims]), size)[0])
    d = dict(zip(kind.dims, operator.dims, strict=True))
    if operator.kind == "generation_attention":
        # The whole cache is there even where the window hides most of it.
        return int(least + 2 * size * d["batch"] * d["kv_len"] * d["num_kv_heads"] * d["head_dim"])
    if operator.kind == "context_attention":
        cache = 2 * size * d["batch"] * d["past_len"] * d["num_kv_heads"] * d["head_dim"]
        # Queries are packed and outputs joined: both exist twice.
        return int(2 * least + cache)
    if operator.kind in ("delta_rule_prefill", "linear_attention_prefill", "rwkv7_prefill"):
        heads = d["num_heads"] if "num_heads" in d else d["num_v_heads"]
        rows = d["batch"] * heads * -(-d["seq_len"] // CHUNK) * CHUNK
        # Scores of a chunk, which a gate per channel keeps for every channel of a quarter as long a chunk.
        scores = CHUNK * max(6, d.get("gate_dim", 1))
        return int(least + STATE_BYTES * rows * (16 * d["head_k_dim"] + 10 * d["head_v_dim"] + scores))
    if operator.kind.startswith("diagonal"):
        # Everything is computed in fp32, and several times over.
        return int(
            least + 8 * STATE_BYTES * math.prod(operator.dims[:-1]) * max(1, d.get("state_size", 0) // 16)
        )
    if operator.kind == "elementwise":
        return int(least + size * d["rows"] * d["width"])
    # Joined inputs of a convolution, a decayed state.
    return int(least if operator.kind == "gemm" else 3 * least)


def operator_runnable(operator: Operator, draw: Draw) -> Runnable:
    """One call of an operator on random inputs. InputError for a kind that no kernel here computes."""
    if operator.kind not in _BUILDERS:
        raise InputError(f"{operator.kind} is not measured: there is no {BACKEND} kernel for it")
    return _BUILDERS[operator.kind](dict(zip(KINDS[operator.kind].dims, operator.dims, strict=True)), draw)


def _once(function: Callable[[], object], kernel: str) -> Runnable:
    return Runnable(function=function, kernel=lambda: kernel)


Dims = Mapping[str, int]


def _gemm(d: Dims, draw: Draw) -> Runnable:
    x, weight = draw(d["m"], d["k"]), draw(d["n"], d["k"])
    return _once(lambda: torch.nn.functional.linear(x, weight), "torch.linear")


def _context_attention(d: Dims, draw: Draw) -> Runnable:
    q = draw(d["batch"], d["num_heads"], d["seq_len"], d["head_dim"])
    k, v = (
        draw(d["batch"], d["num_kv_heads"], d["past_len"] + d["seq_len"], d["head_dim"]) for _ in range(2)
    )
    window = d["window"]
    path = torch_path(queries=q.shape[2], keys=k.shape[2], window=window)
    return _once(lambda: attention(q, k, v, window=window, backend=BACKEND), f"torch.sdpa_{path}")


def _generation_attention(d: Dims, draw: Draw) -> Runnable:
    q = draw(d["batch"], d["num_heads"], 1, d["head_dim"])
    k, v = (draw(d["batch"], d["num_kv_heads"], d["kv_len"], d["head_dim"]) for _ in range(2))
    window = d["window"]
    return _once(lambda: attention(q, k, v, window=window, backend=BACKEND), "torch.sdpa_packed")


def _delta_tensors(
    d: Dims, draw: Draw, *tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, g, beta with the leading dimensions `tokens`, and the state."""
    q, k = (draw(*tokens, d["num_k_heads"], d["head_k_dim"]) for _ in range(2))
    v = draw(*tokens, d["num_v_heads"], d["head_v_dim"])
    g = _DECAY * draw(*tokens, d["num_v_heads"]).abs()
    beta = draw(*tokens, d["num_v_heads"]).sigmoid()
    state = draw(d["batch"], d["num_v_heads"], d["head_k_dim"], d["head_v_dim"], dtype=torch.float32)
    return q, k, v, g, beta, state


def _delta_rule_prefill(d: Dims, draw: Draw) -> Runnable:
    q, k, v, g, beta, state = _delta_tensors(d, draw, d["batch"], d["seq_len"])
    backend = draw.backend_of("delta rule", DELTA_RULE)
    return _once(
        lambda: delta_rule(q, k, v, g, beta, state_BHKV=state, backend=backend),
        f"{backend}.delta_rule_chunked",
    )


def _delta_rule_decode(d: Dims, draw: Draw) -> Runnable:
    q, k, v, g, beta, state = _delta_tensors(d, draw, d["batch"])
    return _once(lambda: delta_rule_step(q, k, v, g, beta, state), "torch.delta_rule_step")


def _short_conv_prefill(d: Dims, draw: Draw) -> Runnable:
    x, weight = draw(d["batch"], d["seq_len"], d["channels"]), draw(d["channels"], d["width"])
    backend = draw.backend_of("short convolution", SHORT_CONV)
    return _once(lambda: short_conv(x, weight, backend=backend), f"{backend}.short_conv")


def _short_conv_decode(d: Dims, draw: Draw) -> Runnable:
    x, weight = draw(d["batch"], d["channels"]), draw(d["channels"], d["width"])
    state = draw(d["batch"], d["width"] - 1, d["channels"])
    return _once(lambda: short_conv_step(x, weight, state), "torch.short_conv_step")


def _elementwise(d: Dims, draw: Draw) -> Runnable:
    inputs = [draw(d["rows"], d["width"]) for _ in range(d["reads"])]
    writes = d["writes"]
    return _once(lambda: elementwise(inputs, writes=writes), "torch.elementwise")


def _linear_attention(d: Dims, draw: Draw, length: int) -> Runnable:
    tokens = (d["batch"], length)
    q, k = (draw(*tokens, d["num_k_heads"], d["head_k_dim"]) for _ in range(2))
    v = draw(*tokens, d["num_v_heads"], d["head_v_dim"])
    g = _DECAY * draw(*tokens, d["num_v_heads"], d["gate_dim"]).abs()
    state = draw(d["batch"], d["num_v_heads"], d["head_k_dim"], d["head_v_dim"], dtype=torch.float32)
    backend = draw.backend_of("linear attention", LINEAR_ATTENTION)
    return _once(
        lambda: linear_attention(q, k, v, g, scale=1.0, state_BHKV=state, backend=backend),
        kernel_name("linear_attention", backend=backend, length=length),
    )


def _rwkv7(d: Dims, draw: Draw, length: int) -> Runnable:
    keys = (d["batch"], length, d["num_heads"], d["head_k_dim"])
    r, k, a, b = (draw(*keys) / d["head_k_dim"] for _ in range(4))
    w = _DECAY * draw(*keys).abs()
    v = draw(*keys[:3], d["head_v_dim"])
    state = draw(d["batch"], *keys[2:], d["head_v_dim"], dtype=torch.float32)
    backend = draw.backend_of("rwkv7", RWKV7)
    return _once(
        lambda: rwkv7(r, w, k, v, a, b, state_BHKV=state, backend=backend),
        kernel_name("rwkv7", backend=backend, length=length),
    )


def _diagonal_scan(d: Dims, draw: Draw, length: int) -> Runnable:
    x, a = (draw(d["batch"], length, d["channels"]) for _ in range(2))
    a, state = a.sigmoid(), draw(d["batch"], d["channels"], dtype=torch.float32)
    return _once(
        lambda: diagonal_scan(a, x, state_BD=state, backend=BACKEND),
        kernel_name("diagonal_scan", backend=BACKEND, length=length),
    )


def _diagonal_ssm(d: Dims, draw: Draw, length: int) -> Runnable:
    x = draw(d["batch"], length, d["channels"])
    states = (d["channels"], d["state_size"])
    g, b, c = (draw(*states, dtype=torch.float32) for _ in range(3))
    g, state = _DECAY * g.abs(), draw(d["batch"], *states, dtype=torch.float32)
    return _once(
        lambda: diagonal_ssm(x, g, b, c, state_BDN=state, backend=BACKEND),
        kernel_name("diagonal_ssm", backend=BACKEND, length=length),
    )


def _phases(
    family: str, build: Callable[[Dims, Draw, int], Runnable]
) -> dict[str, Callable[[Dims, Draw], Runnable]]:
    """The builders of a family's two kinds, which differ in the length alone."""
    return {
        f"{family}_prefill": lambda d, draw: build(d, draw, d["seq_len"]),
        f"{family}_decode": lambda d, draw: build(d, draw, 1),
    }


_BUILDERS: Mapping[str, Callable[[Dims, Draw], Runnable]] = {
    "gemm": _gemm,
    "context_attention": _context_attention,
    "generation_attention": _generation_attention,
    "delta_rule_prefill": _delta_rule_prefill,
    "delta_rule_decode": _delta_rule_decode,
    "short_conv_prefill": _short_conv_prefill,
    "short_conv_decode": _short_conv_decode,
    "elementwise": _elementwise,
    **_phases("linear_attention", _linear_attention),
    **_phases("rwkv7", _rwkv7),
    **_phases("diagonal_scan", _diagonal_scan),
    **_phases("diagonal_ssm", _diagonal_ssm),
}
