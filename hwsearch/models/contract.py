"""What every token mixer must do, as tests that a third party's mixer can run against itself.

Subclass `MixerContract` in a pytest module, give it a spec, and pytest collects the tests:

    class TestMyMixer(MixerContract):
        spec = MySpec(...)
        hidden_size = 48

A mixer that `mixer_for` does not know overrides `build`. Tolerances are relative errors of the whole output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwsearch.models.mixers import mixer_for
from hwsearch.models.mixers.base import Mixer, MixerState, Rope
from hwsearch.searchspace.mixers import Mixer as Spec

__all__ = ["MixerContract", "relative_error"]


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected, in fp64."""
    difference = torch.linalg.vector_norm(ours.double() - expected.double())
    return float(difference / torch.linalg.vector_norm(expected.double()).clamp(min=1e-300))


class MixerContract:
    """The tests, run on `device`. `length` is that of the sequences: odd, and more than a chunk of any kernel."""

    spec: Spec
    hidden_size: int = 24
    batch: int = 3
    length: int = 67
    tolerance: float = 1e-5
    device: str = "cpu"

    def build(self) -> Mixer:
        """The module under test, in fp32, with the same parameters every time."""
        torch.manual_seed(0)
        mixer = mixer_for(self.spec, self.hidden_size, norm_eps=1e-5, rope=Rope(theta=10000.0))
        with torch.no_grad():
            for parameter in mixer.parameters():
                # Away from neutral initial values, behind which a wrong formula could hide.
                parameter.add_(0.1 * torch.randn_like(parameter))
        return mixer.to(self.device).eval()

    def inputs(self, length: int | None = None) -> Tensor:
        """Hidden states (B, T, D)."""
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(self.batch, length or self.length, self.hidden_size, generator=generator)
        return hidden.to(self.device)

    def empty(self, mixer: Mixer, batch: int | None = None) -> MixerState:
        return mixer.new_state(batch or self.batch, device=self.device, dtype=next(mixer.parameters()).dtype)

    def run(self, mixer: Mixer, hidden_BTD: Tensor, pieces: list[int]) -> tuple[Tensor, MixerState]:
        """Outputs and last state of a sequence that is fed in pieces of these lengths."""
        state: MixerState | None = self.empty(mixer)
        outputs = []
        for piece in hidden_BTD.split(pieces, dim=1):  # type: ignore[no-untyped-call]
            out, state = mixer(piece, state=state)
            outputs.append(out)
        assert state is not None
        return torch.cat(outputs, dim=1), state

    def close(self, ours: Tensor, expected: Tensor) -> None:
        assert ours.shape == expected.shape
        assert ours.dtype == expected.dtype
        error = relative_error(ours, expected)
        assert error <= self.tolerance, f"relative error {error:.2e}"

    @torch.no_grad()
    def test_a_forward_without_state_returns_none(self) -> None:
        mixer, hidden = self.build(), self.inputs()
        out, state = mixer(hidden)
        assert out.shape == hidden.shape
        assert state is None
        assert mixer.kernel_used

    @torch.no_grad()
    def test_decoding_equals_the_full_forward(self) -> None:
        mixer, hidden = self.build(), self.inputs()
        whole, _ = mixer(hidden)
        prompt = self.length - 9
        self.close(self.run(mixer, hidden, [prompt, *[1] * 9])[0], whole)
        self.close(self.run(mixer, hidden[:, :9], [1] * 9)[0], whole[:, :9])

    @torch.no_grad()
    def test_pieces_equal_the_full_forward(self) -> None:
        mixer, hidden = self.build(), self.inputs()
        whole, _ = mixer(hidden)
        for pieces in ([self.length], [2, self.length - 2], [self.length - 1, 1], [3, 17, self.length - 20]):
            self.close(self.run(mixer, hidden, pieces)[0], whole)

    @torch.no_grad()
    def test_the_given_state_stays_as_it_was(self) -> None:
        mixer, hidden = self.build(), self.inputs(7)
        _, state = self.run(mixer, hidden, [7])
        before = state.apply(torch.clone)
        first, _ = mixer(hidden[:, :1], state=state)
        again, _ = mixer(hidden[:, :1], state=state)
        assert torch.equal(first, again)
        for name, value in vars(before).items():
            assert not isinstance(value, Tensor) or torch.equal(value, getattr(state, name)), name

    @torch.no_grad()
    def test_left_padding_changes_nothing(self) -> None:
        mixer, hidden = self.build(), self.inputs()
        lengths = [self.length, self.length - 5, 2][: self.batch]
        mask = torch.stack([torch.arange(self.length) >= self.length - n for n in lengths]).to(self.device)
        padded = hidden.masked_fill(~mask[..., None], torch.nan)
        padded[0] = hidden[0]
        for split in ([self.length], [self.length - 4, 4], [self.length - 3, 1, 1, 1]):
            state: MixerState | None = self.empty(mixer)
            outputs = []
            pieces = zip(padded.split(split, dim=1), mask.split(split, dim=1), strict=True)  # type: ignore[no-untyped-call]
            for piece, piece_mask in pieces:
                out, state = mixer(piece, state=state, mask_BT=piece_mask)
                outputs.append(out)
            together = torch.cat(outputs, dim=1)
            after, _ = mixer(hidden[:, :1], state=state)
            for row, n in enumerate(lengths):
                alone, alone_state = mixer(
                    hidden[row : row + 1, self.length - n :], state=self.empty(mixer, 1)
                )
                self.close(together[row : row + 1, self.length - n :], alone)
                self.close(after[row : row + 1], mixer(hidden[row : row + 1, :1], state=alone_state)[0])

    @torch.no_grad()
    def test_reordered_sequences_go_on_as_themselves(self) -> None:
        mixer, hidden = self.build(), self.inputs(11)
        _, state = self.run(mixer, hidden[:, :10], [10])
        index = torch.tensor([2, 0, 0], device=self.device)
        moved, _ = mixer(hidden[index, 10:], state=state.reorder(index))
        self.close(moved, mixer(hidden[:, 10:], state=state)[0][index])

    def test_gradients_reach_everything_and_are_finite(self) -> None:
        mixer, hidden = self.build(), self.inputs().requires_grad_()
        mixer(hidden)[0].square().sum().backward()
        gradients = {"inputs": hidden.grad, **{name: p.grad for name, p in mixer.named_parameters()}}
        for name, gradient in gradients.items():
            assert gradient is not None, name
            assert torch.isfinite(gradient).all(), name
            assert gradient.abs().max() > 0, name

    def test_gradients_are_those_of_the_reference_kernels(self) -> None:
        found = []
        for backend in ("auto", "reference"):
            mixer, hidden = self.build(), self.inputs().requires_grad_()
            mixer.backend = backend
            mixer(hidden)[0].square().sum().backward()
            found.append([hidden.grad, *(p.grad for p in mixer.parameters())])
        for ours, expected in zip(*found, strict=True):
            assert ours is not None
            assert expected is not None
            assert relative_error(ours, expected) <= 10 * self.tolerance

    def test_parameters_are_those_of_the_spec(self) -> None:
        counted = sum(parameter.numel() for parameter in self.build().parameters())
        assert counted == self.spec.parameters(self.hidden_size)

    @torch.no_grad()
    def test_state_bytes_are_those_of_the_spec(self) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            mixer = self.build().to(dtype)
            _, state = self.run(mixer, self.inputs().to(dtype), [self.length])
            expected = self.spec.cache_bytes(self.tokens_held or self.length, dtype.itemsize)
            expected += self.spec.conv_state_bytes(dtype.itemsize)
            assert state.bytes == self.batch * (expected + self.bookkeeping_bytes)

    tokens_held: int = 0
    """Tokens whose keys and values the state holds at the end, where these are not all of them."""

    bookkeeping_bytes: int = 0
    """Bytes per sequence that the state holds beside what the spec counts, such as a position."""

    @torch.no_grad()
    def test_bf16_in_bf16_out_and_close(self) -> None:
        mixer, hidden = self.build(), self.inputs()
        low = self.build().to(torch.bfloat16)
        out, state = self.run(low, hidden.bfloat16(), [self.length - 2, 1, 1])
        assert out.dtype == torch.bfloat16
        # Parameters and activations are rounded as well as the arithmetic: a bound on blunders, not on kernels.
        assert relative_error(out, mixer(hidden)[0]) < 0.05
        assert all(torch.isfinite(t).all() for t in vars(state).values() if isinstance(t, Tensor))

    def test_autocast_trains(self) -> None:
        mixer, hidden = self.build(), self.inputs()
        expected = mixer(hidden)[0].detach()
        with torch.autocast(self.device, dtype=torch.bfloat16):
            out, _ = mixer(hidden)
        out.float().square().sum().backward()
        assert relative_error(out.detach(), expected) < 0.05
        for name, parameter in mixer.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
