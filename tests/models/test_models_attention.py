"""The attention mixer against a loop over tokens: masks, windows, sinks, sigmoid scores, and its gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels.attention import attention
from hwsearch.models.mixers import mixer_for
from hwsearch.models.mixers.attention import AttentionState
from hwsearch.models.mixers.base import Mixer, MixerState, Rope
from hwsearch.searchspace.mixers import FullAttention, SlidingWindowAttention
from hwsearch.searchspace.mixers import Mixer as Spec
from tests.models import tiny

OPTIONS = ["plain", "sinks", "sigmoid"]


def by_hand(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, mask: Tensor, sinks: Tensor | None, sigmoid: bool
) -> Tensor:
    """One query at a time, in plain arithmetic; padded queries are left at zero."""
    batch, heads, queries, dim = q.shape
    past, group = k.shape[2] - queries, heads // k.shape[1]
    out = torch.zeros_like(q)
    for b in range(batch):
        for h in range(heads):
            for t in range(queries):
                at = past + t
                if not mask[b, at]:
                    continue
                seen = [s for s in range(at + 1) if mask[b, s] and (not window or s > at - window)]
                scores = [float(q[b, h, t] @ k[b, h // group, s]) / math.sqrt(dim) for s in seen]
                if sigmoid:
                    weights = [1 / (1 + math.exp(math.log(len(seen)) - x)) for x in scores]
                else:
                    total = sum(map(math.exp, scores)) + (0.0 if sinks is None else math.exp(float(sinks[h])))
                    weights = [math.exp(x) / total for x in scores]
                out[b, h, t] = torch.stack(
                    [w * v[b, h // group, s] for w, s in zip(weights, seen, strict=True)]
                ).sum(0)
    return out


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("window", [0, 3, 200])
@pytest.mark.parametrize(("queries", "past"), [(1, 0), (1, 9), (7, 0), (7, 6), (150, 3)])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_the_kernel_equals_arithmetic_by_hand(
    queries: int, past: int, window: int, option: str, backend: str
) -> None:
    torch.manual_seed(0)
    keys = queries + past
    q = torch.randn(2, 4, queries, 8)
    k, v = torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
    sinks = torch.randn(4) if option == "sinks" else None
    mask = torch.ones(2, keys, dtype=torch.bool)
    mask[1, : keys // 3] = False
    expected = by_hand(q, k, v, window=window, mask=mask, sinks=sinks, sigmoid=option == "sigmoid")
    arguments: dict[str, Any] = {
        "window": window,
        "sinks_H": sinks,
        "sigmoid": option == "sigmoid",
        "backend": backend,
    }
    got = attention(q, k, v, mask_BS=mask, **arguments)
    real = mask[:, past:][:, None, :, None]
    assert tiny.largest_difference(got * real, expected) < 1e-5
    assert bool(got.isfinite().all())
    assert tiny.largest_difference(attention(q[:1], k[:1], v[:1], **arguments), expected[:1]) < 1e-5


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("window", [0, 5])
def test_gradients_agree_between_backends(option: str, window: int) -> None:
    torch.manual_seed(0)
    made = [
        torch.randn(shape, requires_grad=True) for shape in ((1, 4, 9, 8), (1, 2, 9, 8), (1, 2, 9, 8), (4,))
    ]
    mask = torch.ones(1, 9, dtype=torch.bool)
    mask[0, :2] = False
    gradients = []
    for backend in ("torch", "reference"):
        q, k, v, sinks = made
        out = attention(
            q,
            k,
            v,
            window=window,
            mask_BS=mask,
            sinks_H=sinks if option == "sinks" else None,
            sigmoid=option == "sigmoid",
            backend=backend,
        )
        used = made if option == "sinks" else made[:3]
        gradients.append(torch.autograd.grad(out[:, :, 2:].square().sum(), used))
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    with pytest.raises(InputError, match=r"mask \(1, 2\) must be \(1, 3\)"):
        attention(q, k, k, mask_BS=torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(InputError, match=r"sinks \(3,\) must be \(4,\)"):
        attention(q, k, k, sinks_H=torch.zeros(3))
    with pytest.raises(InputError, match="sigmoid scores take none"):
        attention(q, k, k, sinks_H=torch.zeros(4), sigmoid=True)
    with pytest.raises(InputError, match="needs a rotary embedding"):
        mixer_for(tiny.FULL, 32)
    with pytest.raises(ValueError, match="leave them out with sigmoid"):
        tiny.FULL.replace(sinks=True, scores="sigmoid")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("window", [0, 4])
def test_padding_full_of_nan_reaches_nothing(option: str, window: int) -> None:
    torch.manual_seed(0)
    shape = tiny.FULL.model_dump(exclude={"kind", "sinks", "scores"}) | {
        "sinks": option == "sinks",
        "scores": "sigmoid" if option == "sigmoid" else "softmax",
    }
    spec = SlidingWindowAttention(window=window, **shape) if window else FullAttention(**shape)
    mixer = mixer_for(spec, 32, rope=Rope(theta=1e4))
    hidden = torch.randn(2, 11, 32)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, :4] = False
    poisoned = hidden.masked_fill(~mask[..., None], math.nan)
    with torch.no_grad():
        _check_padding(mixer, spec, hidden, mask, poisoned)


def _check_padding(mixer: Mixer, spec: Spec, hidden: Tensor, mask: Tensor, poisoned: Tensor) -> None:
    alone, _ = mixer(hidden[1:, 4:])
    out, _ = mixer(poisoned, mask_BT=mask)
    assert tiny.largest_difference(out[1, 4:], alone[0]) < 1e-5
    state = mixer.new_state(2, dtype=torch.float32)
    first, middle = mixer(poisoned[:, :6], mask_BT=mask[:, :6], state=state)
    rest, after = mixer(hidden[:, 6:], state=middle)
    assert after is not None
    assert after.bytes > 0
    assert tiny.largest_difference(torch.cat((first[1, 4:], rest[1]), dim=0), alone[0]) < 1e-5
    assert mixer.kernel_used == "torch"
    assert sum(p.numel() for p in mixer.parameters()) == spec.parameters(32)


def test_an_unknown_backend_is_refused_and_never_replaced() -> None:
    mixer = mixer_for(tiny.FULL, 32, rope=Rope(theta=1e4), backend="triton")
    with pytest.raises(InputError, match="unknown backend for attention 'triton'"):
        mixer(torch.randn(1, 3, 32))


def _steps(mixer: Mixer, state: MixerState, tokens: Tensor) -> tuple[Tensor, MixerState]:
    outs = []
    for t in range(tokens.shape[1]):
        out, after = mixer(tokens[:, t : t + 1], state=state)
        assert after is not None
        state = after
        outs.append(out)
    return torch.cat(outs, dim=1), state


@pytest.mark.parametrize("spec", [tiny.FULL, tiny.WINDOW], ids=["full", "window"])
def test_a_state_serves_two_continuations_and_decoding_does_not_copy_the_cache(spec: Spec) -> None:
    torch.manual_seed(0)
    mixer = mixer_for(spec, 32, rope=Rope(theta=1e4))
    prompt, left, right = torch.randn(1, 9, 32), torch.randn(1, 300, 32), torch.randn(1, 300, 32)
    with torch.inference_mode():
        _, start = mixer(prompt, state=mixer.new_state(1))
        first, after = _steps(mixer, start, left[:, :4])
        assert isinstance(after, AttentionState)
        second, _ = _steps(mixer, start, right[:, :4])
        rest, last = _steps(mixer, after, left[:, 4:100])
        assert isinstance(last, AttentionState)
        assert after.room is not None
        assert last.room is after.room, "the cache moved out of its room"
        for tokens, found in ((left[:, :100], torch.cat((first, rest), dim=1)), (right[:, :4], second)):
            expected, _ = mixer(torch.cat((prompt, tokens), dim=1))
            assert tiny.largest_difference(found, expected[:, 9:]) < 1e-5
    with torch.no_grad():  # what inference mode made must not be written to outside of it
        longer, _ = _steps(mixer, last, left[:, 100:])
        expected, _ = mixer(torch.cat((prompt, left), dim=1))
        assert tiny.largest_difference(longer, expected[:, 109:]) < 1e-5


def test_gradients_flow_through_a_cache() -> None:
    torch.manual_seed(0)
    mixer = mixer_for(tiny.FULL, 32, rope=Rope(theta=1e4))
    hidden = torch.randn(1, 9, 32, requires_grad=True)
    whole = torch.autograd.grad(mixer(hidden)[0].square().sum(), hidden)[0]
    first, state = mixer(hidden[:, :5], state=mixer.new_state(1))
    second, _ = mixer(hidden[:, 5:], state=state)
    pieces = torch.autograd.grad(torch.cat((first, second), dim=1).square().sum(), hidden)[0]
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-4)
