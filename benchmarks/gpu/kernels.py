"""JetBlock's kernels on a GPU beside the unfused design and fla; correctness before speed, every case recorded.

    python benchmarks/gpu/kernels.py -o benchmarks/results/gpu_kernels.json
    python benchmarks/gpu/kernels.py --section tiles       # one section only

d_K 96, d_V 256, 12 heads, bf16. Sections, each in a process of its own, so that a kernel that hangs or breaks the
device takes no other with it; the file is written after every case, and a case that fails is a row with its error:
  step         JetBlock's decode step at batch 1 to 1024, against convolution, gated delta rule and norm apart
  delta_step   the plain step of the gated delta rule, ours against fla's
  convolution  prefill of the dynamic convolution
  prefill      the JetBlock module against the gated DeltaNet module of the same size
  graphs       CUDA-graph capture of every mixer's decode
  window       prefill of sliding-window attention: SDPA block by block against compiled FlexAttention
  tiles        tile and warps of both step kernels: what to set TILE and WARPS to
Times are medians of CUDA events around graph replays, with L2 flushed before each; `again` is a second measurement of
the same graph, so differences below theirs are noise. Bandwidths are shares of a 2 GiB device copy measured by the
same section; `copy_ms` copies as many bytes as the step's state has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hwsearch.kernels.attention import attention
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


BATCHES = (1, 4, 16, 64, 128, 256, 512, 1024)
TILES = [(tile, warps) for tile in (1024, 2048, 4096, 8192, 16384) for warps in (2, 4, 8)]
# Seconds until a section is stopped; together under ten minutes. fla tunes its prefill kernels at their first call.
SECONDS = {
    "step": 90,
    "delta_step": 60,
    "convolution": 40,
    "prefill": 180,
    "graphs": 80,
    "window": 50,
    "tiles": 90,
}
Cases = Iterator[tuple[str, Callable[[], Row]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_kernels.json"))
    parser.add_argument("--section", choices=SECTIONS)
    options = parser.parse_args()
    if options.section:
        _run_section(options.section, options.device, options.output)
        return
    torch_device(options.device)  # refuses here what would fail in every section
    options.output.parent.mkdir(parents=True, exist_ok=True)
    _write(options.output, {"rows": {}})
    for section in SECTIONS:
        command = [sys.executable, __file__, "--section", section, "--device", options.device]
        try:
            code = subprocess.run(
                [*command, "-o", str(options.output)], timeout=SECONDS[section], check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
        if code:
            result = json.loads(options.output.read_text(encoding="utf-8"))
            result["rows"][f"section {section}"] = {"status": "failed", "reason": f"exit status {code}"}
            _write(options.output, result)
    rows = json.loads(options.output.read_text(encoding="utf-8"))["rows"]
    for name, row in rows.items():
        print(name, json.dumps(row))
    print(json.dumps({"ok": sum(row["status"] == "ok" for row in rows.values()), "of": len(rows)}))


def _run_section(section: str, device_name: str, output: Path) -> None:
    from triton.errors import TritonError

    device = torch_device(device_name)
    torch.cuda.set_device(device)
    place, copy_rate = environment(device), _copy_rate(device)
    result = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"rows": {}}
    result |= {
        "device_name": place.device_name,
        "driver": place.driver,
        "runtime": place.runtime,
        "versions": dict(place.versions),
    }
    result.setdefault("copy_bytes_per_s", {})[section] = copy_rate
    for name, case in SECTIONS[section](device, copy_rate):
        try:
            with torch.no_grad():
                row = {"status": "ok", **case()}
        except (
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
            AssertionError,
            ImportError,
            TritonError,
        ) as error:
            row = {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
        result["rows"][name] = row
        _write(output, result)
        print(name, json.dumps(row), flush=True)
        torch.cuda.empty_cache()


def _write(path: Path, result: dict[str, object]) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def _steps(device: torch.device, copy_rate: float) -> Cases:
    for batch in BATCHES:
        yield f"decode step, batch {batch}", partial(_step_case, batch, device, copy_rate)


def _delta_steps(device: torch.device, copy_rate: float) -> Cases:
    for batch in BATCHES:
        yield f"delta step, batch {batch}", partial(_delta_case, batch, device, copy_rate)


def _windows(device: torch.device, copy_rate: float) -> Cases:
    for batch, length in ((8, 4096), (1, 65536)):
        yield f"window attention, {batch} x {length}", partial(_window_case, batch, length, device)


def _tiles(device: torch.device, copy_rate: float) -> Cases:
    for batch in (1, 64, 512):
        for tile, warps in TILES:
            case = partial(_tile_case, batch, tile, warps, device, copy_rate)
            yield f"tile {tile}, {warps} warps, batch {batch}", case


def _convolutions(device: torch.device, copy_rate: float) -> Cases:
    for batch, length in ((8, 4096), (1, 65536)):
        yield (
            f"dynamic convolution, {batch} x {length}",
            partial(_conv_case, batch, length, device, copy_rate),
        )


def _prefills(device: torch.device, copy_rate: float) -> Cases:
    for batch, length in ((8, 4096), (1, 65536)):
        yield f"block prefill, {batch} x {length}", partial(_prefill_case, batch, length, device)


def _graphs(device: torch.device, copy_rate: float) -> Cases:
    for name, spec in DECODED.items():
        yield f"graph capture, {name}", partial(_graph_case, spec, device)


SECTIONS: dict[str, Callable[[torch.device, float], Cases]] = {
    "step": _steps,
    "delta_step": _delta_steps,
    "convolution": _convolutions,
    "prefill": _prefills,
    "graphs": _graphs,
    "window": _windows,
    "tiles": _tiles,
}


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


def _timed(runs: dict[str, Callable[[], object]]) -> Row:
    """Each as a captured graph, timed one after the other, the first a second time at the end."""
    graphs = {name: _captured(run) for name, run in runs.items()}
    times: Row = {f"{name}_ms": _time_ms(graph.replay) for name, graph in graphs.items()}
    first = next(iter(graphs))
    times[f"{first}_again_ms"] = _time_ms(graphs[first].replay)
    return times


def _against_copy(row: Row, name: str, state: Tensor, copy_rate: float) -> float:
    """The share of the copy bandwidth at which a step reads and writes its state."""
    elapsed = row[f"{name}_ms"]
    assert isinstance(elapsed, float)
    return 2 * state.numel() * state.element_size() / (elapsed / 1e3) / copy_rate


def _check_step(
    token: JetToken,
    parameters: JetParameters,
    states: tuple[Tensor, Tensor],
    found: tuple[Tensor, Tensor, Tensor],
) -> float:
    """The largest relative error against the fp64 reference; AssertionError above 1e-2."""
    exact = jet_step(
        JetToken(**{name: value.double() for name, value in vars(token).items()}),
        JetParameters(
            parameters.A_log_H.double(),
            parameters.dt_bias_H.double(),
            parameters.norm_weight_V.double(),
            parameters.norm_eps,
        ),
        state_BHKV=states[0].double(),
        conv_state_BWD=states[1].double(),
        backend="reference",
    )
    error = max(relative_error(ours, expected) for ours, expected in zip(found, exact, strict=True))
    if not error <= 1e-2:
        raise AssertionError(f"relative error {error}")
    return error


def _step_case(batch: int, device: torch.device, copy_rate: float) -> Row:
    token, parameters, state, conv_state = _token(batch, device)
    fused = jet_step(token, parameters, state_BHKV=state, conv_state_BWD=conv_state, backend="triton")
    error = _check_step(token, parameters, (state, conv_state), fused)
    del fused

    def one_launch() -> object:
        return jet_step(
            token,
            parameters,
            state_BHKV=state,
            conv_state_BWD=conv_state,
            in_place=True,
            backend="triton",
        )

    def unfused(rule: str) -> object:
        v, _ = dynamic_conv(token.v_BHV.flatten(1)[:, None], token.taps_BDW[:, None], state_BWD=conv_state)
        out, _ = delta_rule(
            F.silu(token.q_BHK)[:, None],
            F.silu(token.k_BHK)[:, None],
            v.view(batch, 1, HEADS, VALUE),
            log_decay(token.a_BH, parameters.A_log_H, parameters.dt_bias_H)[:, None],
            token.b_BH.sigmoid()[:, None],
            state_BHKV=state,
            backend=rule,
        )
        return F.rms_norm(out, (VALUE,), parameters.norm_weight_V, 1e-6) * F.silu(token.gate_BHV)[:, None]

    target = torch.empty_like(state)
    row = _timed(
        {
            "fused": one_launch,
            "unfused_fla": partial(unfused, "fla"),
            "unfused_triton": partial(unfused, "triton"),
            "copy": lambda: target.copy_(state),
        }
    )
    return {
        **row,
        "share_of_copy_bandwidth": _against_copy(row, "fused", state, copy_rate),
        "relative_error": error,
    }


def _delta_case(batch: int, device: torch.device, copy_rate: float) -> Row:
    from hwsearch.kernels.delta_rule.triton import fused_delta_step

    token, parameters, state, _ = _token(batch, device)
    g = log_decay(token.a_BH, parameters.A_log_H, parameters.dt_bias_H)
    tokens = (token.q_BHK, token.k_BHK, token.v_BHV, g, token.b_BH.sigmoid())
    exact, _ = delta_rule(
        *(x[:, None].double() for x in tokens), state_BHKV=state.double(), backend="reference"
    )
    errors = {}
    for name in ("triton", "fla"):
        ours, _ = delta_rule(*(x[:, None] for x in tokens), state_BHKV=state, backend=name)
        errors[name] = relative_error(ours, exact)
    if not max(errors.values()) <= 1e-2:
        raise AssertionError(f"relative errors {errors}")
    row = _timed(
        {
            "triton": lambda: fused_delta_step(*tokens, state, in_place=True),
            "fla": lambda: delta_rule(*(x[:, None] for x in tokens), state_BHKV=state, backend="fla"),
        }
    )
    return {
        **row,
        "triton_share": _against_copy(row, "triton", state, copy_rate),
        "fla_share": _against_copy(row, "fla", state, copy_rate),
        "relative_errors": errors,
    }


def _tile_case(batch: int, tile: int, warps: int, device: torch.device, copy_rate: float) -> Row:
    from hwsearch.kernels.delta_rule.triton import fused_delta_step
    from hwsearch.kernels.jet_step.triton import fused_jet_step

    token, parameters, state, conv_state = _token(batch, device)
    found = fused_jet_step(token, parameters, state, conv_state, False, tile=tile, num_warps=warps)
    error = _check_step(token, parameters, (state, conv_state), found)
    tokens = (token.q_BHK, token.k_BHK, token.v_BHV, -token.a_BH.float().abs(), token.b_BH.sigmoid())
    row = _timed(
        {
            "jet": lambda: fused_jet_step(
                token, parameters, state, conv_state, True, tile=tile, num_warps=warps
            ),
            "delta": lambda: fused_delta_step(*tokens, state, in_place=True, tile=tile, num_warps=warps),
        }
    )
    shares = {f"{name}_share": _against_copy(row, name, state, copy_rate) for name in ("jet", "delta")}
    return {**row, **shares, "relative_error": error}


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


def _window_case(batch: int, length: int, device: torch.device) -> Row:
    """Jet-Nemotron-2B's attention: 12 query heads, 2 key heads of 128, a window of 1152."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    window, heads = 1152, (12, 2, 2)
    q, k, v = (torch.randn(batch, h, length, 128, device=device, dtype=torch.bfloat16) for h in heads)

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - window)

    mask = create_block_mask(visible, None, None, length, length, device=str(device))
    compiled = torch.compile(flex_attention)
    runs: dict[str, Callable[[], Tensor]] = {
        "sdpa": lambda: attention(q, k, v, window=window),
        "flex": lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True),
    }
    last = slice(length - 1500, length)  # what the last 300 queries see
    exact = attention(
        q[:1, :, length - 300 :].double(),
        k[:1, :, last].double(),
        v[:1, :, last].double(),
        window=window,
        backend="reference",
    )
    errors = {name: relative_error(run()[:1, :, length - 300 :], exact) for name, run in runs.items()}
    if not max(errors.values()) <= 1e-2:
        raise AssertionError(f"relative errors {errors}")
    times: Row = {f"{name}_ms": _time_ms(run, repeats=10) for name, run in runs.items()}
    return {**times, "relative_errors": errors}


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
