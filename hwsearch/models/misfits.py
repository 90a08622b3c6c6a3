"""Why a runtime cannot hold an architecture, said layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwsearch.searchspace.architecture import LayerSpec

__all__ = ["Misfit", "described"]


@dataclass(frozen=True)
class Misfit:
    """A reason, and the layer it is about; without a layer it is about the whole model."""

    reason: str
    index: int | None = None
    mixer: str = ""

    @classmethod
    def of(cls, index: int, layer: LayerSpec, reason: str) -> Misfit:
        return cls(reason, index, layer.mixer.kind)


def described(misfits: Sequence[Misfit]) -> str:
    """All misfits on one line, layers with the same one joined: `layers 0-2, 5 (none): reason`."""
    grouped: dict[tuple[str, str], list[int]] = {}
    whole = []
    for misfit in misfits:
        if misfit.index is None:
            whole.append(misfit.reason)
        else:
            grouped.setdefault((misfit.mixer, misfit.reason), []).append(misfit.index)
    by_layer = [
        f"layer{'s' if len(indices) > 1 else ''} {_ranges(indices)} ({mixer}): {reason}"
        for (mixer, reason), indices in grouped.items()
    ]
    return "; ".join(whole + by_layer)


def _ranges(indices: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
