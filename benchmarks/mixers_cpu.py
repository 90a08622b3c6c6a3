"""Speed of every linear mixer's rule and module on a CPU: chunked against the naive recurrence, and for the gated delta
rule against the PyTorch fallback of transformers.

    python benchmarks/mixers_cpu.py -o benchmarks/results/mixers_cpu.json

d_model 256, 4 heads, 1024 tokens, forward and backward, 2 threads, fp32. The contenders of a row alternate within
one run; the figure is the median of the rounds, five times as many for the bare rule. Correctness comes first: a
contender whose output is not within 1e-4 of the recurrence's stops the run. Wall time and CPU time of the process are
both given: on a shared machine the first holds whatever else ran.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# Threads that spin at barriers stall one another on a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.models.contract import relative_error
from hwsearch.models.mixers import mixer_for
from hwsearch.models.mixers.base import Backend
from hwsearch.searchspace import mixers as specs
from hwsearch.searchspace.mixers import Mixer as Spec

HIDDEN, HEADS, LENGTH = 256, 4, 1024
MIXERS: dict[str, Spec] = {
    "gated_delta_net": specs.GatedDeltaNet(num_k_heads=4, num_v_heads=4, head_k_dim=64, head_v_dim=64),
    "jet_block": specs.JetBlock(num_heads=4, head_k_dim=64, head_v_dim=64),
    "delta_net": specs.DeltaNet(num_heads=4, head_k_dim=64, head_v_dim=64),
    "gla": specs.GLA(num_heads=4, head_k_dim=64, head_v_dim=64),
    "retnet": specs.RetNet(num_heads=4, head_k_dim=64, head_v_dim=64),
    "mamba2": specs.Mamba2(num_heads=4, head_dim=64, state_size=64),
    "rwkv7": specs.RWKV7(num_heads=4, head_dim=64),
    "rg_lru": specs.RGLRU(width=256, num_heads=4),
    "h3": specs.H3(width=256, state_size=16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows = {"gated delta rule": _compare(_rules(), 5 * options.rounds)}
    for name, spec in MIXERS.items():
        rows[name] = _compare(
            {"torch": _module(spec, "torch"), "naive": _module(spec, "reference")}, options.rounds
        )
        print(name, json.dumps(rows[name]), flush=True)
    result = {
        "setting": f"d_model {HIDDEN}, {HEADS} heads, T {LENGTH}, batch 1, forward + backward, fp32, 2 threads",
        "torch": torch.__version__,
        "rounds": options.rounds,
        "median_ms": {name: row["wall_ms"] for name, row in rows.items()},
        "median_cpu_ms": {name: row["cpu_ms"] for name, row in rows.items()},
        "ratios": {name: _ratios(row["wall_ms"]) for name, row in rows.items()},
        "cpu_ratios": {name: _ratios(row["cpu_ms"]) for name, row in rows.items()},
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"wall": result["ratios"], "cpu": result["cpu_ratios"]}))


def _ratios(row: dict[str, float]) -> dict[str, float]:
    """Each contender's time over that of the torch backend."""
    return {other: row[other] / row["torch"] for other in row if other != "torch"}


def _compare(contenders: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each contender, after one warm-up round in which they must agree."""
    outputs = {name: run() for name, run in contenders.items()}
    for name, out in outputs.items():
        error = relative_error(out, outputs["naive"])
        if error > 1e-4:
            raise SystemExit(f"{name} is off by {error:.1e}: nothing is timed")
    clocks = {"wall_ms": time.perf_counter, "cpu_ms": time.process_time}
    samples: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in contenders} for clock in clocks
    }
    for _ in range(rounds):
        for name, run in contenders.items():
            start = {clock: read() for clock, read in clocks.items()}
            run()
            for clock, read in clocks.items():
                samples[clock][name].append(1e3 * (read() - start[clock]))
    return {
        clock: {name: statistics.median(times) for name, times in by_name.items()}
        for clock, by_name in samples.items()
    }


def _rules() -> dict[str, Callable[[], Tensor]]:
    from transformers.models.qwen3_next import modeling_qwen3_next

    # Unwrapped: where fla is importable the decorated function calls Triton, even without a GPU.
    torch_chunk_gated_delta_rule = inspect.unwrap(modeling_qwen3_next.torch_chunk_gated_delta_rule)

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, LENGTH, HEADS, HIDDEN // HEADS, requires_grad=True) for _ in range(3))
    g = (-0.1 * torch.rand(1, LENGTH, HEADS)).requires_grad_()
    beta = torch.rand(1, LENGTH, HEADS, requires_grad=True)

    def trained(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def once() -> Tensor:
            out = run()
            out.square().sum().backward()  # type: ignore[no-untyped-call]
            return out.detach()

        return once

    def fallback() -> Tensor:
        out: Tensor = torch_chunk_gated_delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel=True)[0]
        return out

    return {
        "torch": trained(lambda: delta_rule(q, k, v, g, beta, backend="torch")[0]),
        "transformers": trained(fallback),
        "naive": trained(lambda: delta_rule(q, k, v, g, beta, backend="reference")[0]),
    }


def _module(spec: Spec, backend: Backend) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    mixer = mixer_for(spec, HIDDEN, backend=backend)
    hidden = torch.randn(1, LENGTH, HIDDEN)

    def once() -> Tensor:
        out: Tensor = mixer(hidden)[0]
        out.square().sum().backward()  # type: ignore[no-untyped-call]
        return out.detach()

    return once


if __name__ == "__main__":
    main()
