"""Whole models on the machine at hand: the latency of a workload, and the largest batch that runs.

The model is hwsearch.models.hybrid with random weights; a decode step finds a cache filled to the workload's context.
The largest batch is found by running: doubled until it fails or passes the cap, then bisected. On a CPU memory is what
the process's resident memory grows to at its peak.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from hwsearch.errors import DataError, InputError
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.models.mixers.base import Backend
from hwsearch.profilers.failure import failure_of, running_errors
from hwsearch.profilers.monitor import monitor_of
from hwsearch.profilers.probe import timer_for
from hwsearch.profilers.resident import peak_resident
from hwsearch.profilers.sampling import Outcome, Reference, Sampler
from hwsearch.profilers.stack import block_runnable, model_runnable, random_model
from hwsearch.profilers.timing import TimingRule
from hwsearch.records import Execution
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.block import Block
from hwsearch.searchspace.workload import Workload

__all__ = ["WholeBench", "WholeModel", "WholeTime"]

_MAX_SECONDS = 2.0  # of samples, per visit: a whole prefill is slower than a block's
_CLOSE = 0.03  # bisecting the batch ends when the bounds are this close
_MOST_BATCH = 1 << 20


@dataclass(frozen=True, kw_only=True)
class WholeTime:
    """One visit to a workload: milliseconds, the memory it took beside the weights, and the drift reference then."""

    samples_ms: tuple[float, ...]
    median_ms: float
    peak_memory_bytes: int | None
    state_bytes: int
    kernel: str
    marks: tuple[str, ...]
    reference_ms: float | None


class WholeModel:
    """A model with random weights, ready to be measured; `weight_bytes` as they lie in memory."""

    def __init__(
        self, model: HybridForCausalLM, *, name: str, sampler: Sampler, device: torch.device, seed: int
    ) -> None:
        self._name = name
        self._model = model
        self._sampler = sampler
        self._device = device
        self._seed = seed

    @property
    def weight_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self._model.parameters())

    def visit(self, workload: Workload) -> WholeTime:
        """Sample a workload once. DataError where it cannot run, for want of memory for one."""
        try:
            outcome = self._sampler.visit(
                lambda: model_runnable(self._model, workload, device=self._device, seed=self._seed)
            )
        except running_errors() as error:
            raise self._cannot_run(workload, error) from error
        return _whole_time(outcome)

    def largest_batch(
        self,
        workload: Workload,
        *,
        cap_bytes: int | None,
        on_try: Callable[[int, bool], None] | None = None,
    ) -> int:
        """The largest batch at which the workload runs, within `cap_bytes` of memory, weights included.

        cap_bytes None: as much as the device has; a CPU needs a cap, or the machine would swap. DataError where it
        fails for another reason than memory.
        """
        if cap_bytes is None and self._device.type == "cpu":
            raise InputError(
                "the largest batch on a CPU needs a cap: give --memory, for example --memory 4GiB"
            )

        def runs(batch: int) -> bool:
            ok = self._runs(workload.replace(batch=batch), cap_bytes)
            if on_try is not None:
                on_try(batch, ok)
            return ok

        fits, fails = 0, 1
        while fails <= _MOST_BATCH and runs(fails):
            fits, fails = fails, 2 * fails
        while fails - fits > max(1, int(_CLOSE * fits)):
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if runs(middle) else (fits, middle)
        return fits

    def _runs(self, workload: Workload, cap_bytes: int | None) -> bool:
        try:
            taken = self._memory_of(workload)
        except running_errors() as error:
            if failure_of(error)[0] != "oom":
                raise self._cannot_run(workload, error) from error
            return False
        finally:
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        return cap_bytes is None or self.weight_bytes + taken <= cap_bytes

    def _cannot_run(self, workload: Workload, error: Exception) -> DataError:
        status, reason = failure_of(error)
        fix = "; give a smaller batch or context" if status == "oom" else ""
        return DataError(f"{self._name} cannot run {workload}: {reason}{fix}")

    def _memory_of(self, workload: Workload) -> int:
        """Bytes at the peak of one run beside the weights; the state's where a CPU does not tell."""
        with torch.inference_mode():
            if self._device.type == "cuda":
                before = torch.cuda.memory_allocated(self._device)
                torch.cuda.reset_peak_memory_stats(self._device)
                model_runnable(self._model, workload, device=self._device, seed=self._seed).function()
                torch.cuda.synchronize(self._device)
                return torch.cuda.max_memory_allocated(self._device) - before
            with peak_resident() as grown:
                runnable = model_runnable(self._model, workload, device=self._device, seed=self._seed)
                runnable.function()
            return max(grown[0] if grown else 0, runnable.state_bytes or 0)


def _whole_time(outcome: Outcome) -> WholeTime:
    flagged = frozenset(outcome.flagged)
    return WholeTime(
        samples_ms=tuple(s for i, s in enumerate(outcome.samples_ms) if i not in flagged),
        median_ms=outcome.conditions.visit_ms[0],
        peak_memory_bytes=outcome.peak_memory_bytes,
        state_bytes=outcome.state_bytes or 0,
        kernel=outcome.kernel,
        marks=outcome.conditions.marks,
        reference_ms=outcome.conditions.reference_ms,
    )


class WholeBench:
    """Builds models on one device and measures them all against one drift reference.

    Raises InputError for execution cuda-graph on a CPU.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        dtype: str,
        backend: Backend,
        execution: Execution = "eager",
        rule: TimingRule | None = None,
    ) -> None:
        if execution == "cuda-graph" and device.type != "cuda":
            raise InputError("execution cuda-graph needs a CUDA device: leave --execution out")
        timer = timer_for(device)
        self._device = device
        self._dtype = dtype
        self._backend = backend
        self._sampler = Sampler(
            device,
            timer=timer,
            rule=rule or replace(TimingRule(), max_seconds=_MAX_SECONDS),
            execution=execution,
            monitor=monitor_of(device),
            reference=Reference(device, timer=timer),
        )

    def open(self, architecture: Architecture, *, seed: int) -> WholeModel:
        """A model with random weights. InputError for a mixer without a module."""
        model = random_model(
            architecture, device=self._device, dtype=self._dtype, seed=seed, backend=self._backend
        )
        return WholeModel(
            model, name=architecture.name, sampler=self._sampler, device=self._device, seed=seed
        )

    def visit(self, block: Block, *, seed: int) -> WholeTime:
        """Sample a block once, with random weights, in a stack as a profile measures it."""
        return _whole_time(
            self._sampler.visit(
                lambda: block_runnable(
                    block, device=self._device, copies=block.copies, seed=seed, backend=self._backend
                )
            )
        )

    def release(self) -> None:
        """Give the memory of models that nobody holds any more back to the device."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
