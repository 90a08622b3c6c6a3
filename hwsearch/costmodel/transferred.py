"""A family that rests on another device's family: what a transfer predicts with.

log latency is a weighted mean of experts and, where cross-validation wanted it, of a family fitted on the few
points alone. An expert is the analytic form at the target's ceilings with constants of its own, all or nothing of
what the source learned beyond its own form at the same operator, and a residual learned on what the two leave at
the few points. Its inputs are the features at the target, what the source learned, and the source's log latency.
transfer.py fits it; with no point at all it is the source's constants and corrections under new ceilings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.analytic import analytic_ms
from hwsearch.costmodel.family import Family, FamilyPrediction, family_from_state
from hwsearch.costmodel.features import feature_matrix
from hwsearch.costmodel.neighbours import row_keys
from hwsearch.costmodel.region import Region
from hwsearch.costmodel.residual import Residual
from hwsearch.operators import columns
from hwsearch.records import DeviceSpec

__all__ = ["Expert", "Lent", "Source", "TransferredFamily", "Width", "transferred_from_state"]

FloatArray = NDArray[np.float64]
_WIDEST = 1.5  # natural-log half-width at most, as for a measured family


@dataclass(frozen=True)
class Lent:
    """What a source says of n operators: log latency, what it learned beyond its form, log half-width, all (n,);
    excess octaves (n, axes) outside its measured region."""

    log_ms: FloatArray
    learned: FloatArray
    half_width: FloatArray
    excess: FloatArray

    def inputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inputs (n, F + 2) of an expert's residual from features (n, F) at the target."""
        return np.column_stack([features, self.learned, self.log_ms]).astype(np.float32)


@dataclass(frozen=True)
class Source:
    """A family on its own device, and the runtime it was measured under."""

    family: Family
    device: DeviceSpec
    runtime: str

    @property
    def label(self) -> str:
        return f"{self.device.name} ({self.runtime})"

    def lend(self, dims: NDArray[np.int64], *, size: int) -> Lent:
        """What the source knows of operators given by their dimensions (n, d)."""
        kind = self.family.kind
        part = self.family.predict(dims, device=self.device, size=size)
        form = analytic_ms(
            kind, columns(kind, dims), device=self.device, size=size, constants=self.family.constants
        )
        log_ms = np.log(part.median_ms)
        return Lent(log_ms, log_ms - np.log(form), part.half_width, part.excess)


@dataclass(frozen=True, kw_only=True)
class Expert:
    """Constants at the target, the share of the source's correction, and `believed` times a residual, if any."""

    weight: float
    constants: Mapping[str, float]
    share: float
    residual: Residual | None = None
    believed: float = 0.0

    def log_ms(
        self,
        kind: str,
        dims: NDArray[np.int64],
        lent: Lent,
        features: NDArray[np.float32],
        *,
        device: DeviceSpec,
        size: int,
    ) -> FloatArray:
        """Log latency (n,) of operators (n, d) with features (n, F) at the target."""
        form = analytic_ms(kind, columns(kind, dims), device=device, size=size, constants=self.constants)
        total = np.log(form) + self.share * lent.learned
        if self.residual is not None:
            total = total + self.believed * self.residual.predict(lent.inputs(features))
        return total


@dataclass(frozen=True, kw_only=True)
class Width:
    """Log half-width of the 90% interval: quantile times the source's own half-width to the power `follow`.

    Follows half of the source's: where the source is unsure of a kernel, so is the transfer, but the difference
    between devices has its own size. What does not follow still grows by `growth` per octave outside the region.
    """

    quantile: float
    growth: float
    follow: float = 0.5

    def scale(self, lent: Lent) -> FloatArray:
        """Half-width (n,) up to the quantile."""
        outside = 1 + self.growth * Region.distance(lent.excess)
        shape: FloatArray = lent.half_width**self.follow * outside ** (1 - self.follow)
        return shape

    def half_width(self, lent: Lent) -> FloatArray:
        return np.minimum(self.quantile * self.scale(lent), _WIDEST)


@dataclass(frozen=True, kw_only=True)
class TransferredFamily:
    """Experts that build on `source`, and `alone`, a family of the few points, with what weight is left.

    dims (n, d): the operators measured at the target, none where there was nothing to measure. region: where
    the source or the target was measured.
    """

    source: Source
    experts: tuple[Expert, ...]
    alone: Family | None
    width: Width
    region: Region
    dims: NDArray[np.int64]

    @property
    def kind(self) -> str:
        return self.source.family.kind

    @property
    def rows(self) -> int:
        """Operators measured at the target."""
        return len(self.dims)

    @property
    def source_weight(self) -> float:
        """Weight of the experts that build on the source, 0 to 1."""
        return sum(expert.weight for expert in self.experts)

    @property
    def origin(self) -> str:
        """What the family rests on, in words that go before the device and runtime predicted for."""
        if self.rows:
            return f"transferred from {self.source.label} by {self.rows} operators measured on"
        return f"carried over from {self.source.label}, nothing measured on"

    def predict(self, dims: NDArray[np.int64], *, device: DeviceSpec, size: int) -> FamilyPrediction:
        """Predict operators given by their dimensions (n, d); `size` is the bytes per element."""
        c = columns(self.kind, dims)
        lent = self.source.lend(dims, size=size)
        features = feature_matrix(self.kind, c, device=device, size=size)
        total: FloatArray = np.zeros(len(dims))
        for expert in self.experts:
            total += expert.weight * expert.log_ms(self.kind, dims, lent, features, device=device, size=size)
        if self.alone is not None:
            own = self.alone.predict(dims, device=device, size=size)
            total += (1 - self.source_weight) * np.log(own.median_ms)
        excess = self.region.excess(c, size=size)
        lent = replace(lent, excess=excess)
        return FamilyPrediction(np.exp(total), self.width.half_width(lent), excess)

    def seen(self, dims: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which operators, given by their dimensions (n, d), were measured at the target and fitted on."""
        return np.isin(row_keys(dims), row_keys(self.dims))

    def state(self) -> tuple[dict[str, object], dict[str, NDArray[np.generic]]]:
        """What a file keeps: a JSON part and arrays by name."""
        source, arrays = self.source.family.state()
        arrays = {f"source.{name}": array for name, array in arrays.items()}
        arrays["dims"] = self.dims
        arrays["region"] = np.stack([self.region.low, self.region.high])
        experts = []
        for i, expert in enumerate(self.experts):
            experts.append(
                {
                    "weight": expert.weight,
                    "constants": dict(expert.constants),
                    "share": expert.share,
                    "believed": expert.believed,
                    "residual": None if expert.residual is None else expert.residual.share,
                }
            )
            if expert.residual is not None:
                arrays |= {f"expert{i}.{name}": array for name, array in expert.residual.arrays().items()}
        alone = None
        if self.alone is not None:
            alone, own = self.alone.state()
            arrays |= {f"alone.{name}": array for name, array in own.items()}
        numbers: dict[str, object] = {
            "rows": self.rows,
            "transferred_from": {
                "device": asdict(self.source.device),
                "runtime": self.source.runtime,
                "family": source,
            },
            "experts": experts,
            "alone": alone,
            "width": asdict(self.width),
        }
        return numbers, arrays


def _part(arrays: Mapping[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.generic]]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def transferred_from_state(
    kind: str, numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]]
) -> TransferredFamily:
    """The inverse of TransferredFamily.state."""

    def family(own: Mapping[str, Any], prefix: str) -> Family:
        return family_from_state(
            kind,
            constants=own["constants"],
            share=own["share"],
            sensitive=own.get("sensitive", False),
            spread=own["spread"],
            arrays=_part(arrays, prefix),
        )

    origin, alone = numbers["transferred_from"], numbers["alone"]
    low, high = arrays["region"].astype(np.float64)
    return TransferredFamily(
        source=Source(
            family=family(origin["family"], "source."),
            device=DeviceSpec(**origin["device"]),
            runtime=origin["runtime"],
        ),
        experts=tuple(
            Expert(
                weight=own["weight"],
                constants=own["constants"],
                share=own["share"],
                believed=own["believed"],
                residual=None
                if own["residual"] is None
                else Residual.from_arrays(_part(arrays, f"expert{i}."), share=own["residual"]),
            )
            for i, own in enumerate(numbers["experts"])
        ),
        alone=None if alone is None else family(alone, "alone."),
        width=Width(**numbers["width"]),
        region=Region(kind, low, high),
        dims=arrays["dims"].astype(np.int64),
    )
