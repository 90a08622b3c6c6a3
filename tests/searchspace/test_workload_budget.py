"""Workloads and budgets as users write them."""

from __future__ import annotations

import pytest

from hwsearch.errors import InputError
from hwsearch.operators import columns, kind_named
from hwsearch.searchspace.budget import parse_budget
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload, read_workload


def test_a_workload_reads_its_own_text() -> None:
    workload = Workload.from_text("decode:batch=16,context=32k")
    assert (workload.batch, workload.context, workload.tokens) == (16, 32768, 16)
    assert Workload.from_text(str(workload)) == workload
    assert Workload.from_text("prefill:batch=2,context=8", dtype="float32").element_bytes == 4
    assert Workload.from_text("prefill:batch=2,context=8").tokens == 16


def test_a_chunked_prefill_reads_its_own_text_and_passes_every_token_once() -> None:
    workload = Workload.from_text("prefill:batch=2,context=5000,chunk=2k")
    assert Workload.from_text(str(workload)) == workload
    assert [(p.past, p.context) for p in workload.passes] == [(0, 2048), (2048, 2048), (4096, 904)]
    assert sum(p.tokens for p in workload.passes) == workload.tokens == 10000
    assert workload.pass_tokens == 2 * 2048
    whole = Workload.from_text("prefill:batch=2,context=5000")
    assert whole.passes == (whole,)
    assert whole.pass_tokens == whole.tokens


@pytest.mark.parametrize("name", ["Qwen3-1.7B", "jet-nemotron-2b"])
def test_chunks_attend_to_what_the_whole_prefill_attends_to(name: str) -> None:
    """FLOPs of gemms and attention do not depend on how a prompt is cut."""
    architecture = architecture_named(name)

    def flops(text: str) -> dict[str, float]:
        total: dict[str, float] = {}
        for layer in architecture.layers:
            for op in layer.lower(architecture.base.hidden_size, Workload.from_text(text)):
                added = kind_named(op.kind).flops(columns(op.kind, [op.dims]))
                total[op.kind] = total.get(op.kind, 0.0) + float(added[0])
        return total

    whole, cut = flops("prefill:batch=2,context=6k"), flops("prefill:batch=2,context=6k,chunk=2k")
    for kind in ("gemm", "context_attention"):
        assert cut[kind] == pytest.approx(whole[kind])


def test_the_largest_batch_is_read_but_left_to_whoever_knows_the_architecture() -> None:
    workload, largest = read_workload("decode:batch=max,context=64k")
    assert largest
    assert workload.batch == 1
    with pytest.raises(InputError, match="only hwsearch predict takes it"):
        Workload.from_text("decode:batch=max,context=64k")


@pytest.mark.parametrize(
    "text",
    ["", "decode", "decode:batch=0,context=8", "decode:batch=-1,context=8", "train:batch=1,context=8",
     "decode:batch=1,context=8,batch=2", "decode:batch=1", "decode:batch=x,context=8",
     "decode:batch=1,context=8,chunk=4", "prefill:batch=1,context=8,chunk=0", "prefill:batch=1,context=8,chunk=max",
     "prefill:batch=1,context=256k,chunk=1", "prefill:batch=1,context=8,past=8", "decode:batch=max,context=8,batch=2",
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
