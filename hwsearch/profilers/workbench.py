"""From an operator or a block to something to time: its tensors, the callable, and the memory both need.

Inputs are random, drawn from a seed. What runs is the backend asked for where hwsearch.kernels has it for the operator,
and torch otherwise; the kernel's name in a measurement says which, and which path took the shape. Needed memory is
estimated from the shapes before anything is allocated, because a machine that swaps, or whose kernel kills the process,
records nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hwsearch.errors import DataError, InputError
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
from hwsearch.profilers.environment import available_bytes, cache_bytes
from hwsearch.profilers.monitor import Monitor
from hwsearch.profilers.sampling import Outcome, Reference, Sampler
from hwsearch.profilers.timing import Timer, TimingRule
from hwsearch.records import Environment, Execution, Measurement, Status
from hwsearch.searchspace.block import Block, BlockMeasurement

if TYPE_CHECKING:
    from hwsearch.models.mixers.base import Backend
    from hwsearch.profilers.stack import Runnable

__all__ = ["BACKEND", "Workbench", "needed_bytes"]

BACKEND = "torch"
_L2_TIMES = 8
_STACK_SHARE = 0.4  # of available memory that a stack's weights and states may take
_MOST_FLUSHED = 1 << 29  # bytes read between two calls of a frame
_SHARE = 0.9  # of available memory that an operator may need: libraries have workspaces of their own
_DECAY = -0.05  # log decay of the delta rule's inputs: memory over some twenty tokens, far from denormals


@dataclass(frozen=True)
class Task:
    """`function` does the work once; `kernel` names what it runs."""

    function: Callable[[], object]
    kernel: str
    copies: int = 1


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


Dims = Mapping[str, int]


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


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """Measures operators and blocks on one device. `seed` is that of the inputs.

    backend: of the kernels. monitor and reference: None where nobody watches the machine.
    """

    device: torch.device
    dtype: str
    environment: Environment
    timer: Timer
    rule: TimingRule
    seed: int
    backend: str = BACKEND
    execution: Execution = "eager"
    monitor: Monitor | None = None
    reference: Reference | None = None
    energy: bool = False

    def pending(self, operator: Operator) -> Measurement:
        """The measurement of `operator` without its outcome: its key is already the one it will have."""
        return self._row(operator, status="failed", reason="not measured yet")

    def measure(self, operator: Operator, *, visit: int = 0) -> Measurement:
        """Measure one operator; a shape that cannot run is a row whose status and reason say so.

        visit: how often it was measured before in this run; every visit draws other inputs.
        """
        refused = self._too_large(needed_bytes(operator, self.dtype))
        if refused:
            return self._row(operator, status="oom", reason=refused)
        try:
            return self._measure(operator, visit)
        except (InputError, RuntimeError, MemoryError) as error:
            status, reason = _failure(error)
            return self._row(operator, status=status, reason=reason)

    def measure_block(self, block: Block, *, rotate_bytes: int, visit: int = 0) -> BlockMeasurement:
        """Measure one block as a stack that goes through `rotate_bytes` of memory; as `measure` otherwise.

        Raises InputError for a workload in another dtype than the workbench's.
        """
        from hwsearch.profilers.stack import block_runnable, stack_height

        if block.workload.dtype != self.dtype:
            raise InputError(
                f"the block {block} is in {block.workload.dtype} and the profile in {self.dtype}: use one dtype"
            )
        available = available_bytes(self.device)
        if self.device.type == "cuda":
            # What lies behind several times the L2 cache is as far away as it gets.
            rotate_bytes = min(rotate_bytes, _L2_TIMES * (cache_bytes(self.device) or rotate_bytes))
        refused = self._too_large(_block_bytes(block), available)
        if refused:
            return self._block_row(block, status="oom", reason=refused)
        height = stack_height(block, rotate_bytes=rotate_bytes, most_bytes=_STACK_SHARE * available)
        try:
            outcome = self._sampler.visit(
                lambda: block_runnable(
                    block,
                    device=self.device,
                    copies=height,
                    seed=self.seed + visit,
                    backend=cast("Backend", self.backend),
                ),
                flush_bytes=min(rotate_bytes, _MOST_FLUSHED) if not block.layers else 0,
            )
        except (InputError, RuntimeError, MemoryError) as error:
            status, reason = _failure(error)
            return self._block_row(block, status=status, reason=reason)
        return self._block_row(block, kernel=outcome.built.kernel(), outcome=outcome)

    def release(self) -> None:
        """Give memory back between operators; DataError where a failed operator has broken the CUDA context."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DataError(
                f"the last operator left {self.device} unusable in this process ({error}); what was measured is "
                "stored: run the same command again to go on"
            ) from error

    @cached_property
    def _sampler(self) -> Sampler:
        return Sampler(
            self.device,
            timer=self.timer,
            rule=self.rule,
            execution=self.execution,
            monitor=self.monitor,
            reference=self.reference,
            energy=self.energy,
        )

    def _too_large(self, needed: int, available: int | None = None) -> str:
        """Why something that needs so many bytes cannot be measured; empty where it can."""
        available = available_bytes(self.device) if available is None else available
        if needed <= _SHARE * available:
            return ""
        return f"needs about {needed / 2**30:.2f} GiB, {available / 2**30:.2f} GiB are available"

    def _measure(self, operator: Operator, visit: int) -> Measurement:
        if operator.kind not in _BUILDERS:
            raise InputError(f"{operator.kind} is not measured: there is no {BACKEND} kernel for it")
        dims = dict(zip(KINDS[operator.kind].dims, operator.dims, strict=True))
        outcome = self._sampler.visit(lambda: _BUILDERS[operator.kind](dims, self._draw(visit)))
        return self._row(operator, kernel=outcome.built.kernel, outcome=outcome)

    def _row(
        self,
        operator: Operator,
        *,
        status: Status = "ok",
        reason: str = "",
        kernel: str = "",
        outcome: Outcome[Task] | None = None,
    ) -> Measurement:
        return Measurement(
            operator=operator,
            dtype=self.dtype,
            environment=self.environment,
            kernel=kernel,
            kernel_requested=self.backend,
            execution=self.execution,
            status=status,
            reason=reason,
            **_found(outcome),
        )

    def _block_row(
        self,
        block: Block,
        *,
        status: Status = "ok",
        reason: str = "",
        kernel: str = "",
        outcome: Outcome[Runnable] | None = None,
    ) -> BlockMeasurement:
        return BlockMeasurement(
            block=block,
            dtype=self.dtype,
            environment=self.environment,
            kernel=kernel,
            kernel_requested=self.backend,
            execution=self.execution,
            status=status,
            reason=reason,
            state_bytes=outcome.built.state_bytes if outcome else None,
            **_found(outcome),
        )

    def pending_block(self, block: Block) -> BlockMeasurement:
        """As `pending`, of a block."""
        return self._block_row(block, status="failed", reason="not measured yet")

    def _draw(self, visit: int) -> Draw:
        generator = torch.Generator(device=self.device).manual_seed(self.seed + visit)
        return Draw(self.device, getattr(torch, self.dtype), generator, self.backend)


def _found(outcome: Outcome[Task] | Outcome[Runnable] | None) -> dict[str, Any]:
    """The fields of a row that sampling decides."""
    if outcome is None:
        return {"samples_ms": ()}
    names = (
        "samples_ms",
        "flagged",
        "conditions",
        "peak_memory_bytes",
        "peak_reserved_bytes",
        "workspace_bytes",
    )
    return {name: getattr(outcome, name) for name in (*names, "energy_j")}


def _failure(error: Exception) -> tuple[Status, str]:
    """Status and reason of a row that an error ended."""
    # torch.OutOfMemoryError is CUDA's only; the CPU allocator raises a RuntimeError that says so.
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    out_of_memory = out_of_memory or "can't allocate memory" in str(error)
    return "oom" if out_of_memory else "failed", (str(error).splitlines() or [type(error).__name__])[0]


def _block_bytes(block: Block) -> int:
    """About the memory that one copy of a block takes: weights, the state twice, activations of a layer."""
    workload = block.workload
    width = block.hidden_size + max((layer.ffn.intermediate_size for layer in block.layers), default=0)
    activations = 6 * workload.element_bytes * workload.pass_tokens * width
    return block.weight_bytes + 2 * block.state_bytes + activations


def _gemm(d: Dims, draw: Draw) -> Task:
    x, weight = draw(d["m"], d["k"]), draw(d["n"], d["k"])
    return Task(lambda: torch.nn.functional.linear(x, weight), "torch.linear")


def _context_attention(d: Dims, draw: Draw) -> Task:
    q = draw(d["batch"], d["num_heads"], d["seq_len"], d["head_dim"])
    k, v = (
        draw(d["batch"], d["num_kv_heads"], d["past_len"] + d["seq_len"], d["head_dim"]) for _ in range(2)
    )
    window = d["window"]
    path = torch_path(queries=q.shape[2], keys=k.shape[2], window=window)
    return Task(lambda: attention(q, k, v, window=window, backend=BACKEND), f"torch.sdpa_{path}")


def _generation_attention(d: Dims, draw: Draw) -> Task:
    q = draw(d["batch"], d["num_heads"], 1, d["head_dim"])
    k, v = (draw(d["batch"], d["num_kv_heads"], d["kv_len"], d["head_dim"]) for _ in range(2))
    window = d["window"]
    return Task(lambda: attention(q, k, v, window=window, backend=BACKEND), "torch.sdpa_packed")


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


def _delta_rule_prefill(d: Dims, draw: Draw) -> Task:
    q, k, v, g, beta, state = _delta_tensors(d, draw, d["batch"], d["seq_len"])
    backend = draw.backend_of("delta rule", DELTA_RULE)
    return Task(
        lambda: delta_rule(q, k, v, g, beta, state_BHKV=state, backend=backend),
        f"{backend}.delta_rule_chunked",
    )


def _delta_rule_decode(d: Dims, draw: Draw) -> Task:
    q, k, v, g, beta, state = _delta_tensors(d, draw, d["batch"])
    return Task(lambda: delta_rule_step(q, k, v, g, beta, state), "torch.delta_rule_step")


def _short_conv_prefill(d: Dims, draw: Draw) -> Task:
    x, weight = draw(d["batch"], d["seq_len"], d["channels"]), draw(d["channels"], d["width"])
    backend = draw.backend_of("short convolution", SHORT_CONV)
    return Task(lambda: short_conv(x, weight, backend=backend), f"{backend}.conv1d")


def _short_conv_decode(d: Dims, draw: Draw) -> Task:
    x, weight = draw(d["batch"], d["channels"]), draw(d["channels"], d["width"])
    state = draw(d["batch"], d["width"] - 1, d["channels"])
    return Task(lambda: short_conv_step(x, weight, state), "torch.short_conv_step")


def _elementwise(d: Dims, draw: Draw) -> Task:
    inputs = [draw(d["rows"], d["width"]) for _ in range(d["reads"])]
    writes = d["writes"]
    return Task(lambda: elementwise(inputs, writes=writes), "torch.elementwise")


def _linear_attention(d: Dims, draw: Draw, length: int) -> Task:
    tokens = (d["batch"], length)
    q, k = (draw(*tokens, d["num_k_heads"], d["head_k_dim"]) for _ in range(2))
    v = draw(*tokens, d["num_v_heads"], d["head_v_dim"])
    g = _DECAY * draw(*tokens, d["num_v_heads"], d["gate_dim"]).abs()
    state = draw(d["batch"], d["num_v_heads"], d["head_k_dim"], d["head_v_dim"], dtype=torch.float32)
    backend = draw.backend_of("linear attention", LINEAR_ATTENTION)
    return Task(
        lambda: linear_attention(q, k, v, g, scale=1.0, state_BHKV=state, backend=backend),
        kernel_name("linear_attention", backend=backend, length=length),
    )


def _rwkv7(d: Dims, draw: Draw, length: int) -> Task:
    keys = (d["batch"], length, d["num_heads"], d["head_k_dim"])
    r, k, a, b = (draw(*keys) / d["head_k_dim"] for _ in range(4))
    w = _DECAY * draw(*keys).abs()
    v = draw(*keys[:3], d["head_v_dim"])
    state = draw(d["batch"], *keys[2:], d["head_v_dim"], dtype=torch.float32)
    backend = draw.backend_of("rwkv7", RWKV7)
    return Task(
        lambda: rwkv7(r, w, k, v, a, b, state_BHKV=state, backend=backend),
        kernel_name("rwkv7", backend=backend, length=length),
    )


def _diagonal_scan(d: Dims, draw: Draw, length: int) -> Task:
    x, a = (draw(d["batch"], length, d["channels"]) for _ in range(2))
    a, state = a.sigmoid(), draw(d["batch"], d["channels"], dtype=torch.float32)
    return Task(
        lambda: diagonal_scan(a, x, state_BD=state, backend=BACKEND),
        kernel_name("diagonal_scan", backend=BACKEND, length=length),
    )


def _diagonal_ssm(d: Dims, draw: Draw, length: int) -> Task:
    x = draw(d["batch"], length, d["channels"])
    states = (d["channels"], d["state_size"])
    g, b, c = (draw(*states, dtype=torch.float32) for _ in range(3))
    g, state = _DECAY * g.abs(), draw(d["batch"], *states, dtype=torch.float32)
    return Task(
        lambda: diagonal_ssm(x, g, b, c, state_BDN=state, backend=BACKEND),
        kernel_name("diagonal_ssm", backend=BACKEND, length=length),
    )


def _phases(family: str, build: Callable[[Dims, Draw, int], Task]) -> dict[str, Callable[[Dims, Draw], Task]]:
    """The builders of a family's two kinds, which differ in the length alone."""
    return {
        f"{family}_prefill": lambda d, draw: build(d, draw, d["seq_len"]),
        f"{family}_decode": lambda d, draw: build(d, draw, 1),
    }


_BUILDERS: Mapping[str, Callable[[Dims, Draw], Task]] = {
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
