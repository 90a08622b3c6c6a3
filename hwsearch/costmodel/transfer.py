"""Fits a family for a device, or a runtime version, from few points and the family of another.

Candidates, each fitted on the few points: the analytic form with constants pulled towards the source's, plus all
or nothing of what the source learned beyond its form at the same operators, with or without a residual learned on the
rest; and a family fitted on the points alone. Cross-validation on the few points mixes the candidates, each by its
likelihood under Laplace errors, tempered (pseudo-BMA, Yao et al. 2018, arXiv 1704.02030), and drops the source where
its gain over the points alone may be chance. Intervals are split-conformal on the mixture's cross-validated errors
(Lei et al. 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.accuracy import OperatorErrors, operator_errors
from hwsearch.costmodel.analytic import analytic_ms
from hwsearch.costmodel.calibration import fit_constants
from hwsearch.costmodel.family import Family, fit_family
from hwsearch.costmodel.features import feature_matrix
from hwsearch.costmodel.intervals import COVERAGE
from hwsearch.costmodel.model import CostModel, check_rows
from hwsearch.costmodel.region import Region, fit_region
from hwsearch.costmodel.residual import Residual, fit_residual
from hwsearch.costmodel.tables import Table, Tables
from hwsearch.costmodel.transferred import Expert, Lent, Source, TransferredFamily, Width
from hwsearch.errors import InputError
from hwsearch.operators import dtype_bytes
from hwsearch.records import DeviceSpec

__all__ = ["Gate", "carry_family", "check_source", "transfer_family", "transfer_model"]

FloatArray = NDArray[np.float64]
_PULL, _PULL_ALONE = 0.3, 1.0  # natural-log units around the source's constants, or around the form's own
_SHARES = (0.0, 1.0)  # of the source's correction
_CANDIDATES = ((None, True), *((share, with_it) for share in _SHARES for with_it in (False, True)))
_ALONE = 0  # the candidate without the source; the others are (share, whether a residual is learned)
_GP_SHARE = 0.75  # of a residual's mix of process and trees: what cross-validation chooses most often
_FOLDS = 5
_STEPS, _STEPS_NEAR = 40, 8  # of calibration; a fold's constants begin at those of all points
_TEMPER = 8  # points' worth of likelihood: more would bet on differences that few points cannot show
_LEAST_WEIGHT = 0.05
_WORTH = 0.02  # of the error of the points alone must be gained at least, or the source is dropped
_SURE = 2.0  # standard errors that the gain must exceed
_FACTOR_UNMEASURED = 2.0  # interval of a family with no point at the target


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What cross-validation on the few points said.

    source_weight: of the mixture, 0 where the source was dropped. errors: of the family as returned, on points
    not fitted on, and by_row (n,) their absolute errors relative to the latency. alone_mape: of a family fitted on the
    points alone, in percent, the same way.
    """

    source_weight: float
    errors: OperatorErrors
    by_row: FloatArray
    alone_mape: float


def transfer_model(
    source: CostModel, tables: Tables, *, device: DeviceSpec, runtime: str, measured: str, seed: int
) -> tuple[CostModel, dict[str, Gate]]:
    """A cost model for `device` under `runtime` from few rows and the model of another device or runtime.

    Kinds with rows and a family of the source are transferred; kinds with rows alone are fitted on them; kinds
    without rows are carried over under the new ceilings, flagged as unmeasured. `measured` says where the rows
    come from. Also returns what cross-validation said of each transferred kind, which the model keeps too.

    Raises InputError for a source that is itself transferred or holds no family, DataError where a kind has too few
    rows.
    """
    from threadpoolctl import threadpool_limits

    check_source(source)
    size = dtype_bytes(source.dtype)
    families: dict[str, Family | TransferredFamily] = {}
    gates: dict[str, Gate] = {}
    for kind in sorted({*source.families, *tables}):
        lender = source.families.get(kind)
        assert not isinstance(lender, TransferredFamily)
        with threadpool_limits(limits=1):
            if kind not in tables:
                assert lender is not None
                families[kind] = carry_family(Source(lender, source.device, source.runtime))
                continue
            check_rows(kind, len(tables[kind]))
            if lender is None:
                families[kind] = fit_family(tables[kind], device=device, size=size, seed=seed)
                continue
            families[kind], gates[kind] = transfer_family(
                tables[kind],
                device=device,
                size=size,
                source=Source(lender, source.device, source.runtime),
                seed=seed,
            )
    model = CostModel(
        device=device,
        runtime=runtime,
        dtype=source.dtype,
        source=f"{measured}; transferred from {source.device.name} ({source.runtime}), which is {source.source}",
        seed=seed,
        families=families,
        held_out={kind: gate.errors for kind, gate in gates.items()},
    )
    return model, gates


def check_source(source: CostModel) -> None:
    """InputError for a model that nothing can be transferred from: no family, or itself transferred."""
    if not source.families:
        raise InputError(
            f"the source model of {source.device.name} holds no measured operator ({source.runtime}): start from a "
            "model that was fitted on measurements"
        )
    for lender in source.families.values():
        if isinstance(lender, TransferredFamily):
            raise InputError(
                f"the source model of {source.device.name} is itself transferred from {lender.source.label}: "
                "transfer from a model that was fitted on measurements"
            )


def carry_family(source: Source) -> TransferredFamily:
    """The source under other ceilings, nothing measured there: its constants and all it learned.

    The device to predict for is given at prediction. The interval is a factor of 2, and grows outside the source's
    region.
    """
    family = source.family
    expert = Expert(weight=1.0, constants=family.constants, share=1.0)
    return TransferredFamily(
        source=source,
        experts=(expert,),
        alone=None,
        width=Width(quantile=float(np.log(_FACTOR_UNMEASURED)), growth=family.spread.growth, follow=0.0),
        region=family.region,
        dims=np.empty((0, family.neighbours.dims.shape[1]), np.int64),
    )


def transfer_family(
    table: Table, *, device: DeviceSpec, size: int, source: Source, seed: int
) -> tuple[Family | TransferredFamily, Gate]:
    """A family for `device` from the rows of `table` and the source; a plain Family where the source is dropped."""
    few = _Few.of(table, device=device, size=size, source=source)
    constants = {share: few.calibrate(share) for share in (None, *_SHARES)}
    crossed = _cross_validate(few, constants, seed)
    target = np.log(table.latency_ms)
    untouched = few.base(1.0, few.prior)
    weight = _select(crossed, target, untouched)
    predicted = crossed @ weight
    width = Width(quantile=1.0, growth=source.family.spread.growth)
    width = replace(width, quantile=_quantile(np.abs(target - predicted) / width.scale(few.lent)))
    gate = Gate(
        source_weight=1 - float(weight[_ALONE]),
        errors=_held_out(table, predicted, few.lent, width),
        by_row=np.abs(np.exp(predicted) / table.latency_ms - 1),
        alone_mape=100 * float(np.abs(np.exp(crossed[:, _ALONE]) / table.latency_ms - 1).mean()),
    )
    own = fit_family(table, device=device, size=size, seed=seed) if weight[_ALONE] > 0 else None
    if own is not None and weight[_ALONE] == 1:
        return own, gate
    experts = []
    for share in _SHARES:
        plain, learned = (float(weight[_CANDIDATES.index((share, with_it))]) for with_it in (False, True))
        if plain + learned > 0:
            experts.append(
                Expert(
                    weight=plain + learned,
                    constants=constants[share],
                    share=share,
                    residual=few.learn(share, constants[share], seed=seed) if learned else None,
                    believed=learned / (plain + learned),
                )
            )
    here, there = fit_region(table.kind, table.columns, size=size), source.family.region
    family = TransferredFamily(
        source=source,
        experts=tuple(experts),
        alone=own,
        width=width,
        region=Region(table.kind, np.minimum(here.low, there.low), np.maximum(here.high, there.high)),
        dims=table.dims,
    )
    return family, gate


@dataclass(frozen=True, kw_only=True)
class _Few:
    """The few points with all that is computed of them once; `prior` are the source's constants.

    A share of None stands for fitting without the source.
    """

    table: Table
    device: DeviceSpec
    size: int
    features: NDArray[np.float32]
    lent: Lent
    prior: Mapping[str, float]

    @classmethod
    def of(cls, table: Table, *, device: DeviceSpec, size: int, source: Source) -> _Few:
        return cls(
            table=table,
            device=device,
            size=size,
            features=feature_matrix(table.kind, table.columns, device=device, size=size),
            lent=source.lend(table.dims, size=size),
            prior=source.family.constants,
        )

    def take(self, rows: NDArray[np.bool_]) -> _Few:
        lent = Lent(*(part[rows] for part in vars(self.lent).values()))
        return replace(self, table=self.table.take(rows), features=self.features[rows], lent=lent)

    def calibrate(self, share: float | None, *, begin: Mapping[str, float] | None = None) -> dict[str, float]:
        """Constants at the target beside a share of the source's correction; few steps where `begin` is near."""
        return fit_constants(
            self.table,
            device=self.device,
            size=self.size,
            seed=0,
            starts=1,
            steps=_STEPS if begin is None else _STEPS_NEAR,
            begin=begin,
            prior=None if share is None else self.prior,
            prior_sd=_PULL_ALONE if share is None else _PULL,
            beside=None if share is None else share * self.lent.learned,
        )

    def base(self, share: float | None, constants: Mapping[str, float]) -> FloatArray:
        """Log latency (n,) of the analytic form at the target, with the share of the source's correction."""
        table = self.table
        form = analytic_ms(table.kind, table.columns, device=self.device, size=self.size, constants=constants)
        return np.log(form) + (share or 0.0) * self.lent.learned

    def inputs(self, share: float | None) -> NDArray[np.float32]:
        """Inputs (n, F or F + 2) of a residual."""
        return self.features if share is None else self.lent.inputs(self.features)

    def learn(self, share: float | None, constants: Mapping[str, float], *, seed: int) -> Residual:
        """A residual on what the base leaves."""
        left = np.log(self.table.latency_ms) - self.base(share, constants)
        return fit_residual(self.inputs(share), left, kind=self.table.kind, share=_GP_SHARE, seed=seed)


def _cross_validate(
    few: _Few, constants: Mapping[float | None, Mapping[str, float]], seed: int
) -> FloatArray:
    """The log latency (n, candidates) that each candidate predicts of the rows it was not fitted on."""
    fold = np.random.default_rng(seed).permutation(len(few.table)) % _FOLDS
    crossed = np.empty((len(fold), len(_CANDIDATES)))
    for one in range(_FOLDS):
        out = fold == one
        known, asked = few.take(~out), few.take(out)
        for share, near in constants.items():
            own = known.calibrate(share, begin=near)
            base = asked.base(share, own)
            learned = known.learn(share, own, seed=seed).predict(asked.inputs(share))
            for with_it in (False, True):
                if (share, with_it) in _CANDIDATES:
                    crossed[out, _CANDIDATES.index((share, with_it))] = base + with_it * learned
    return crossed


def _select(crossed: FloatArray, target: FloatArray, untouched: FloatArray) -> FloatArray:
    """Weights (candidates,): each candidate's likelihood of the points, tempered, small ones dropped.

    All on the points alone where the mixture is not better by more than chance. Where the `untouched` source, which
    needs no point and so cannot flatter itself on them, is not shown to err more than the points alone, by one standard
    error, the mixture need only be better.
    """
    error = np.abs(crossed - target[:, None]).mean(axis=0)
    weight: FloatArray = (error.min() / error) ** _TEMPER
    weight /= weight.sum()
    weight = np.where(weight < _LEAST_WEIGHT, 0.0, weight)
    weight /= weight.sum()
    gain = np.abs(crossed[:, _ALONE] - target) - np.abs(crossed @ weight - target)
    chance = _SURE * float(gain.std(ddof=1)) / np.sqrt(len(gain))
    behind = np.abs(untouched - target) - np.abs(crossed[:, _ALONE] - target)
    related = float(behind.mean()) < float(behind.std(ddof=1)) / np.sqrt(len(behind))
    if gain.mean() < max(0.0 if related else chance, _WORTH * error[_ALONE]):
        weight = np.eye(len(weight))[_ALONE]
    return weight


def _quantile(score: FloatArray) -> float:
    n = len(score)
    level = min(1.0, np.ceil((n + 1) * COVERAGE) / n)
    return float(np.quantile(score, level, method="higher"))


def _held_out(table: Table, predicted: FloatArray, lent: Lent, width: Width) -> OperatorErrors:
    """Errors on the points, each by a mixture not fitted on it, with an interval calibrated on the others."""
    scale = width.scale(lent)
    score = np.abs(np.log(table.latency_ms) - predicted) / scale
    rows = np.arange(len(score))
    half = np.array([_quantile(score[rows != row]) for row in rows]) * scale
    median = np.exp(predicted)
    return operator_errors(
        table.latency_ms,
        median_ms=median,
        low_ms=median * np.exp(-half),
        high_ms=median * np.exp(half),
        skipped_seen=0,
    )
