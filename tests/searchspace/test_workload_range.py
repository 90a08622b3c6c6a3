"""Ranges of workloads."""

from __future__ import annotations

import pytest

from hwsearch.errors import InputError
from hwsearch.searchspace.workload import Workload
from hwsearch.searchspace.workload_range import octaves, read_workloads


def test_a_range_is_doubled_and_holds_both_ends() -> None:
    assert octaves(1, 1) == [1]
    assert octaves(1, 8) == [1, 2, 4, 8]
    assert octaves(3, 20) == [3, 6, 12, 20]


def test_ranges_multiply() -> None:
    found = read_workloads("decode: batch = 1..4, context=1k..2k ,dtype=float32")
    assert [(w.batch, w.context) for w in found] == [(b, c) for b in (1, 2, 4) for c in (1024, 2048)]
    assert {w.dtype for w in found} == {"float32"}
    text = "prefill:batch=2,context=4k,chunk=1k"
    assert read_workloads(text) == [Workload.from_text(text)]
    assert [w.chunk for w in read_workloads("prefill:batch=1,context=4k,chunk=1k..2k")] == [1024, 2048]


@pytest.mark.parametrize(
    "text",
    [
        "decode:batch=8..1,context=1k",
        "decode:batch=0..4,context=1k",
        "decode:batch=1..,context=1k",
        "decode:batch=a..b,context=1k",
        "decode:batch=1..2..4,context=1k",
        "decode:batch=1..max,context=1k",
        "sleep:batch=1..4,context=1k",
        "decode:batch=1..4,context=1k,{}=3",
    ],
)
def test_nonsense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="for example decode:batch="):
        read_workloads(text)


def test_thousands_of_workloads_are_refused() -> None:
    text = "prefill:batch=1..1m,context=1..1m,chunk=1m..1024m"
    with pytest.raises(InputError, match=r"4851 workloads, more than 4096"):
        read_workloads(text)
