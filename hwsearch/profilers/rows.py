"""Rows as JSON values and back: what the store keeps of a measurement, and what a worker process sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar, get_args

from hwsearch.operators import KINDS, Operator
from hwsearch.profilers.timing import median_interval
from hwsearch.records import Conditions, Environment, Execution, Measurement, Sampled, Status
from hwsearch.searchspace.block import Block, BlockMeasurement

__all__ = [
    "Row",
    "Subject",
    "operator_from",
    "pending_row",
    "revisited",
    "row_content",
    "row_from_content",
    "row_of",
    "sampled_content",
    "sampled_fields",
    "subject_content",
    "subject_from_content",
    "subject_of",
]

Row = Measurement | BlockMeasurement
Subject = Operator | Block

_PLAIN = (
    "dtype",
    "kernel",
    "kernel_requested",
    "execution",
    "status",
    "reason",
    "peak_memory_bytes",
    "peak_reserved_bytes",
    "workspace_bytes",
    "state_bytes",
    "energy_j",
)


def sampled_content(row: Sampled) -> dict[str, Any]:
    """Everything of a row but its subject and environment, as JSON values."""
    return {
        **{name: getattr(row, name) for name in _PLAIN},
        "samples_ms": list(row.samples_ms),
        "flagged": list(row.flagged),
        "conditions": None if row.conditions is None else asdict(row.conditions),
    }


def sampled_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `sampled_content`. Raises KeyError, TypeError or ValueError for what is no row."""
    samples = tuple(float(sample) for sample in content["samples_ms"])
    flagged = tuple(int(place) for place in content["flagged"])
    status, execution = content["status"], content["execution"]
    if status not in get_args(Status) or (status == "ok") != bool(samples):
        raise ValueError(f"status {status!r} with {len(samples)} samples")
    if execution not in get_args(Execution):
        raise ValueError(f"execution {execution!r}")
    if any(not 0 <= place < len(samples) for place in flagged):
        raise ValueError(f"flagged samples {flagged} of {len(samples)}")
    conditions = content["conditions"]
    if conditions is not None:
        lists = {name: tuple(conditions[name]) for name in ("visit_ms", "throttled", "marks")}
        conditions = Conditions(**{**conditions, **lists})
    return {
        **{name: content[name] for name in _PLAIN},
        "samples_ms": samples,
        "flagged": flagged,
        "conditions": conditions,
    }


def operator_from(kind: str, dims: list[int]) -> Operator:
    """An operator of stored parts; KeyError or ValueError where they are none."""
    made = Operator(kind, tuple(int(size) for size in dims))
    if len(made.dims) != len(KINDS[kind].dims):
        raise ValueError(f"{kind} has the dimensions {', '.join(KINDS[kind].dims)}, not {dims}")
    return made


def subject_of(row: Row) -> Subject:
    """What a row measured."""
    return row.operator if isinstance(row, Measurement) else row.block


def subject_content(subject: Subject) -> dict[str, Any]:
    """A subject as JSON values."""
    if isinstance(subject, Operator):
        return {"operator": [subject.kind, list(subject.dims)]}
    return {"block": subject.to_json()}


def subject_from_content(content: Mapping[str, Any]) -> Subject:
    """The inverse of `subject_content`."""
    if "operator" in content:
        return operator_from(*content["operator"])
    return Block.from_json(content["block"], source="a worker's message")


def row_of(subject: Subject, fields: Mapping[str, Any]) -> Row:
    """The row of a subject; `fields` are those of `records.Sampled`."""
    if isinstance(subject, Operator):
        return Measurement(operator=subject, **fields)
    return BlockMeasurement(block=subject, **fields)


def pending_row(
    subject: Subject, *, environment: Environment, dtype: str, backend: str, execution: Execution
) -> Row:
    """The row of a subject without its outcome: its key is already the one it will have."""
    fields: dict[str, Any] = {"environment": environment, "dtype": dtype, "kernel_requested": backend}
    outcome = {"kernel": "", "samples_ms": (), "status": "failed", "reason": "not measured yet"}
    return row_of(subject, {**fields, **outcome, "execution": execution})


def row_content(row: Row) -> dict[str, Any]:
    """A whole row as JSON values."""
    return {
        **subject_content(subject_of(row)),
        "environment": asdict(row.environment),
        **sampled_content(row),
    }


def row_from_content(content: Mapping[str, Any]) -> Row:
    """The inverse of `row_content`."""
    fields = {"environment": Environment(**content["environment"]), **sampled_fields(content)}
    return row_of(subject_from_content(content), fields)


R = TypeVar("R", Measurement, BlockMeasurement)


def revisited(row: R, visit: R) -> R:
    """A row and a further visit to the same thing as one row; the row as it was where the visit brought nothing."""
    if visit.status != "ok" or row.conditions is None or visit.conditions is None:
        return row
    before: Conditions = row.conditions
    now: Conditions = visit.conditions
    flagged = (*row.flagged, *(place + len(row.samples_ms) for place in visit.flagged))
    both = replace(row, samples_ms=row.samples_ms + visit.samples_ms, flagged=flagged)
    waits = [share for share in (before.waited, now.waited) if share is not None]
    width = median_interval(list(both.counted_ms))
    return replace(
        both,
        peak_memory_bytes=_largest(row.peak_memory_bytes, visit.peak_memory_bytes),
        conditions=replace(
            now,
            visits=before.visits + now.visits,
            visit_ms=before.visit_ms + now.visit_ms,
            half_width=width if width < 1e9 else None,
            waited=max(waits, default=None),
            throttled=tuple(sorted({*before.throttled, *now.throttled})),
            marks=tuple(sorted({*before.marks, *now.marks})),
            tuned={**before.tuned, **now.tuned},
        ),
    )


def _largest(a: int | None, b: int | None) -> int | None:
    known = [value for value in (a, b) if value is not None]
    return max(known, default=None)
