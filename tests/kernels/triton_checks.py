"""Run by test_kernels_triton.py: each Triton kernel against the fp64 reference, into NaN-filled buffers."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.kernels.delta_rule.triton import fused_delta_step
from hwsearch.kernels.dynamic_conv import dynamic_conv
from hwsearch.kernels.jet_step import JetParameters, JetToken, jet_step
from tests.kernels.rules import LENGTHS, TOLERANCE, check_accuracy, check_pieces

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# batch, length, channels, width
CONVOLUTIONS = [(1, 2, 70, 3), (1, 63, 8, 4), (2, 65, 66, 4), (1, 127, 7, 1)]
# batch, heads, d_k, d_v, width
STEPS = [(2, 3, 16, 24, 4), (1, 1, 5, 7, 3), (1, 1, 96, 256, 4), (3, 2, 20, 40, 1)]

# batch, key heads, heads, d_k, d_v, tile
DELTA_STEPS = [(2, 3, 3, 16, 24, 4096), (1, 1, 3, 5, 7, 64), (3, 2, 4, 20, 40, 256), (1, 1, 1, 96, 256, 1024)]


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=torch.float32).to(dtype).to(DEVICE)


def check(what: str, ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = float((ours.detach().double() - expected.detach()).norm() / expected.detach().norm())
    assert error <= TOLERANCE[dtype], f"{what} in {dtype}: relative error {error:.1e}"


def check_convolution(batch: int, length: int, channels: int, width: int, dtype: torch.dtype) -> None:
    x, state = normal(batch, length, channels, dtype=dtype), normal(batch, width, channels, dtype=dtype)
    taps = normal(batch, length, channels, width, dtype=dtype)
    weight = normal(batch, length, channels, dtype=dtype)
    found = []
    for backend, tensors in (
        ("triton", (x, taps, state)),
        ("reference", (x.double(), taps.double(), state.double())),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        out, last = dynamic_conv(leaves[0], leaves[1], state_BWD=leaves[2], backend=backend)
        (out * weight.to(out.dtype)).sum().backward()  # type: ignore[no-untyped-call]
        # The oldest input of the state meets no tap; width 1 reads no state at all.
        found.append([out, last, leaves[0].grad, leaves[1].grad] + ([leaves[2].grad] if width > 1 else []))
    for ours, expected in zip(*found, strict=True):
        assert ours is not None
        assert expected is not None
        check(f"dynamic convolution {(batch, length, channels, width)}", ours, expected, dtype)


def check_step(batch: int, heads: int, key: int, value: int, width: int, dtype: torch.dtype) -> None:
    shapes = {
        "q_BHK": (heads, key),
        "k_BHK": (heads, key),
        "v_BHV": (heads, value),
        "taps_BDW": (heads * value, width),
        "a_BH": (heads,),
        "b_BH": (heads,),
        "gate_BHV": (heads, value),
    }
    tensors = {name: normal(batch, *shape, dtype=dtype) for name, shape in shapes.items()}
    own = [normal(size, dtype=dtype) for size in (heads, heads, value)]
    state = normal(batch, heads, key, value, dtype=torch.float32)
    conv_state = normal(batch, width, heads * value, dtype=dtype)
    expected = jet_step(
        JetToken(**{name: tensor.double() for name, tensor in tensors.items()}),
        JetParameters(own[0].double(), own[1].double(), own[2].double(), 1e-6),
        state_BHKV=state.double(),
        conv_state_BWD=conv_state.double(),
        backend="reference",
    )
    parameters = JetParameters(own[0], own[1], own[2], 1e-6)
    for in_place in (False, True):
        before = state.clone(), conv_state.clone()
        found = jet_step(
            JetToken(**tensors),
            parameters,
            state_BHKV=before[0],
            conv_state_BWD=before[1],
            in_place=in_place,
            backend="triton",
        )
        for ours, reference in zip(found, expected, strict=True):
            check(f"jet step {(batch, heads, key, value, width)}", ours, reference, dtype)
        assert (found[1] is before[0]) == in_place
        assert in_place or torch.equal(before[0], state)


def check_delta_step(
    batch: int, key_heads: int, heads: int, key: int, value: int, tile: int, dtype: torch.dtype
) -> None:
    """Against the recurrence; a step after another in place equals the same without."""
    tokens = [normal(batch, 2, *shape, dtype=dtype) for shape in ((key_heads, key),) * 2 + ((heads, value),)]
    tokens += [-normal(batch, 2, heads, dtype=dtype).abs(), normal(batch, 2, heads, dtype=dtype).sigmoid()]
    state = normal(batch, heads, key, value, dtype=torch.float32)
    wide = [x.double() for x in tokens]
    expected, last = delta_rule(*wide, state_BHKV=state.double(), backend="reference")
    kept = state.clone()
    for t in range(2):
        before = state.clone()
        q, k, v, g, beta = (x[:, t] for x in tokens)
        out, after = fused_delta_step(q, k, v, g, beta, state, tile=tile)
        assert torch.equal(state, before)
        moved, same = fused_delta_step(q, k, v, g, beta, kept, in_place=True, tile=tile)
        assert same is kept
        assert torch.equal(moved, out)
        assert torch.equal(kept, after)
        check(f"delta step {(batch, key_heads, heads, key, value, tile)}", out, expected[:, t], dtype)
        state = after
    check("state of the delta step", state, last, dtype)
    piece = [x[:, :1] for x in tokens]
    whole, _ = delta_rule(*piece, state_BHKV=before, backend="triton")
    assert whole.shape == (batch, 1, heads, value)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    for dtype in TOLERANCE:
        for length in LENGTHS:
            check_accuracy("dynamic_conv", length, dtype, backend="triton", device=DEVICE)
        for pieces in ([1, 126], [64, 63], [5, 60, 62]):
            check_pieces("dynamic_conv", pieces, dtype, tolerance=0, backend="triton", device=DEVICE)
        for convolution in CONVOLUTIONS:
            check_convolution(*convolution, dtype)
        for step in STEPS:
            check_step(*step, dtype)
        with torch.no_grad():
            for shape in DELTA_STEPS:
                check_delta_step(*shape, dtype)
    print("all agree")
