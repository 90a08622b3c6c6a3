"""What kernels.py measures, section by section: every case checks its result against a reference, then times it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from kernel_timing import Row, against_copy, captured, time_ms, timed
from torch import Tensor

from hwsearch.kernels.attention import attention
from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.kernels.dynamic_conv import dynamic_conv
from hwsearch.kernels.jet_step import JetParameters, JetToken, jet_step, log_decay
from hwsearch.models.contract import relative_error
from hwsearch.models.mixers import mixer_for
from hwsearch.searchspace import mixers as specs
from hwsearch.searchspace.mixers import Mixer as Spec

HEADS, KEY, VALUE, WIDTH, HIDDEN = 12, 96, 256, 4, 1536
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

FLA = importlib.util.find_spec("fla") is not None
"""Without it the other kernels are timed all the same."""
BATCHES = (1, 4, 16, 64, 128, 256, 512, 1024)
TILES = [(tile, warps) for tile in (1024, 2048, 4096, 8192, 16384) for warps in (2, 4, 8)]
Cases = Iterator[tuple[str, Callable[[], Row]]]


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
    "tiles": _tiles,
    "graphs": _graphs,
    "convolution": _convolutions,
    "prefill": _prefills,
    "window": _windows,
}


def _rules() -> tuple[str, ...]:
    """Backends of a step of the delta rule."""
    return ("triton", "fla") if FLA else ("triton",)


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
    runs = {f"unfused_{rule}": partial(unfused, rule) for rule in _rules()}
    row = timed({"fused": one_launch, **runs, "copy": lambda: target.copy_(state)})
    return {
        **row,
        "share_of_copy_bandwidth": against_copy(row, "fused", state, copy_rate),
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
    for name in _rules():
        ours, _ = delta_rule(*(x[:, None] for x in tokens), state_BHKV=state, backend=name)
        errors[name] = relative_error(ours, exact)
    if not max(errors.values()) <= 1e-2:
        raise AssertionError(f"relative errors {errors}")
    runs: dict[str, Callable[[], object]] = {
        "triton": lambda: fused_delta_step(*tokens, state, in_place=True),
        "fla": lambda: delta_rule(*(x[:, None] for x in tokens), state_BHKV=state, backend="fla"),
    }
    row = timed({name: runs[name] for name in _rules()})
    shares = {f"{name}_share": against_copy(row, name, state, copy_rate) for name in _rules()}
    return {**row, **shares, "relative_errors": errors}


def _tile_case(batch: int, tile: int, warps: int, device: torch.device, copy_rate: float) -> Row:
    from hwsearch.kernels.delta_rule.triton import fused_delta_step
    from hwsearch.kernels.jet_step.triton import fused_jet_step

    token, parameters, state, conv_state = _token(batch, device)
    found = fused_jet_step(token, parameters, state, conv_state, False, tile=tile, num_warps=warps)
    error = _check_step(token, parameters, (state, conv_state), found)
    tokens = (token.q_BHK, token.k_BHK, token.v_BHV, -token.a_BH.float().abs(), token.b_BH.sigmoid())
    row = timed(
        {
            "jet": lambda: fused_jet_step(
                token, parameters, state, conv_state, True, tile=tile, num_warps=warps
            ),
            "delta": lambda: fused_delta_step(*tokens, state, in_place=True, tile=tile, num_warps=warps),
        }
    )
    shares = {f"{name}_share": against_copy(row, name, state, copy_rate) for name in ("jet", "delta")}
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
    elapsed = time_ms(lambda: dynamic_conv(x, taps, backend="triton"))
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
        row[f"{name}_ms"] = time_ms(partial(mixer, hidden), repeats=10)
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
    times: Row = {f"{name}_ms": time_ms(run, repeats=10) for name, run in runs.items()}
    return {**times, "relative_errors": errors}


def _graph_case(spec: Spec, device: torch.device) -> Row:
    torch.manual_seed(0)
    mixer = mixer_for(spec, HIDDEN).to(device, torch.bfloat16)
    # Drawn, not left by a prompt: fla would tune its kernels for prompts first, for minutes.
    state = mixer.new_state(64, device=device, dtype=torch.bfloat16).apply(torch.randn_like)
    token = torch.randn(64, 1, HIDDEN, device=device, dtype=torch.bfloat16)
    held: list[Tensor] = []
    graph = captured(lambda: held.append(mixer(token, state=state)[0]))
    graph.replay()
    torch.cuda.synchronize()
    error = relative_error(held[-1], mixer(token, state=state)[0])
    if error > 1e-2:
        raise AssertionError(f"the graph's output is off by {error}")
    return {"ms": time_ms(graph.replay), "kernel": mixer.kernel_used, "relative_error": error}
