"""Measuring operators and blocks in this process, one visit at a time.

A shape that cannot run is a row that says why. Needed memory is estimated before anything is allocated, because a
machine that swaps, or whose kernel kills the process, records nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch

from hwsearch.errors import DataError, InputError
from hwsearch.operators import Operator
from hwsearch.profilers.environment import available_bytes
from hwsearch.profilers.failure import failure_of, running_errors
from hwsearch.profilers.monitor import Monitor
from hwsearch.profilers.rows import Row, Subject, pending_row, row_of
from hwsearch.profilers.sampling import Outcome, Reference, Sampler
from hwsearch.profilers.tasks import BACKEND, Draw, needed_bytes, operator_runnable
from hwsearch.profilers.timing import Timer, TimingRule
from hwsearch.records import Environment, Execution
from hwsearch.searchspace.block import Block
from hwsearch.searchspace.mixers import SOFTMAX_KINDS

if TYPE_CHECKING:
    from hwsearch.models.mixers.base import Backend

__all__ = ["Workbench"]

_STACK_SHARE = 0.4  # of available memory that a stack's weights and states may take
_MOST_FLUSHED = 1 << 29  # bytes read between two calls of a frame
_SHARE = 0.9  # of available memory that an operator may need: libraries have workspaces of their own


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

    def pending(self, subject: Subject) -> Row:
        """The row of a subject without its outcome: its key is already the one it will have."""
        return pending_row(
            subject,
            environment=self.environment,
            dtype=self.dtype,
            backend=self.backend,
            execution=self.execution,
        )

    def measure(self, subject: Subject, *, visit: int = 0) -> Row:
        """One visit to a subject; what cannot run is a row whose status and reason say so.

        visit: how often the subject was measured before in this run; every visit draws other inputs. Raises InputError
        for a block in another dtype than the workbench's.
        """
        if isinstance(subject, Block) and subject.workload.dtype != self.dtype:
            raise InputError(
                f"the block {subject} is in {subject.workload.dtype} and the profile in {self.dtype}: use one dtype"
            )
        try:
            match subject:
                case Operator():
                    outcome = self._operator(subject, visit)
                case Block():
                    outcome = self._block(subject, visit)
        except running_errors(InputError) as error:
            status, reason = failure_of(error)
            return self._row(subject, {"samples_ms": (), "kernel": "", "status": status, "reason": reason})
        return self._row(subject, _found(outcome))

    def release(self) -> None:
        """Give memory back between subjects; DataError where a failed one has broken the CUDA context."""
        if self.device.type != "cuda":
            return
        if self._sampler.broken:
            raise DataError(
                f"a CUDA graph that could not be captured leaves {self.device} unusable in this process; what was "
                "measured is stored: run the same command again to go on"
            )
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

    def _operator(self, operator: Operator, visit: int) -> Outcome:
        self._check_size(needed_bytes(operator, self.dtype), available_bytes(self.device))
        generator = torch.Generator(device=self.device).manual_seed(self.seed + visit)
        draw = Draw(self.device, getattr(torch, self.dtype), generator, self.backend)
        return self._sampler.visit(lambda: operator_runnable(operator, draw))

    def _block(self, block: Block, visit: int) -> Outcome:
        from hwsearch.profilers.stack import block_runnable

        available = available_bytes(self.device)
        self._check_size(_block_bytes(block), available)
        room = int(_STACK_SHARE * available / max(1, block.weight_bytes + block.state_bytes))
        return self._sampler.visit(
            lambda: block_runnable(
                block,
                device=self.device,
                copies=max(1, min(block.copies, room)),
                seed=self.seed + visit,
                backend=cast("Backend", self.backend),
            ),
            flush_bytes=0 if block.layers else min(block.pass_bytes or 0, _MOST_FLUSHED),
        )

    @staticmethod
    def _check_size(needed: int, available: int) -> None:
        """MemoryError for what needs more bytes than there are."""
        if needed > _SHARE * available:
            raise MemoryError(
                f"needs about {needed / 2**30:.2f} GiB, {available / 2**30:.2f} GiB are available"
            )

    def _row(self, subject: Subject, outcome: dict[str, Any]) -> Row:
        place = {"dtype": self.dtype, "environment": self.environment}
        asked = {"kernel_requested": self.backend, "execution": self.execution}
        return row_of(subject, {**place, **asked, **outcome})


def _found(outcome: Outcome) -> dict[str, Any]:
    """The fields of a row that sampling decides."""
    return {field.name: getattr(outcome, field.name) for field in fields(outcome)}


def _block_bytes(block: Block) -> int:
    """About the memory that one copy of a block takes: weights, states, activations of a layer.

    A cache is written in place; a recurrent layer's step makes another state, and a captured one a third.
    """
    workload = block.workload
    recurrent = workload.batch * sum(
        layer.mixer.cache_bytes(workload.context, workload.element_bytes)
        for layer in block.layers
        if layer.mixer.kind not in SOFTMAX_KINDS
    )
    width = block.hidden_size + max((layer.ffn.intermediate_size for layer in block.layers), default=0)
    activations = 6 * workload.element_bytes * workload.pass_tokens * width
    return block.weight_bytes + block.state_bytes + 2 * recurrent + activations
