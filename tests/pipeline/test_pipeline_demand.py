"""Demand: shares of time, and what is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.roofline import roofline_ms
from hwsearch.operators import columns, operator
from hwsearch.pipeline.demand import demand_of, operators_of, spread_demand
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.workload import Workload

DEVICE = device_named("h100-sxm")
BASE = base_named("Qwen2.5-1.5B")


def test_shares_are_of_time_and_of_all_workloads_alike() -> None:
    space = space_named("postnas", BASE)
    workloads = [Workload.from_text(f"decode:batch={b},context=4k") for b in (1, 64)]
    demand = demand_of([space], workloads, device=DEVICE)
    assert set(demand.operators) == set(operators_of(space, workloads))
    assert demand.share.sum() == pytest.approx(1)
    assert (demand.share > 0).all()
    # The LM head is called once for each workload; its share is its time over that of an average architecture.
    head = operator("gemm", m=1, n=BASE.vocab_size, k=BASE.hidden_size)
    alone = demand_of([space], workloads[:1], device=DEVICE)
    share = dict(zip(demand.operators, demand.share, strict=True))[head]
    assert share == pytest.approx(dict(zip(alone.operators, alone.share, strict=True))[head] / 2)
    time = roofline_ms("gemm", columns("gemm", [head.dims]), device=DEVICE, size=2)[0]
    layers = np.zeros(len(space.choices))
    for i, choice in enumerate(space.choices):
        for each in choice.lower(BASE.hidden_size, workloads[0]):
            layers[i] += roofline_ms(each.kind, columns(each.kind, [each.dims]), device=DEVICE, size=2)[0]
    whole = BASE.num_layers * layers.mean() + time
    assert share * 2 == pytest.approx(time / whole, rel=0.02)  # embedding and last norm beside the head


def test_two_spaces_share_the_time() -> None:
    spaces = [space_named("postnas", base_named(name)) for name in ("Qwen2.5-1.5B", "Qwen3-1.7B")]
    workload = Workload.from_text("decode:batch=8,context=4k")
    both = demand_of(spaces, [workload], device=DEVICE)
    assert both.share.sum() == pytest.approx(1)
    assert set(both.operators) == {each for space in spaces for each in operators_of(space, [workload])}


def test_what_does_not_fit_is_known_beforehand() -> None:
    space = space_named("postnas", BASE)
    demand = demand_of([space], [Workload.from_text("decode:batch=256,context=128k")], device=DEVICE)
    small = replace(DEVICE, memory_bytes=2**30)
    large = demand.too_large(small)
    assert {each.kind for each in large} == {"generation_attention"}
    rest = demand.without(large)
    assert len(rest) == len(demand) - len(large)
    assert rest.too_large(small) == set()


def test_a_spread_counts_every_kind_the_same() -> None:
    gemms = [operator("gemm", m=m, n=8, k=8) for m in (1, 2, 3)]
    demand = spread_demand([*gemms, gemms[0], operator("short_conv_decode", batch=1, channels=8, width=4)])
    assert demand.share.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
