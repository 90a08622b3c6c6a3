"""One operator family of a cost model: calibrated analytic form, learned residual, interval, measured region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.analytic import analytic_ms, form_with, sensitivities
from hwsearch.costmodel.calibration import fit_constants, leverage
from hwsearch.costmodel.features import feature_matrix
from hwsearch.costmodel.intervals import Spread, fit_spread
from hwsearch.costmodel.neighbours import Neighbours, fit_neighbours, row_keys
from hwsearch.costmodel.region import Region, fit_region, shape_axes
from hwsearch.costmodel.residual import CrossFit, Residual, cross_fit, fit_residual, learns_sensitivities
from hwsearch.costmodel.stress import widened
from hwsearch.costmodel.tables import Table
from hwsearch.errors import DataError
from hwsearch.operators import Columns, columns
from hwsearch.records import DeviceSpec

__all__ = ["Family", "FamilyPrediction", "family_from_state", "fit_family"]

FloatArray = NDArray[np.float64]
_FOLDS = 3
_STEPS_AGAIN = 12  # of the second calibration
_LEAST_GROWTH = 1.0  # of the interval's half-width per octave outside the measured region
_LEAST_UNSEEN = 0.04  # of a row, where its own pull on the constants is taken out of its error
_LEAST_ALONE = 1.0  # factor of the half-width for a shape (heads, widths) that was not measured


@dataclass(frozen=True)
class FamilyPrediction:
    """median_ms and log-space half_width of the 90% interval (n,); excess octaves per region axis (n, axes)."""

    median_ms: FloatArray
    half_width: FloatArray
    excess: FloatArray


@dataclass(frozen=True)
class Family:
    """A fitted family; `neighbours` also remember the operators it was fitted on.

    sensitive: the residual's inputs are the features and the form's sensitivities to its constants.
    """

    kind: str
    constants: Mapping[str, float]
    residual: Residual
    sensitive: bool
    neighbours: Neighbours
    spread: Spread
    region: Region

    @property
    def rows(self) -> int:
        """Operators the family was fitted on."""
        return len(self.neighbours.dims)

    def predict(self, dims: NDArray[np.int64], *, device: DeviceSpec, size: int) -> FamilyPrediction:
        """Predict operators given by their dimensions (n, d); `size` is the bytes per element."""
        c = columns(self.kind, dims)
        features = feature_matrix(self.kind, c, device=device, size=size)
        excess = self.region.excess(c, size=size)
        analytic = analytic_ms(self.kind, c, device=device, size=size, constants=self.constants)
        inputs = features
        if self.sensitive:
            inputs = _with_sensitivities(
                features, self.kind, c, device=device, size=size, constants=self.constants
            )
        learned = self.residual.predict(inputs)
        correction, surroundings = self.neighbours.around(dims, features, learned)
        shape = shape_axes(self.kind)
        half_width = self.spread.half_width(
            np.vstack([features.T, surroundings.T]).T,
            Region.distance(excess),
            self.region.blind(excess),
            ~np.isin(row_keys(dims[:, shape]), row_keys(self.neighbours.dims[:, shape])),
        )
        return FamilyPrediction(analytic * np.exp(learned + correction), half_width, excess)

    def seen(self, dims: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which operators, given by their dimensions (n, d), the family was fitted on."""
        return np.isin(row_keys(dims), row_keys(self.neighbours.dims))

    def state(self) -> tuple[dict[str, object], dict[str, NDArray[np.generic]]]:
        """What a file keeps: a JSON part and arrays by name."""
        numbers: dict[str, object] = {
            "rows": self.rows,
            "constants": dict(self.constants),
            "share": self.residual.share,
            **({"sensitive": True} if self.sensitive else {}),
            "spread": self.spread.numbers(),
        }
        arrays: dict[str, NDArray[np.generic]] = {"region": np.stack([self.region.low, self.region.high])}
        arrays |= {f"residual.{name}": array for name, array in self.residual.arrays().items()}
        arrays |= {f"neighbours.{name}": array for name, array in self.neighbours.arrays().items()}
        arrays |= {f"spread.{name}": array for name, array in self.spread.size.arrays().items()}
        return numbers, arrays


def family_from_state(
    kind: str,
    *,
    constants: Mapping[str, float],
    share: float,
    sensitive: bool,
    spread: Mapping[str, float],
    arrays: Mapping[str, NDArray[np.generic]],
) -> Family:
    """The inverse of Family.state. DataError where another version's analytic form was fitted."""
    if form_with(kind, constants) is None:
        raise DataError(
            f"the {kind} family was fitted with the analytic form of another version of hwsearch: fit the model again "
            "from its measurements"
        )

    def part(prefix: str) -> dict[str, NDArray[np.generic]]:
        return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

    low, high = arrays["region"].astype(np.float64)
    return Family(
        kind=kind,
        constants=dict(constants),
        residual=Residual.from_arrays(part("residual."), share=share),
        sensitive=sensitive,
        neighbours=Neighbours.from_arrays(part("neighbours.")),
        spread=Spread.from_state(spread, part("spread.")),
        region=Region(kind, low, high),
    )


def fit_family(table: Table, *, device: DeviceSpec, size: int, seed: int) -> Family:
    """Fit one family on a table: constants, residual on every row, intervals from cross-fitted residuals.

    Where sensitivities are learned, the constants are fitted again beside what a residual expects of each row that
    had not seen it: what is no constant's doing then pulls at none.
    """
    features = feature_matrix(table.kind, table.columns, device=device, size=size)
    constants = fit_constants(table, device=device, size=size, seed=seed)
    sensitive = learns_sensitivities(table.kind, len(table))

    def learned() -> tuple[NDArray[np.float32], FloatArray, CrossFit]:
        c = table.columns
        inputs = features
        if sensitive:
            inputs = _with_sensitivities(
                features, table.kind, c, device=device, size=size, constants=constants
            )
        analytic = analytic_ms(table.kind, c, device=device, size=size, constants=constants)
        target = np.log(table.latency_ms / analytic)
        return inputs, target, cross_fit(inputs, target, kind=table.kind, folds=_FOLDS, seed=seed)

    inputs, target, crossed = learned()
    if sensitive:
        constants = fit_constants(
            table,
            device=device,
            size=size,
            seed=seed,
            starts=1,
            steps=_STEPS_AGAIN,
            begin=constants,
            beside=crossed.predicted,
        )
        inputs, target, crossed = learned()
    neighbours, left, surroundings = fit_neighbours(
        table.dims, features, target, crossed.predicted, fold=crossed.fold, seed=seed
    )
    if device.kind == "cpu":
        # Some twenty rows fit up to eleven constants: their errors are studentised, or intervals would be too sure.
        unseen = 1 - leverage(table, constants, device=device, size=size)
        left = left / np.sqrt(np.maximum(unseen, _LEAST_UNSEEN))
    spread = fit_spread(
        np.hstack([features, surroundings]), left, growth=_LEAST_GROWTH, alone=_LEAST_ALONE, seed=seed
    )
    return Family(
        kind=table.kind,
        constants=constants,
        residual=fit_residual(inputs, target, kind=table.kind, share=crossed.share, seed=seed),
        sensitive=sensitive,
        neighbours=neighbours,
        spread=widened(spread, table, device=device, size=size, seed=seed),
        region=fit_region(table.kind, table.columns, size=size),
    )


def _with_sensitivities(
    features: NDArray[np.float32],
    kind: str,
    c: Columns,
    *,
    device: DeviceSpec,
    size: int,
    constants: Mapping[str, float],
) -> NDArray[np.float32]:
    """Features (n, F) and after them the form's sensitivities to its constants."""
    slopes = sensitivities(kind, c, device=device, size=size, constants=constants)
    return np.vstack([features.T, slopes.T.astype(np.float32)]).T
