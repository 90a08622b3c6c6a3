"""One operator family of a cost model: calibrated analytic form, learned residual, interval, measured region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.analytic import analytic_ms, fit_constants
from hwsearch.costmodel.features import feature_matrix
from hwsearch.costmodel.intervals import Spread, fit_spread
from hwsearch.costmodel.region import Region, fit_region
from hwsearch.costmodel.tables import Table
from hwsearch.costmodel.trees import Trees, TreesRecipe, fit_trees
from hwsearch.operators import Columns
from hwsearch.records import DeviceSpec

__all__ = ["Family", "FamilyPrediction", "fit_family"]

FloatArray = NDArray[np.float64]
_FOLDS = 4
_GROWTH = 1.0


@dataclass(frozen=True)
class FamilyPrediction:
    """median_ms and log-space half_width of the 90% interval (n,); excess octaves per region axis (n, axes)."""

    median_ms: FloatArray
    half_width: FloatArray
    excess: FloatArray


@dataclass(frozen=True)
class Family:
    """A fitted family; `fitted_on` are the sorted fingerprints (uint32) of the operators it was fitted on."""

    kind: str
    constants: Mapping[str, float]
    residual: Trees
    spread: Spread
    region: Region
    fitted_on: NDArray[np.uint32]

    def predict(self, c: Columns, *, device: DeviceSpec, size: int) -> FamilyPrediction:
        """Predict operators given as columns (n,); `size` is the bytes per element."""
        features = feature_matrix(self.kind, c, device=device, size=size)
        excess = self.region.excess(c, size=size)
        analytic = analytic_ms(self.kind, c, device=device, size=size, constants=self.constants)
        median = analytic * np.exp(self.residual.predict(features))
        half_width = self.spread.half_width(features, Region.distance(excess))
        return FamilyPrediction(median, half_width, excess)

    def seen(self, fingerprints: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which operators (n,) the family was fitted on."""
        return np.isin(fingerprints, self.fitted_on)

    def state(self) -> tuple[dict[str, object], dict[str, NDArray[np.generic]]]:
        """What a file keeps: a JSON part and arrays by name."""
        numbers: dict[str, object] = {
            "constants": dict(self.constants),
            "spread": self.spread.numbers(),
            "rows": len(self.fitted_on),
        }
        arrays: dict[str, NDArray[np.generic]] = {
            "region": np.stack([self.region.low, self.region.high]),
            "fitted_on": self.fitted_on,
        }
        arrays |= {f"residual.{name}": array for name, array in self.residual.arrays().items()}
        arrays |= {f"spread.{name}": array for name, array in self.spread.size.arrays().items()}
        return numbers, arrays


def family_from_state(
    kind: str,
    *,
    constants: Mapping[str, float],
    spread: Mapping[str, float],
    arrays: Mapping[str, NDArray[np.generic]],
) -> Family:
    """The inverse of Family.state."""

    def part(prefix: str) -> dict[str, NDArray[np.generic]]:
        return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

    low, high = arrays["region"].astype(np.float64)
    return Family(
        kind=kind,
        constants=dict(constants),
        residual=Trees.from_arrays(part("residual.")),
        spread=Spread.from_state(spread, part("spread.")),
        region=Region(kind, low, high),
        fitted_on=arrays["fitted_on"].astype(np.uint32),
    )


def _recipe(rows: int) -> TreesRecipe:
    if rows >= 4000:
        return TreesRecipe(trees=600, depth=8, rate=0.08)
    return TreesRecipe(trees=300, depth=6, rate=0.06)


def fit_family(table: Table, *, device: DeviceSpec, size: int, seed: int) -> Family:
    """Fit one family on a table: constants, residual on every row, intervals from cross-fitted residuals."""
    c = table.columns
    constants = fit_constants(table, device=device, size=size, seed=seed)
    features = feature_matrix(table.kind, c, device=device, size=size)
    analytic = analytic_ms(table.kind, c, device=device, size=size, constants=constants)
    target = np.log(table.latency_ms / analytic)
    recipe = _recipe(len(table))
    left = np.empty(len(table))
    fold = np.random.default_rng(seed).permutation(len(table)) % min(_FOLDS, len(table))
    for one in np.unique(fold):
        out = fold == one
        part = fit_trees(features[~out], target[~out], recipe=recipe, seed=seed)
        left[out] = target[out] - part.predict(features[out])
    return Family(
        kind=table.kind,
        constants=constants,
        residual=fit_trees(features, target, recipe=recipe, seed=seed),
        spread=fit_spread(features, left, growth=_GROWTH, seed=seed),
        region=fit_region(table.kind, c, size=size),
        fitted_on=np.sort(table.fingerprints()),
    )
