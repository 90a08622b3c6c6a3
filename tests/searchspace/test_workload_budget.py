"""Workloads and budgets as users write them."""

from __future__ import annotations

import pytest

from hwsearch.errors import InputError
from hwsearch.searchspace.budget import parse_budget
from hwsearch.searchspace.workload import Workload


def test_a_workload_reads_its_own_text() -> None:
    workload = Workload.from_text("decode:batch=16,context=32k")
    assert (workload.batch, workload.context, workload.tokens) == (16, 32768, 16)
    assert Workload.from_text(str(workload)) == workload
    assert Workload.from_text("prefill:batch=2,context=8", dtype="float32").element_bytes == 4
    assert Workload.from_text("prefill:batch=2,context=8").tokens == 16


@pytest.mark.parametrize(
    "text",
    ["", "decode", "decode:batch=0,context=8", "decode:batch=-1,context=8", "train:batch=1,context=8",
     "decode:batch=1,context=8,batch=2", "decode:batch=1", "decode:batch=x,context=8",
     "decode:batch=1,context=8,foo=2", "decode:batch=1,context=8,dtype=int3"],
)  # fmt: skip
def test_a_wrong_workload_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"write for example decode:batch=16,context=32768|unknown dtype"):
        Workload.from_text(text)


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        ("latency<=12ms", "latency", 12.0),
        ("latency <= 0.5 s", "latency", 500.0),
        ("memory<=70GiB", "memory", 70 * 2**30),
        ("throughput>=5e3", "throughput", 5000.0),
        ("full_attention<=4", "full_attention", 4.0),
        ("none>=0", "none", 0.0),
    ],
)
def test_budgets_are_read_into_base_units(text: str, metric: str, value: float) -> None:
    budget = parse_budget(text)
    assert budget.metric == metric
    assert budget.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("latency<=-3ms", "must be above 0"),
        ("latency<=12", "unit"),
        ("memory<=70ms", "unit"),
        ("latency>=3ms", "latency takes <="),
        ("throughput<=3", "throughput takes >="),
        ("latancy<=3ms", "did you mean latency"),
        ("full_attention<=1.5", "whole"),
        ("full_attention<=-1", "at least 0"),
        ("latency=3ms", "cannot read"),
        ("latency<=1.2.3ms", "not a number"),
    ],
)
def test_wrong_budgets_say_what_to_write(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_budget(text)
