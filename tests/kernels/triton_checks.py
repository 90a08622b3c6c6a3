"""Run by test_kernels_triton.py: each Triton kernel against the fp64 reference, into NaN-filled buffers."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from hwsearch.kernels.dynamic_conv import dynamic_conv
from hwsearch.kernels.jet_step import JetParameters, JetToken, jet_step

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# batch, length, channels, width
CONVOLUTIONS = [(2, 1, 5, 4), (1, 2, 70, 3), (1, 63, 8, 4), (2, 65, 66, 4), (1, 127, 7, 1), (1, 200, 3, 4)]
# batch, heads, d_k, d_v, width
STEPS = [(2, 3, 16, 24, 4), (1, 1, 5, 7, 3), (1, 1, 96, 256, 4), (3, 2, 20, 40, 1)]


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
    cut = length // 2
    if cut:
        first, middle = dynamic_conv(x[:, :cut], taps[:, :cut], state_BWD=state, backend="triton")
        second, end = dynamic_conv(x[:, cut:], taps[:, cut:], state_BWD=middle, backend="triton")
        whole, last = dynamic_conv(x, taps, state_BWD=state, backend="triton")
        assert torch.equal(torch.cat((first, second), dim=1), whole)
        assert torch.equal(end, last)


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


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    for dtype in TOLERANCE:
        for convolution in CONVOLUTIONS:
            check_convolution(*convolution, dtype)
        for step in STEPS:
            check_step(*step, dtype)
    print("all agree")
