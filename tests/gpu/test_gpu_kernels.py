"""Kernels and mixers on a CUDA device: the bodies of the CPU tests on every backend there, and captured decoding."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import tests.models.test_models_mixers  # noqa: F401  defines the contract's cases
from hwsearch.kernels import (
    attention,
    delta_rule,
    diagonal,
    dynamic_conv,
    linear_attention,
    rwkv7,
    short_conv,
)
from hwsearch.models.contract import MixerContract, relative_error
from hwsearch.models.mixers.attention import AttentionState
from hwsearch.models.mixers.base import Mixer, MixerState
from tests.kernels import triton_checks
from tests.kernels.rules import LENGTHS, RULES, check_accuracy, check_pieces

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

MODULES = {
    "delta_rule": delta_rule,
    "linear": linear_attention,
    "rwkv7": rwkv7,
    "diagonal_scan": diagonal.scan,
    "diagonal_ssm": diagonal.ssm,
    "dynamic": dynamic_conv,
    "short": short_conv,
    "attention": attention,
}
BACKENDS = [
    (name, backend)
    for name in RULES
    for prefix, module in MODULES.items()
    if name.startswith(prefix)
    for backend in module.BACKENDS
    if backend != "reference"
]
CONTRACT = [
    (case, name)
    for case in MixerContract.__subclasses__()
    for name in dir(case)
    if name.startswith("test_") and name != "test_parameters_are_those_of_the_spec"
]


@pytest.fixture(autouse=True)
def _fp32_is_fp32() -> Iterator[None]:
    """cuDNN would convolve fp32 numbers as TF32's, three digits of them."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _need(backend: str) -> None:
    if backend in ("fla", "triton") and importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed: its kernels are not tested")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_bf16_within_1e_2_of_the_fp64_recurrence(name: str, backend: str, length: int) -> None:
    _need(backend)
    check_accuracy(name, length, torch.bfloat16, backend=backend, device="cuda")


@pytest.mark.parametrize("length", [1, 65, 127])
@pytest.mark.parametrize(("name", "backend"), [(n, b) for n, b in BACKENDS if b != "fla"])
def test_fp32_within_1e_5_of_the_fp64_recurrence(name: str, backend: str, length: int) -> None:
    """Not fla's: its products of fp32 numbers are TF32's."""
    _need(backend)
    check_accuracy(name, length, torch.float32, backend=backend, device="cuda")


@pytest.mark.parametrize("pieces", [[64, 63], [5, 60, 62]], ids=str)
@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_pieces_equal_one(name: str, backend: str, pieces: list[int]) -> None:
    _need(backend)
    check_pieces(name, pieces, torch.bfloat16, tolerance=1e-2, backend=backend, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", triton_checks.CONVOLUTIONS, ids=str)
def test_triton_dynamic_convolution(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    _need("triton")
    triton_checks.check_convolution(*shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", triton_checks.STEPS, ids=str)
def test_triton_jet_step(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    _need("triton")
    triton_checks.check_step(*shape, dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", triton_checks.DELTA_STEPS, ids=str)
def test_triton_delta_step(shape: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    _need("triton")
    triton_checks.check_delta_step(*shape, dtype)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(("case", "name"), CONTRACT)
def test_contract(
    case: type[MixerContract], name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch to 1e-4; with what auto takes, fla's TF32 among it, to 2e-2."""
    contract = case()
    contract.device = "cuda"
    contract.tolerance = 1e-4 if backend == "torch" else 2e-2
    made = contract.build

    def build() -> Mixer:
        mixer = made()
        mixer.backend = backend  # type: ignore[assignment]
        return mixer

    monkeypatch.setattr(contract, "build", build)
    getattr(contract, name)()


@torch.no_grad()
@pytest.mark.parametrize("case", MixerContract.__subclasses__())
def test_decoding_captured_in_a_graph_equals_eager_decoding(case: type[MixerContract]) -> None:
    contract = case()
    contract.device = "cuda"
    mixer = contract.build().to(torch.bfloat16)
    hidden = contract.inputs().bfloat16()
    _, prompt = contract.run(mixer, hidden[:, :-4], [contract.length - 4])
    tokens = hidden[:, -4:].split(1, dim=1)  # type: ignore[no-untyped-call]
    # A cache that grows is another tensor at every step: one step of it is captured.
    grows = isinstance(prompt, AttentionState) and not getattr(mixer, "window", 0)
    steps = tokens[:1] if grows else tokens
    expected, state = [], prompt
    for token in steps:
        out, state = mixer(token, state=state)
        expected.append(out)

    held, token, kept = prompt.apply(torch.clone), steps[0].clone(), SimpleNamespace()

    def step() -> None:
        kept.out, after = mixer(token, state=held)
        if not grows:
            _write(held, after)

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # Triton compiles and tunes at its first calls
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    _write(held, prompt)
    for new, out in zip(steps, expected, strict=True):
        token.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert relative_error(kept.out, out) <= 1e-2


def _write(target: MixerState, source: MixerState) -> None:
    """The tensors of one state into those of another."""
    for name, value in vars(target).items():
        if isinstance(value, Tensor):
            value.copy_(getattr(source, name))
