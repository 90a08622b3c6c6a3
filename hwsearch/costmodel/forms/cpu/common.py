"""What the forms of a CPU's kernels share: the call, the caches of a core, counts of work that add up.

latency = call + sum over parts of work x cost. A library call runs its parts one after another on the same cores, so
that times add where a GPU overlaps them. Rates are shares of the measured ceilings or multiples of them (private caches
are many times as fast as a copy of memory), everything else is a cost per item of work. What fits into the private
caches of a core is found there by the next call of a measuring loop. Method: the analytic part of the execution-cache-
memory model (Stengel, Treibig, Hager and Wellein, arXiv 1410.5010), its inputs fitted instead of looked up.
"""

from __future__ import annotations

from hwsearch.costmodel.forms.common import Constant, Constants, FloatArray
from hwsearch.records import DeviceSpec

__all__ = ["FAR", "NEAR", "PRIVATE", "call_seconds", "moved_seconds", "outside"]

_EDGE = 4.0  # how sharply caches begin to spill, in powers of the working set
_MIB = 2.0**20

PRIVATE = Constant("private_mib", 1.5, 0.05, 64.0)
NEAR = Constant("near", 8.0, 0.3, 200.0)
FAR = Constant("far", 1.2, 0.05, 20.0)


def call_seconds(k: Constants) -> float:
    """Seconds before any work: Python, dispatch, allocation."""
    return k["call_us"] * 1e-6


def outside(working_set: FloatArray, k: Constants) -> FloatArray:
    """Share (n,) of a working set in bytes (n,) that the private caches of a core cannot keep."""
    share: FloatArray = 1 / (1 + (working_set / (k["private_mib"] * _MIB)) ** -_EDGE)
    return share


def moved_seconds(moved: FloatArray, working_set: FloatArray, device: DeviceSpec, k: Constants) -> FloatArray:
    """Seconds (n,) to move bytes (n,): `near` times a copy's bandwidth within the private caches, `far` outside."""
    share = outside(working_set, k)
    return moved * ((1 - share) / k["near"] + share / k["far"]) / device.bandwidth
