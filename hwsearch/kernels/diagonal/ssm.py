"""A time-invariant diagonal state-space model with N real states per channel: token by token, in chunks, one step.

Per channel, with decays a = e^{g} and vectors b, c over the states:
    h_t = a h_{t-1} + b x_t,   y_t = c . h_t
(S4D-Real of Gu et al., arXiv 2206.11893; the diagonal SSM of H3, arXiv 2212.14052, and of GSS, arXiv 2206.13947).

Because nothing depends on the token, a chunk's output is a Toeplitz product with the taps c . a^j b, plus c . a^t
times the state it starts from: matrix products per channel, for all chunks at once. Only the states at the chunks'
starts follow one another.

Shapes: x (B, T, D); g, b, c (D, N); state (B, D, N). The arithmetic and the state are fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.kernels import resolve
from hwsearch.kernels.chunks import arithmetic, without_autocast

__all__ = ["BACKENDS", "diagonal_ssm"]

_CHUNK = 64

_Model = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@without_autocast
def diagonal_ssm(
    x_BTD: Tensor,
    g_DN: Tensor,
    b_DN: Tensor,
    c_DN: Tensor,
    *,
    state_BDN: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D) in the dtype of x, and the state after the last token (B, D, N).

    g_DN: log decay, at most 0. state_BDN: the state to start from, zero where None.
    Raises InputError for shapes that do not fit or an unknown backend.
    """
    batch, _, channels = x_BTD.shape
    if not g_DN.shape == b_DN.shape == c_DN.shape or len(g_DN) != channels:
        raise InputError(
            f"diagonal SSM: g {tuple(g_DN.shape)}, b {tuple(b_DN.shape)} and c {tuple(c_DN.shape)} must have one "
            f"shape, with a row for each of the {channels} channels"
        )
    dtype, state_shape = arithmetic(x_BTD), (batch, *g_DN.shape)
    if state_BDN is None:
        state_BDN = torch.zeros(state_shape, dtype=dtype, device=x_BTD.device)
    elif state_BDN.shape != state_shape:
        raise InputError(f"diagonal SSM: state {tuple(state_BDN.shape)} must be {state_shape}")
    backend = resolve(
        "diagonal SSM", backend=backend, device_type=x_BTD.device.type, implementations=BACKENDS
    )
    x, g, b, c = (value.to(dtype) for value in (x_BTD, g_DN, b_DN, c_DN))
    out, state = BACKENDS[backend](x, g, b, c, state_BDN.to(dtype))
    return out.to(x_BTD.dtype), state


def recurrent_ssm(
    x_BTD: Tensor, g_DN: Tensor, b_DN: Tensor, c_DN: Tensor, state_BDN: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written."""
    state, decay = state_BDN, g_DN.exp()
    outputs = []
    for x in x_BTD.unbind(dim=1):
        state = decay * state + b_DN * x[..., None]
        outputs.append((c_DN * state).sum(dim=-1))
    return torch.stack(outputs, dim=1), state


def torch_ssm(
    x_BTD: Tensor, g_DN: Tensor, b_DN: Tensor, c_DN: Tensor, state_BDN: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence for one token, whole chunks and then the rest for more."""
    length = x_BTD.shape[1]
    if length == 1:
        return recurrent_ssm(x_BTD, g_DN, b_DN, c_DN, state_BDN)
    whole = length - length % _CHUNK
    if whole in (0, length):
        return _chunked_ssm(x_BTD, g_DN, b_DN, c_DN, state_BDN, min(length, _CHUNK))
    # Padding the last chunk would decay the state past the last token.
    first, state = _chunked_ssm(x_BTD[:, :whole], g_DN, b_DN, c_DN, state_BDN, _CHUNK)
    rest, state = _chunked_ssm(x_BTD[:, whole:], g_DN, b_DN, c_DN, state, length - whole)
    return torch.cat((first, rest), dim=1), state


def _chunked_ssm(
    x_BTD: Tensor, g_DN: Tensor, b_DN: Tensor, c_DN: Tensor, state_BDN: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    batch, length, channels = x_BTD.shape
    steps = torch.arange(chunk + 1, dtype=g_DN.dtype, device=g_DN.device)
    powers = (steps[:, None] * g_DN[:, None]).exp()  # a^0 .. a^C, (D, C + 1, N)
    taps = (powers[:, :-1] @ (b_DN * c_DN)[..., None]).squeeze(-1)  # (D, C)
    lag = steps[:-1, None].long() - steps[None, :-1].long()
    toeplitz = taps[:, lag.clamp(min=0)].masked_fill(lag < 0, 0)  # (D, C, C)

    x = x_BTD.reshape(batch, -1, chunk, channels).permute(3, 2, 0, 1)  # (D, C, B, chunks)
    columns = x.reshape(channels, chunk, -1)
    to_end = (b_DN[:, None] * powers[:, :-1].flip(1)).transpose(1, 2)  # (D, N, C)
    written = (to_end @ columns).view(channels, -1, batch, x.shape[3])
    decay, state = powers[:, -1, :, None], state_BDN.permute(1, 2, 0)  # (D, N, 1), (D, N, B)
    starts = []
    for written_n in written.unbind(dim=3):
        starts.append(state)
        state = decay * state + written_n
    from_start = (c_DN[:, None] * powers[:, 1:]) @ torch.stack(starts, dim=3).flatten(2)
    out = (toeplitz @ columns + from_start).view(channels, chunk, batch, -1)
    return out.permute(2, 3, 1, 0).reshape(batch, length, channels), state.permute(2, 0, 1)


BACKENDS: Mapping[str, _Model] = {"reference": recurrent_ssm, "torch": torch_ssm}
