"""The measurement record: what profilers and importers hand to stores and cost models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hwsearch.operators import KINDS, Operator

__all__ = ["DeviceSpec", "Environment", "Measurement", "Status", "operator_fingerprint"]

Status = Literal["ok", "oom", "failed"]


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """Ceilings of a device: what a roofline needs, and where the figures come from.

    peak_flops in FLOP/s at `dtype`, bandwidth in bytes/s, capacities in bytes. num_sms counts streaming
    multiprocessors (cores on a CPU). power_w: the power limit. link_bandwidth: bytes/s to another device of the same
    node, in one direction. Both are None where they are not known; then there is no energy and no tensor parallelism.
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
class Measurement:
    """One operator measured in one environment: raw samples in milliseconds, or why there are none.

    `kernel_requested` is what was asked for and `kernel` what ran. `status` other than "ok" comes with a
    `reason` and no samples: a shape that cannot run is a row, never a dropped row.
    """

    operator: Operator
    dtype: str
    environment: Environment
    samples_ms: tuple[float, ...]
    kernel: str
    kernel_requested: str = ""
    status: Status = "ok"
    reason: str = ""
    peak_memory_bytes: int | None = None
    energy_j: float | None = None

    @property
    def median_ms(self) -> float:
        return float(np.median(self.samples_ms))

    @property
    def p20_ms(self) -> float:
        return float(np.percentile(self.samples_ms, 20))

    @property
    def p80_ms(self) -> float:
        return float(np.percentile(self.samples_ms, 80))

    @property
    def key(self) -> str:
        """Identity of what was measured: equal for two measurements of the same thing in the same place."""
        return json.dumps(
            [
                self.operator.kind,
                list(self.operator.dims),
                self.dtype,
                self.environment.device_name,
                self.environment.device_uuid,
                self.environment.runtime,
                self.kernel_requested or self.kernel,
            ],
            separators=(",", ":"),
        )


def operator_fingerprint(operator: Operator) -> int:
    """A 32-bit hash of an operator, stable across processes: how a model remembers what it was fitted on."""
    assert operator.kind in KINDS
    text = f"{operator.kind}:{','.join(map(str, operator.dims))}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
