"""The measurement record: what profilers and importers hand to stores and cost models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hwsearch.operators import KINDS, Operator

__all__ = [
    "MARKS",
    "Conditions",
    "DeviceKind",
    "DeviceSpec",
    "Environment",
    "Execution",
    "Measurement",
    "Sampled",
    "Status",
    "operator_fingerprint",
]

Status = Literal["ok", "oom", "failed", "timeout", "crashed"]
Execution = Literal["eager", "cuda-graph"]
DeviceKind = Literal["gpu", "cpu"]
MARKS = ("drift", "shared", "throttled", "unstable")  # what may speak against trusting samples


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """Ceilings of a device: what a roofline needs, and where the figures come from.

    peak_flops in FLOP/s at `dtype`, bandwidth in bytes/s, capacities in bytes. num_sms counts streaming
    multiprocessors (cores on a CPU). power_w: the power limit. link_bandwidth: bytes/s to another device of the same
    node, in one direction. Both are None where they are not known; then there is no energy and no tensor parallelism.
    kind: whose kernels run on it, and so which analytic forms and features describe them.
    """

    name: str
    device_name: str
    peak_flops: float
    bandwidth: float
    memory_bytes: int
    num_sms: int
    l2_bytes: int
    dtype: str
    source: str
    power_w: float | None = None
    link_bandwidth: float | None = None
    kind: DeviceKind = "gpu"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a measurement was taken. Two measurements are comparable when their environments are equal.

    `runtime` is the software that ran the kernels (for example "vLLM 0.24.0" or "torch 2.13.0"), part of a
    cost model's identity: the same GPU under another library version differs by up to a fifth.
    """

    device_name: str
    runtime: str
    device_uuid: str = ""
    driver: str = ""
    clocks: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under what conditions the samples of one measurement were taken; None where the machine does not tell.

    visits: how often it was come back to, with fresh inputs each time; visit_ms: the median of each. calls: per sample.
    half_width: reached half-width of the median's 95% interval, relative. reference_ms: the drift reference beside it,
    the fixed product that is timed before every visit. clock_mhz, temperature_c, power_limit_w, other_processes: of a
    GPU, when sampling ended. throttled: why its clocks were held down. waited: share of the sampling time for which
    threads of a CPU measurement were ready and had no core. marks: of MARKS. tuned:
    kernel -> what its autotuner chose.
    """

    visits: int = 1
    visit_ms: tuple[float, ...] = ()
    calls: int = 1
    half_width: float | None = None
    reference_ms: float | None = None
    waited: float | None = None
    clock_mhz: int | None = None
    temperature_c: int | None = None
    power_limit_w: float | None = None
    other_processes: int | None = None
    throttled: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    tuned: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What was timed in one environment: raw samples in milliseconds, or why there are none.

    `kernel_requested` is what was asked for and `kernel` what ran. `status` other than "ok" comes with a `reason` and
    no samples: a shape that cannot run is a row, never a dropped row. flagged: places of samples that were taken while
    the machine was disturbed, or that lie far from the others; they are kept, and the median is that of the rest.
    peak_memory_bytes: above what was there before; peak_reserved_bytes: of the allocator, on a GPU. workspace_bytes: of
    the peak, what is neither input nor state. state_bytes: kept between calls. energy_j: of one call.
    """

    dtype: str
    environment: Environment
    samples_ms: tuple[float, ...]
    kernel: str
    kernel_requested: str = ""
    execution: Execution = "eager"
    status: Status = "ok"
    reason: str = ""
    flagged: tuple[int, ...] = ()
    peak_memory_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    workspace_bytes: int | None = None
    state_bytes: int | None = None
    energy_j: float | None = None
    conditions: Conditions | None = None

    @property
    def counted_ms(self) -> tuple[float, ...]:
        """The samples that are not flagged; all where every one is."""
        out = frozenset(self.flagged)
        kept = tuple(sample for i, sample in enumerate(self.samples_ms) if i not in out)
        return kept or self.samples_ms

    @property
    def median_ms(self) -> float:
        return float(np.median(self.counted_ms))

    @property
    def p20_ms(self) -> float:
        return float(np.percentile(self.counted_ms, 20))

    @property
    def p80_ms(self) -> float:
        return float(np.percentile(self.counted_ms, 80))

    def identity(self, what: Sequence[object]) -> str:
        """The key of `what` measured here. Rows of earlier versions keep theirs: eager execution is not written."""
        parts = [
            *what,
            self.dtype,
            self.environment.device_name,
            self.environment.device_uuid,
            self.environment.runtime,
            self.kernel_requested or self.kernel,
        ]
        if self.execution != "eager":
            parts.append(self.execution)
        return json.dumps(parts, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class Measurement(Sampled):
    """One operator measured in one environment."""

    operator: Operator

    @property
    def key(self) -> str:
        """Identity of what was measured: equal for two measurements of the same thing in the same place."""
        return self.identity([self.operator.kind, list(self.operator.dims)])


def operator_fingerprint(operator: Operator) -> int:
    """A 32-bit hash of an operator, stable across processes: how a model remembers what it was fitted on."""
    assert operator.kind in KINDS
    text = f"{operator.kind}:{','.join(map(str, operator.dims))}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
