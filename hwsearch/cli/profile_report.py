"""What a profile prints: its rows by kind, the error from batch to batch, and what a dry run expects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwsearch.cli.output import console, milliseconds, note, table
from hwsearch.operators import KINDS
from hwsearch.pipeline.active import CurvePoint, Plan
from hwsearch.pipeline.profile_estimate import Estimate
from hwsearch.pipeline.profiling import Profile, Profiled
from hwsearch.records import Measurement, Sampled
from hwsearch.searchspace.block import BlockMeasurement

__all__ = ["estimate_json", "print_estimate", "print_profiled", "profiled_json"]


def profiled_json(
    profiled: Profiled,
    measurements: Sequence[Measurement],
    blocks: Sequence[BlockMeasurement],
    plan: Plan,
    output: Path,
) -> dict[str, Any]:
    """The public keys of a profile; docs/json.md describes them."""
    return {
        "store": str(output),
        "plan": plan,
        "asked": profiled.asked,
        "measured": profiled.measured,
        "skipped": profiled.skipped,
        "not_ok": profiled.not_ok,
        "too_large": profiled.too_large,
        "scarce": list(profiled.outcome.scarce),
        "stopped": profiled.outcome.reason,
        "curve": [
            {"points": point.points, "error": _percent(point.error), "by_kind": _percents(point)}
            for point in profiled.outcome.curve
        ],
        "measurements": len(measurements),
        "blocks": len(blocks),
        "warning": profiled.warning,
    }


def _percent(error: float | None) -> float | None:
    return None if error is None else 100 * error


def _percents(point: CurvePoint) -> dict[str, float]:
    return {kind: 100 * error for kind, error in point.by_kind.items()}


def print_profiled(
    profiled: Profiled,
    measurements: Sequence[Measurement],
    blocks: Sequence[BlockMeasurement],
    task: Profile,
    output: Path,
) -> None:
    """What the store holds, the curve where there is one, and why the plan ended."""
    shown = table(f"{output}", "operator", "rows", "not ok", "fastest ms", "slowest ms")
    rows: dict[str, list[Sampled]] = {kind: [] for kind in KINDS}
    for row in measurements:
        rows[row.operator.kind].append(row)
    rows["blocks"] = list(blocks)
    for kind, own in rows.items():
        times = [row.median_ms for row in own if row.status == "ok"]
        if own:
            shown.add_row(
                kind,
                str(len(own)),
                str(len(own) - len(times)),
                milliseconds(min(times)) if times else "-",
                milliseconds(max(times)) if times else "-",
            )
    console().print(shown)
    if profiled.outcome.curve:
        console().print(_curve(profiled.outcome.curve))
    if profiled.warning:
        note(f"warning: {profiled.warning}")
    if profiled.too_large:
        note(f"left out: {profiled.too_large} operators do not fit into the device's memory")
    if profiled.outcome.scarce:
        more = "raise --points" if task.space is None else "widen the workloads, for example batch=1..64"
        note(f"too few operators asked for to fit {', '.join(profiled.outcome.scarce)}: {more}")
    note(f"stopped: {profiled.outcome.reason}; {profiled.asked} operators are asked for")
    note(
        f"{profiled.measured} measured now, {profiled.skipped} were there already, {profiled.not_ok} could not run"
    )


def _curve(curve: Sequence[CurvePoint]) -> Any:
    kinds = sorted({kind for point in curve for kind in point.by_kind})
    shown = table("Cross-validated error in percent, by share of the time asked for", "points", "all", *kinds)
    for point in curve:
        by_kind = (f"{100 * point.by_kind[kind]:.1f}" if kind in point.by_kind else "" for kind in kinds)
        shown.add_row(str(point.points), "" if point.error is None else f"{100 * point.error:.1f}", *by_kind)
    return shown


def estimate_json(estimate: Estimate, output: Path | None) -> dict[str, Any]:
    """The public keys of a dry run; docs/json.md describes them."""
    return {
        "store": None if output is None else str(output),
        "asked": estimate.asked,
        "done": estimate.done,
        "too_large": estimate.too_large,
        "points": estimate.points,
        "blocks": estimate.blocks,
        "block_seconds": estimate.block_seconds,
        "kinds": dict(estimate.kinds),
        "overhead_s": estimate.overhead_s,
        "seconds_per_point": estimate.seconds_per_point,
        "seconds": estimate.seconds,
        "predicted_by": estimate.predicted_by,
    }


def print_estimate(estimate: Estimate, task: Profile) -> None:
    """What would be measured and how long it would take."""
    shown = table("Asked for and not measured yet", "operator", "operators")
    for kind, count in estimate.kinds.items():
        shown.add_row(kind, str(count))
    to = console()
    to.print(shown)
    to.print(
        f"asked for           {estimate.asked} operators, {estimate.done} measured already, {estimate.too_large} left "
        "out because they do not fit into memory",
        soft_wrap=True,
    )
    points = "until the rule that stops it is met" if estimate.points is None else f"{estimate.points} points"
    blocks = f", and {estimate.blocks} blocks" if estimate.blocks else ""
    to.print(f"would measure       {points} by the plan {task.plan}{blocks}", soft_wrap=True)
    to.print(
        f"a point             {estimate.seconds_per_point:.2f} s, of which {estimate.overhead_s:.2f} s whatever the "
        "operator (measured now)",
        soft_wrap=True,
    )
    if estimate.blocks:
        to.print(
            f"the blocks          about {_duration(estimate.block_seconds)} (three of them measured now)",
            soft_wrap=True,
        )
    whole = (
        "not known before it is tried" if estimate.seconds is None else f"about {_duration(estimate.seconds)}"
    )
    to.print(f"in all              {whole}, without the time that choosing and fitting takes", soft_wrap=True)
    to.print(f"latencies           predicted by {estimate.predicted_by}", soft_wrap=True, markup=False)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
