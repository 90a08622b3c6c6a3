"""Short convolution: backends, pieces and steps agree; the elementwise stand-in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hwsearch.errors import InputError
from hwsearch.kernels.elementwise import elementwise
from hwsearch.kernels.short_conv import short_conv, short_conv_step


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 4, 33])
def test_backends_pieces_and_steps_agree(width: int, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, width, generator=generator, dtype=torch.float64)
    whole, last = short_conv(x, weight, backend="reference")
    ours, our_last = short_conv(x, weight)
    torch.testing.assert_close(ours, whole)
    assert torch.equal(our_last, last)
    assert last.shape == (2, width - 1, 5)

    state = x.new_zeros(2, width - 1, 5)
    for t in range(length):
        out, state = short_conv_step(x[:, t], weight, state)
        torch.testing.assert_close(out, whole[:, t])
    assert torch.equal(state, last)

    if length == 1:
        return
    cut = length // 2
    first, middle = short_conv(x[:, :cut], weight)
    second, end = short_conv(x[:, cut:], weight, state_BWD=middle)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    assert torch.equal(end, last)


@pytest.mark.parametrize("length", [1, 2, 65])
def test_gradients_are_those_of_the_sum_over_taps(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    found = []
    for backend in ("torch", "reference"):
        out, last = short_conv(x, weight, state_BWD=state, backend=backend)
        found.append(torch.autograd.grad(out.square().sum() + last.sum(), (x, weight, state)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_last_column_weighs_the_newest_token() -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    out, state = short_conv(x, torch.tensor([[10.0, 1.0]]), backend="reference")
    assert out.flatten().tolist() == [1.0, 12.0, 23.0]
    assert state.flatten().tolist() == [3.0]


def test_refusals() -> None:
    x = torch.zeros(1, 3, 2)
    with pytest.raises(InputError, match="weight of 3 channels"):
        short_conv(x, torch.zeros(3, 4))
    with pytest.raises(InputError, match="state"):
        short_conv(x, torch.zeros(2, 4), state_BWD=torch.zeros(1, 4, 2))
    with pytest.raises(InputError, match="unknown backend"):
        short_conv(x, torch.zeros(2, 4), backend="triton")


@pytest.mark.parametrize(("reads", "writes"), [(1, 1), (2, 1), (2, 2), (1, 2), (5, 3)])
def test_elementwise_writes_what_it_should(reads: int, writes: int) -> None:
    inputs = [torch.full((2, 3), float(i + 1)) for i in range(reads)]
    outputs = elementwise(inputs, writes=writes)
    assert len(outputs) == writes
    assert len({x.data_ptr() for x in (*inputs, *outputs)}) == reads + writes  # every output is written
    total = torch.full((2, 3), reads * (reads + 1) / 2)
    torch.testing.assert_close(outputs[0], F.silu(total))
    for times, output in enumerate(outputs[1:], start=1):
        torch.testing.assert_close(output, times * total)
    with pytest.raises(InputError, match="at least 1"):
        elementwise(inputs, writes=0)
