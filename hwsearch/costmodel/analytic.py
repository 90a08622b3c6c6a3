"""Analytic latency of each operator family, with a few physical constants that calibration.py fits.

Functions work on whole columns of dimensions and return milliseconds; hwsearch/costmodel/forms has one file per
kind of kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from hwsearch.costmodel.forms.chunked import chunked
from hwsearch.costmodel.forms.common import Constant, Constants, FloatArray, Form
from hwsearch.costmodel.forms.context_attention import CONTEXT_ATTENTION
from hwsearch.costmodel.forms.cpu import CPU_FORMS
from hwsearch.costmodel.forms.delta_rule import DELTA_RULE_PREFILL
from hwsearch.costmodel.forms.flash_attention_2 import FLASH_ATTENTION_2_DECODE
from hwsearch.costmodel.forms.gemm import GEMM, GEMM_POWERS_OF_TWO
from hwsearch.costmodel.forms.generation_attention import GENERATION_ATTENTION
from hwsearch.costmodel.forms.moe import MOE
from hwsearch.costmodel.forms.streaming import streaming
from hwsearch.operators import Columns
from hwsearch.records import DeviceKind, DeviceSpec

__all__ = [
    "FORMS",
    "Constant",
    "Constants",
    "Form",
    "analytic_ms",
    "analytic_of",
    "form_with",
    "forms_of",
    "sensitivities",
]

FORMS: Mapping[str, Form] = {
    "gemm": GEMM,
    "context_attention": CONTEXT_ATTENTION,
    "generation_attention": GENERATION_ATTENTION,
    "delta_rule_prefill": DELTA_RULE_PREFILL,
    "delta_rule_decode": streaming(
        "delta_rule_decode",
        lambda c: c["batch"] * c["num_v_heads"] * np.ceil(c["head_v_dim"] / 32),
        resident=8,
    ),
    **{
        kind: chunked(kind)
        for kind in (
            "linear_attention_prefill",
            "rwkv7_prefill",
            "diagonal_scan_prefill",
            "diagonal_ssm_prefill",
        )
    },
    "linear_attention_decode": streaming(
        "linear_attention_decode",
        lambda c: c["batch"] * c["num_v_heads"] * np.ceil(c["head_v_dim"] / 32),
    ),
    "rwkv7_decode": streaming(
        "rwkv7_decode", lambda c: c["batch"] * c["num_heads"] * np.ceil(c["head_v_dim"] / 32)
    ),
    "diagonal_scan_decode": streaming(
        "diagonal_scan_decode", lambda c: c["batch"] * np.ceil(c["channels"] / 256)
    ),
    "diagonal_ssm_decode": streaming(
        "diagonal_ssm_decode", lambda c: c["batch"] * np.ceil(c["channels"] / 256)
    ),
    "short_conv_prefill": streaming(
        "short_conv_prefill",
        lambda c: c["batch"] * np.ceil(c["seq_len"] / 8) * np.ceil(c["channels"] / 256),
    ),
    "short_conv_decode": streaming("short_conv_decode", lambda c: c["batch"] * np.ceil(c["channels"] / 256)),
    "elementwise": streaming("elementwise", lambda c: c["rows"] * np.ceil(c["width"] / 4096)),
    "moe": MOE,
}

_STEP = 1e-3  # of a constant's logarithm, for derivatives

_OTHER_KERNELS: Mapping[str, tuple[Form, ...]] = {
    "gemm": (GEMM_POWERS_OF_TWO,),
    "generation_attention": (FLASH_ATTENTION_2_DECODE,),
}


def forms_of(kind: str, *, on: DeviceKind = "gpu") -> tuple[Form, ...]:
    """The forms of a family on a kind of device: the usual one, then those of other kernels that some run instead."""
    return (CPU_FORMS[kind],) if on == "cpu" else (FORMS[kind], *_OTHER_KERNELS.get(kind, ()))


def form_with(kind: str, constants: Iterable[str]) -> Form | None:
    """The form of a family that has exactly the constants of these names; None where no kernel's has."""
    names = set(constants)
    known = (*forms_of(kind), *forms_of(kind, on="cpu"))
    return next((form for form in known if {k.name for k in form.constants} == names), None)


def analytic_ms(kind: str, c: Columns, *, device: DeviceSpec, size: int, constants: Constants) -> FloatArray:
    """Milliseconds (n,) of the calibrated form that has these constants; `size` is the bytes per element."""
    form = form_with(kind, constants)
    assert form is not None, f"no form of {kind} has the constants {', '.join(sorted(constants))}"
    return 1e3 * form.seconds(c, device, size, constants)


def analytic_of(
    form: Form, c: Columns, *, device: DeviceSpec, size: int
) -> Callable[[Constants], FloatArray]:
    """Milliseconds (n,) of a form by its constants, for those who ask for the same columns again and again."""
    if form.prepared is None:
        seconds: Callable[[Constants], FloatArray] = partial(form.seconds, c, device, size)
    else:
        seconds = form.prepared(c, device, size)
    return lambda constants: 1e3 * seconds(constants)


def sensitivities(
    kind: str, c: Columns, *, device: DeviceSpec, size: int, constants: Constants
) -> FloatArray:
    """Derivatives (n, constants) of the form's log latency to the logarithms of its constants.

    Kernels that the form chooses are held, so that one search serves all constants.
    """
    form = form_with(kind, constants)
    assert form is not None, f"no form of {kind} has the constants {', '.join(sorted(constants))}"
    seconds: Callable[[Constants], FloatArray] = partial(form.seconds, c, device, size)
    if form.settled is not None:
        seconds = form.settled(c, device, size, constants)
    base = np.log(seconds(constants))
    slopes = [
        np.log(seconds({**constants, k.name: constants[k.name] * float(np.exp(_STEP))})) - base
        for k in form.constants
    ]
    return np.stack(slopes, axis=1) / _STEP
