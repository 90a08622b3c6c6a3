"""Fits the constants of an analytic form to a table, in log space, against outliers and with a prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from hwsearch.costmodel.analytic import Form, analytic_of, form_with, forms_of, sensitivities
from hwsearch.costmodel.tables import Table
from hwsearch.operators import columns
from hwsearch.records import DeviceSpec

__all__ = ["fit_constants", "leverage"]

FloatArray = NDArray[np.float64]

_PRIOR_SD = 1.0  # natural-log units: a constant is expected within a factor of e of its start
_FIT_ROWS = 2000
_STARTS, _STEPS = 4, 40
_SHIFT = 0.4  # natural-log units between the starts
_NOISE = 0.05  # log latency: what a form is not expected to explain
_EDGE = 1e-6  # a fit begins inside the bounds
_EVIDENCE = 4.0  # nats of likelihood by which a table must speak for another kernel than the usual one


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
    most `steps` steps, and the best is kept. Where different devices run different kernels, the first start decides
    whose form the table shows, or `begin` does; a prior of another kernel's constants is none.
    `beside` (n,) is added to the form's log latency, for what is known of each row from elsewhere.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(table), min(_FIT_ROWS, len(table)), replace=False)
    c = columns(table.kind, table.dims[chosen])
    measured = np.log(table.latency_ms[chosen])
    if beside is not None:
        measured = measured - beside[chosen]
    near = None if begin is None else form_with(table.kind, begin)
    forms = forms_of(table.kind, on=device.kind) if near is None else (near,)

    def fitted(form: Form, shift: float) -> tuple[float, dict[str, float]]:
        predicted = analytic_of(form, c, device=device, size=size)

        def error(constants: Mapping[str, float]) -> FloatArray:
            found: FloatArray = np.log(predicted(constants)) - measured
            return found

        own = prior if prior and form is form_with(table.kind, prior) else {}
        centre = np.log([own.get(k.name, k.start) for k in form.constants])
        first = centre if begin is None else np.log([begin[k.name] for k in form.constants])
        theta, cost = _least(
            form,
            error,
            begin=first + shift * rng.normal(0, 1, len(first)),
            centre=centre,
            prior_sd=prior_sd,
            steps=steps,
        )
        return cost, _named(form, theta)

    # The first start tells which kernel the table shows; the others only look for better constants of its form.
    tried = [(*fitted(form, 0.0), form) for form in forms]
    least, best, form = min(tried, key=lambda one: one[0] + (_EVIDENCE if one[2] is not forms[0] else 0.0))
    for _ in range(starts - 1):
        cost, found = fitted(form, _SHIFT)
        if cost < least:
            least, best = cost, found
    return best


def leverage(table: Table, constants: Mapping[str, float], *, device: DeviceSpec, size: int) -> FloatArray:
    """How much of each row's error (n,) its own pull on the fitted constants takes away, from 0 to 1.

    That of a linear fit with the same noise and prior: where few rows fit many constants it is large.
    """
    slopes = sensitivities(table.kind, table.columns, device=device, size=size, constants=constants) / _NOISE
    precision = slopes.T @ slopes + np.eye(slopes.shape[1]) / _PRIOR_SD**2
    own: FloatArray = np.einsum("nk,kn->n", slopes, np.linalg.solve(precision, slopes.T))
    return own


def _named(form: Form, theta: FloatArray) -> dict[str, float]:
    return {k.name: float(np.exp(t)) for k, t in zip(form.constants, theta, strict=True)}


def _least(
    form: Form,
    error: Callable[[Mapping[str, float]], FloatArray],
    *,
    begin: FloatArray,
    centre: FloatArray,
    prior_sd: float,
    steps: int,
) -> tuple[FloatArray, float]:
    """Logarithms of the form's constants (k,) that make an error in log latency (n,) least, and the cost."""
    from scipy.optimize import least_squares

    low: FloatArray = np.log([k.low for k in form.constants])
    high = np.log([k.high for k in form.constants])
    inside = np.clip(centre, low + _EDGE, high - _EDGE)

    def residuals(theta: FloatArray) -> FloatArray:
        return np.concatenate([error(_named(form, theta)) / _NOISE, (theta - inside) / prior_sd])

    found = least_squares(
        residuals,
        np.clip(begin, low + _EDGE, high - _EDGE),
        bounds=(low, high),
        loss="soft_l1",
        diff_step=[1e-3],
        max_nfev=steps,
    )
    return found.x, float(found.cost)
