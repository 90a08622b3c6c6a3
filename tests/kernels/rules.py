"""Every operator as one rule with tokens and a state, and the checks that its backends pass on any device.

The inputs are numbers that bf16 holds exactly, so that one fp64 reference serves all dtypes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from hwsearch.kernels.attention import attention
from hwsearch.kernels.delta_rule import delta_rule
from hwsearch.kernels.diagonal import diagonal_scan, diagonal_ssm
from hwsearch.kernels.dynamic_conv import dynamic_conv
from hwsearch.kernels.linear_attention import linear_attention
from hwsearch.kernels.rwkv7 import rwkv7
from hwsearch.kernels.short_conv import short_conv

Rule = Callable[..., tuple[Tensor, Tensor]]
B, H, K, V, D, N = 2, 3, 16, 24, 10, 5
LENGTHS = [1, 2, 63, 65, 127, 1000]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def _delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, *, state: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return delta_rule(q, k, v, -0.2 * g.abs(), b.sigmoid(), state_BHKV=state, backend=backend)


def _linear(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, state: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return linear_attention(q, k, v, -0.2 * g.abs(), scale=0.3, state_BHKV=state, backend=backend)


def _rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, *, state: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    unit = torch.nn.functional.normalize(a, dim=-1)
    decay = -0.6065 * w.sigmoid()
    return rwkv7(r, decay, k, v, -unit, unit * b.sigmoid(), state_BHKV=state, backend=backend)


def _scan(a: Tensor, x: Tensor, *, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return diagonal_scan(a.sigmoid(), x, state_BD=state, backend=backend)


def _fixed(*shape: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(*shape, generator=generator).bfloat16().to(like)


def _ssm(x: Tensor, *, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    g, b, c = _fixed(3, D, N, like=x)
    return diagonal_ssm(x, -0.2 * g.abs(), b, c, state_BDN=state, backend=backend)


def _dynamic_conv(x: Tensor, taps: Tensor, *, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return dynamic_conv(x, taps, state_BWD=state.to(x.dtype), backend=backend)


def _short_conv(x: Tensor, *, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return short_conv(x, _fixed(D, 4, like=x), state_BWD=state.to(x.dtype), backend=backend)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    state: Tensor,
    backend: str,
    window: int = 0,
    sink: bool = False,
    sigmoid: bool = False,
) -> tuple[Tensor, Tensor]:
    """The state: keys and values, (B, S, 1, K) each, joined at the end."""
    cached = torch.cat((state.to(k.dtype), torch.cat((k, v), dim=-1)), dim=1)
    keys, values = cached.transpose(1, 2).chunk(2, dim=-1)
    sinks = _fixed(H, like=q) if sink else None
    out = attention(
        q.transpose(1, 2), keys, values, window=window, sinks_H=sinks, sigmoid=sigmoid, backend=backend
    )
    return out.transpose(1, 2), cached


keys, values, gates = (H, K), (H, V), (H,)
softmax: tuple[list[tuple[int, ...]], tuple[int, ...]] = ([keys, (1, K), (1, K)], (3, 1, 2 * K))
# The rule, the shapes of its tokens after (B, T), the shape of its state after B.
RULES: dict[str, tuple[Rule, list[tuple[int, ...]], tuple[int, ...]]] = {
    "delta_rule": (_delta, [keys, keys, values, gates, gates], (H, K, V)),
    "delta_rule_shared_keys": (_delta, [(1, K), (1, K), values, gates, gates], (H, K, V)),
    "linear_attention_head": (_linear, [(1, K), (1, K), values, (H, 1)], (H, K, V)),
    "linear_attention_channel": (_linear, [keys, keys, values, keys], (H, K, V)),
    "rwkv7": (_rwkv7, [keys, keys, keys, values, keys, keys], (H, K, V)),
    "diagonal_scan": (_scan, [(D,), (D,)], (D,)),
    "diagonal_ssm": (_ssm, [(D,)], (D, N)),
    "dynamic_conv": (_dynamic_conv, [(D,), (D, 4)], (4, D)),
    "short_conv": (_short_conv, [(D,)], (3, D)),
    "attention": (_attention, *softmax),
    "attention_window": (functools.partial(_attention, window=40), *softmax),
    "attention_sink": (functools.partial(_attention, window=40, sink=True), *softmax),
    "attention_sigmoid": (functools.partial(_attention, sigmoid=True), *softmax),
}


def tensors(name: str, length: int, *, device: str = "cpu") -> tuple[Rule, list[Tensor], Tensor]:
    """A rule with its tokens and state, fp64, of values that bf16 holds."""
    rule, tokens, state = RULES[name]
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().double().to(device)

    batch = 1 if length > 500 else B  # the recurrences take their time
    return rule, [normal(batch, length, *shape) for shape in tokens], normal(batch, *state)


def error(ours: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    ours, expected = ours.detach().double(), expected.detach().double().to(ours.device)
    return float((ours - expected).norm() / expected.norm().clamp(min=1e-300))


def trained(rule: Rule, tokens: list[Tensor], state: Tensor, backend: str) -> list[Tensor]:
    """Output, last state, and the gradients of everything."""
    leaves = [x.clone().requires_grad_() for x in (*tokens, state)]
    out, last = rule(*leaves[:-1], state=leaves[-1], backend=backend)
    # Weights that do not depend on the output: rounding it must not change what is differentiated.
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator).bfloat16().to(x)).double().sum() for x in (out, last)
    )
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    return [out, last, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@functools.cache
def _exact(name: str, length: int) -> list[Tensor]:
    rule, tokens, state = tensors(name, length)
    return [x.detach() for x in trained(rule, tokens, state, "reference")]


def check_accuracy(
    name: str, length: int, dtype: torch.dtype, *, backend: str = "torch", device: str = "cpu"
) -> None:
    """Outputs, states and gradients within the dtype's tolerance of the fp64 recurrence."""
    rule, tokens, state = tensors(name, length, device=device)
    ours = trained(rule, [x.to(dtype) for x in tokens], state.float(), backend)
    assert ours[0].dtype == dtype
    errors = [error(a, b) for a, b in zip(ours, _exact(name, length), strict=True)]
    assert max(errors) <= TOLERANCE[dtype], f"{name}, {length} tokens, {backend}, {dtype}: {errors}"


def check_pieces(
    name: str,
    pieces: list[int],
    dtype: torch.dtype,
    *,
    tolerance: float,
    backend: str = "torch",
    device: str = "cpu",
) -> None:
    """A sequence in pieces, each going on from the last one's state, equals the sequence in one piece."""
    rule, tokens, state = tensors(name, sum(pieces), device=device)
    tokens, state = [x.to(dtype) for x in tokens], state if dtype == torch.float64 else state.float()
    whole, last = rule(*tokens, state=state, backend=backend)
    outputs = []
    for part in zip(*(x.split(pieces, dim=1) for x in tokens), strict=True):  # type: ignore[no-untyped-call]
        out, state = rule(*part, state=state, backend=backend)
        outputs.append(out)
    assert error(torch.cat(outputs, dim=1), whole) <= tolerance
    assert error(state, last) <= tolerance
