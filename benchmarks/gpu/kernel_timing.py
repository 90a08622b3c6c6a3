"""Times on a GPU: CUDA events around graph replays, the L2 cache flushed before each."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

Row = dict[str, object]


def time_ms(function: Callable[[], object], *, repeats: int = 30) -> float:
    """Median milliseconds on the device, the L2 cache flushed before each."""
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    for _ in range(5):
        function()
    samples: list[float] = []
    for _ in range(repeats):
        flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(stop))
    return statistics.median(samples)


def captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The function as a graph, after a warm-up on a side stream."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def copy_rate_of(device: torch.device) -> float:
    """Bytes read plus written per second by a copy of 2 GiB."""
    source = torch.empty(2**31, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * float(source.numel()) / (time_ms(lambda: target.copy_(source)) / 1e3)


def timed(runs: dict[str, Callable[[], object]]) -> Row:
    """Each as a captured graph, timed one after the other, the first a second time at the end."""
    graphs = {name: captured(run) for name, run in runs.items()}
    times: Row = {f"{name}_ms": time_ms(graph.replay) for name, graph in graphs.items()}
    first = next(iter(graphs))
    times[f"{first}_again_ms"] = time_ms(graphs[first].replay)
    return times


def against_copy(row: Row, name: str, state: Tensor, copy_rate: float) -> float:
    """The share of the copy bandwidth at which a step reads and writes its state."""
    elapsed = row[f"{name}_ms"]
    assert isinstance(elapsed, float)
    return 2 * state.numel() * state.element_size() / (elapsed / 1e3) / copy_rate
