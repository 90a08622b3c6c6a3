"""Fits the constants of an analytic form to a table, in log space, against outliers and with a prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.analytic import FORMS, analytic_ms
from hwsearch.costmodel.tables import Table
from hwsearch.operators import columns
from hwsearch.records import DeviceSpec

__all__ = ["fit_constants"]

FloatArray = NDArray[np.float64]

_PRIOR_SD = 1.0  # natural-log units: a constant is expected within a factor of e of its start
_FIT_ROWS = 2000
_STARTS, _STEPS = 4, 40


def fit_constants(
    table: Table,
    *,
    device: DeviceSpec,
    size: int,
    seed: int,
    starts: int = _STARTS,
    steps: int = _STEPS,
    begin: Mapping[str, float] | None = None,
    prior: Mapping[str, float] | None = None,
    prior_sd: float = _PRIOR_SD,
    beside: FloatArray | None = None,
) -> dict[str, float]:
    """Constants of the table's form by robust least squares on log latency.

    The prior is centred on the form's own starting values, or on the constants `prior`, with `prior_sd` in
    natural-log units; the fit begins there, or at `begin`, and at random places nearby, `starts` in all of at
    most `steps` steps, and the best is kept.
    `beside` (n,) is added to the form's log latency, for what is known of each row from elsewhere.
    """
    from scipy.optimize import least_squares

    form = FORMS[table.kind]
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(table), min(_FIT_ROWS, len(table)), replace=False)
    c = columns(table.kind, table.dims[chosen])
    measured = np.log(table.latency_ms[chosen])
    if beside is not None:
        measured = measured - beside[chosen]
    start = np.log([prior[k.name] if prior else k.start for k in form.constants])
    low = np.log([k.low for k in form.constants])
    high = np.log([k.high for k in form.constants])
    start = np.clip(start, low + 1e-6, high - 1e-6)

    def named(theta: Sequence[float] | FloatArray) -> dict[str, float]:
        return {k.name: float(np.exp(t)) for k, t in zip(form.constants, theta, strict=True)}

    def residuals(theta: FloatArray) -> FloatArray:
        predicted = np.log(analytic_ms(table.kind, c, device=device, size=size, constants=named(theta)))
        return np.concatenate([(predicted - measured) / 0.05, (theta - start) / prior_sd])

    first = start if begin is None else np.log([begin[k.name] for k in form.constants])
    best, least = start, np.inf
    for trial in range(starts):
        place = first + (trial > 0) * rng.normal(0, 0.4, len(start))
        fitted = least_squares(
            residuals,
            np.clip(place, low + 1e-6, high - 1e-6),
            bounds=(low, high),
            loss="soft_l1",
            diff_step=[1e-3],
            max_nfev=steps,
        )
        if fitted.cost < least:
            best, least = fitted.x, fitted.cost
    return named(best)
