"""JetBlock's kernels on a GPU beside the unfused design and fla; correctness before speed, every case recorded.

    python benchmarks/gpu/kernels.py --device cuda:0 -o benchmarks/results/gpu_kernels.json

d_K 96, d_V 256, 12 heads, bf16. Cases: the decode step at batch 1 to 1024 against convolution, gated delta rule (fla)
and norm in launches of their own; the prefill of the dynamic convolution; prefill of the JetBlock module against the
gated DeltaNet module of the same size; CUDA-graph capture of every mixer's decode. Times are medians of CUDA events
with L2 flushed. Bandwidths are shares of a device copy measured in the same run. A case that fails is a row with its
error.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.kernels.dynamic_conv import dynamic_conv
from hwsearch.kernels.jet_step import JetParameters, JetToken, jet_step, log_decay
from hwsearch.models.contract import relative_error
from hwsearch.models.mixers import mixer_for
from hwsearch.profilers.environment import environment, torch_device
from hwsearch.searchspace import mixers as specs
from hwsearch.searchspace.mixers import Mixer as Spec

HEADS, KEY, VALUE, WIDTH, HIDDEN = 12, 96, 256, 4, 1536
Row = dict[str, object]
DECODED: dict[str, Spec] = {
    "gated_delta_net": specs.GatedDeltaNet(num_k_heads=12, num_v_heads=12, head_k_dim=96, head_v_dim=256),
    "jet_block": specs.JetBlock(num_heads=12, head_k_dim=96, head_v_dim=256),
    "delta_net": specs.DeltaNet(num_heads=12, head_k_dim=96, head_v_dim=256),
    "gla": specs.GLA(num_heads=12, head_k_dim=96, head_v_dim=256),
    "retnet": specs.RetNet(num_heads=12, head_k_dim=96, head_v_dim=256),
    "mamba2": specs.Mamba2(num_heads=48, head_dim=64),
    "rwkv7": specs.RWKV7(num_heads=24, head_dim=64),
    "rg_lru": specs.RGLRU(width=1536, num_heads=12),
    "h3": specs.H3(width=1536),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    device = torch_device(options.device)
    torch.cuda.set_device(device)
    copy_rate = _copy_rate(device)
    cases: dict[str, Callable[[], Row]] = {}
    for batch in (1, 4, 16, 64, 128, 256, 512, 1024):
        cases[f"decode step, batch {batch}"] = partial(_step_case, batch, device, copy_rate)
    for batch, length in ((8, 4096), (1, 65536)):
        cases[f"dynamic convolution, {batch} x {length}"] = partial(
            _conv_case, batch, length, device, copy_rate
        )
        cases[f"block prefill, {batch} x {length}"] = partial(_prefill_case, batch, length, device)
    for name, spec in DECODED.items():
        cases[f"graph capture, {name}"] = partial(_graph_case, spec, device)
    rows: dict[str, Row] = {}
    for name, case in cases.items():
        try:
            with torch.no_grad():
                rows[name] = {"status": "ok", **case()}
        except (RuntimeError, ValueError, AssertionError, ImportError) as error:
            rows[name] = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        print(name, json.dumps(rows[name]), flush=True)
        torch.cuda.empty_cache()
    place = environment(device)
    result = {
        "device_name": place.device_name,
        "driver": place.driver,
        "runtime": place.runtime,
        "versions": dict(place.versions),
        "copy_bytes_per_s": copy_rate,
        "rows": rows,
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"ok": sum(row["status"] == "ok" for row in rows.values()), "of": len(rows)}))


def _time_ms(function: Callable[[], object], *, repeats: int = 30) -> float:
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


def _captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
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


def _copy_rate(device: torch.device) -> float:
    """Bytes read plus written per second by a copy of 2 GiB."""
    source = torch.empty(2**31, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * float(source.numel()) / (_time_ms(lambda: target.copy_(source)) / 1e3)


def _token(batch: int, device: torch.device) -> tuple[JetToken, JetParameters, Tensor, Tensor]:
    torch.manual_seed(batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    token = JetToken(
        q_BHK=normal(batch, HEADS, KEY),
        k_BHK=normal(batch, HEADS, KEY),
        v_BHV=normal(batch, HEADS, VALUE),
        taps_BDW=normal(batch, HEADS * VALUE, WIDTH),
        a_BH=normal(batch, HEADS),
        b_BH=normal(batch, HEADS),
        gate_BHV=normal(batch, HEADS, VALUE),
    )
    parameters = JetParameters(normal(HEADS), normal(HEADS), normal(VALUE), 1e-6)
    state = torch.randn(batch, HEADS, KEY, VALUE, device=device)
    return token, parameters, state, normal(batch, WIDTH, HEADS * VALUE)


def _step_case(batch: int, device: torch.device, copy_rate: float) -> Row:
    token, parameters, state, conv_state = _token(batch, device)
    fused = jet_step(token, parameters, state_BHKV=state, conv_state_BWD=conv_state, backend="triton")
    wide = JetToken(**{name: value.double() for name, value in vars(token).items()})
    exact = jet_step(
        wide,
        JetParameters(
            parameters.A_log_H.double(),
            parameters.dt_bias_H.double(),
            parameters.norm_weight_V.double(),
            parameters.norm_eps,
        ),
        state_BHKV=state.double(),
        conv_state_BWD=conv_state.double(),
        backend="reference",
    )
    errors = [relative_error(ours, expected) for ours, expected in zip(fused, exact, strict=True)]
    if max(errors) > 1e-2:
        raise AssertionError(f"relative errors {errors}")
    del wide, exact, fused

    def one_launch() -> object:
        return jet_step(
            token,
            parameters,
            state_BHKV=state,
            conv_state_BWD=conv_state,
            in_place=True,
            backend="triton",
        )

    def unfused() -> object:
        v, _ = dynamic_conv(token.v_BHV.flatten(1)[:, None], token.taps_BDW[:, None], state_BWD=conv_state)
        out, _ = delta_rule(
            F.silu(token.q_BHK)[:, None],
            F.silu(token.k_BHK)[:, None],
            v.view(batch, 1, HEADS, VALUE),
            log_decay(token.a_BH, parameters.A_log_H, parameters.dt_bias_H)[:, None],
            token.b_BH.sigmoid()[:, None],
            state_BHKV=state,
            backend="fla",
        )
        return F.rms_norm(out, (VALUE,), parameters.norm_weight_V, 1e-6) * F.silu(token.gate_BHV)[:, None]

    graphs = [_captured(run) for run in (one_launch, unfused)]
    fused_ms, unfused_ms = (_time_ms(graph.replay) for graph in graphs)
    moved = 2 * state.numel() * state.element_size()
    return {
        "fused_ms": fused_ms,
        "unfused_ms": unfused_ms,
        "speedup": unfused_ms / fused_ms,
        "share_of_copy_bandwidth": moved / (fused_ms / 1e3) / copy_rate,
        "relative_error": max(errors),
    }


def _conv_case(batch: int, length: int, device: torch.device, copy_rate: float) -> Row:
    x = torch.randn(batch, length, HEADS * VALUE, device=device, dtype=torch.bfloat16)
    taps = torch.randn(*x.shape, WIDTH, device=device, dtype=torch.bfloat16)
    # One sequence's head against the definition: its tokens see nothing of the rest.
    head = slice(0, 256)
    ours, _ = dynamic_conv(x, taps, backend="triton")
    expected, _ = dynamic_conv(x[:, head].double(), taps[:, head].double(), backend="reference")
    error = relative_error(ours[:, head], expected)
    if error > 1e-2:
        raise AssertionError(f"relative error {error}")
    elapsed = _time_ms(lambda: dynamic_conv(x, taps, backend="triton"))
    moved = x.element_size() * (2 * x.numel() + taps.numel())
    return {
        "ms": elapsed,
        "share_of_copy_bandwidth": moved / (elapsed / 1e3) / copy_rate,
        "relative_error": error,
    }


def _prefill_case(batch: int, length: int, device: torch.device) -> Row:
    hidden = torch.randn(batch, length, HIDDEN, device=device, dtype=torch.bfloat16)
    row: Row = {}
    for name in ("jet_block", "gated_delta_net"):
        torch.manual_seed(0)
        mixer = mixer_for(DECODED[name], HIDDEN).to(device, torch.bfloat16)
        short = hidden[:1, :300]
        ours = mixer(short)[0]
        mixer.backend = "reference"
        error = relative_error(ours, mixer(short)[0])
        if error > 2e-2:
            raise AssertionError(f"{name}: relative error {error}")
        mixer.backend = "auto"
        row[f"{name}_ms"] = _time_ms(partial(mixer, hidden), repeats=10)
        row[f"{name}_kernel"] = mixer.kernel_used
    return row


def _graph_case(spec: Spec, device: torch.device) -> Row:
    torch.manual_seed(0)
    mixer = mixer_for(spec, HIDDEN).to(device, torch.bfloat16)
    prompt = torch.randn(64, 70, HIDDEN, device=device, dtype=torch.bfloat16)
    _, state = mixer(prompt, state=mixer.new_state(64, device=device, dtype=torch.bfloat16))
    token = torch.randn(64, 1, HIDDEN, device=device, dtype=torch.bfloat16)
    held: list[Tensor] = []
    graph = _captured(lambda: held.append(mixer(token, state=state)[0]))
    graph.replay()
    torch.cuda.synchronize()
    error = relative_error(held[-1], mixer(token, state=state)[0])
    if error > 1e-2:
        raise AssertionError(f"the graph's output is off by {error}")
    return {"ms": _time_ms(graph.replay), "kernel": mixer.kernel_used, "relative_error": error}


if __name__ == "__main__":
    main()
