"""Analytic latency forms of a CPU's kernels, one for every kind of operator."""

from __future__ import annotations

from collections.abc import Mapping

from hwsearch.costmodel.forms.common import Form
from hwsearch.costmodel.forms.cpu.attention import CONTEXT_ATTENTION, GENERATION_ATTENTION
from hwsearch.costmodel.forms.cpu.products import GEMM
from hwsearch.costmodel.forms.cpu.recurrent import DELTA_RULE_DECODE, DELTA_RULE_PREFILL, chunked, stepped
from hwsearch.costmodel.forms.cpu.streaming import ELEMENTWISE, SHORT_CONV_DECODE, SHORT_CONV_PREFILL

__all__ = ["CPU_FORMS"]

_OTHERS = ("linear_attention", "rwkv7", "diagonal_scan", "diagonal_ssm")

CPU_FORMS: Mapping[str, Form] = {
    "gemm": GEMM,
    "context_attention": CONTEXT_ATTENTION,
    "generation_attention": GENERATION_ATTENTION,
    "delta_rule_prefill": DELTA_RULE_PREFILL,
    "delta_rule_decode": DELTA_RULE_DECODE,
    "short_conv_prefill": SHORT_CONV_PREFILL,
    "short_conv_decode": SHORT_CONV_DECODE,
    "elementwise": ELEMENTWISE,
    **{f"{family}_prefill": chunked(f"{family}_prefill") for family in _OTHERS},
    **{f"{family}_decode": stepped(f"{family}_decode") for family in _OTHERS},
    "moe": stepped("moe"),
}
