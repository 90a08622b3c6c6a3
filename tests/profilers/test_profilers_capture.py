"""What a CUDA graph can hold: a step that never leaves its device. Seen on the meta device, which has no values to read
and keeps apart from the host's tensors; no GPU is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwsearch.models.contract import MixerContract
from hwsearch.models.mixers.attention import AttentionState
from hwsearch.operators import Operator
from hwsearch.profilers.stack import block_runnable, model_runnable, random_model
from hwsearch.profilers.tasks import Draw, operator_runnable
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.block import Block
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import SOFTMAX_KINDS, FullAttention, NoMixer
from hwsearch.searchspace.mixers import Mixer as Spec
from hwsearch.searchspace.workload import Workload
from tests.models import test_models_mixers
from tests.profilers import test_profilers_workbench

_META = torch.device("meta")
_BASE = Base(
    name="tiny",
    family="qwen3",
    num_layers=1,
    hidden_size=24,
    vocab_size=64,
    mixer=FullAttention(num_heads=2, num_kv_heads=1, head_dim=8),
    ffn=SwiGLU(intermediate_size=16),
    tie_word_embeddings=True,
    max_position_embeddings=512,
)
_CASES = [case for case in vars(test_models_mixers).values() if isinstance(case, type)]
_SPECS: list[Spec] = [
    case.spec for case in _CASES if issubclass(case, MixerContract) and hasattr(case, "spec")
]
_DECODE = Workload(phase="decode", batch=3, context=300, dtype="bfloat16")
_PREFILL = Workload(phase="prefill", batch=2, context=300, chunk=128, dtype="bfloat16")


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operator that meets a tensor of the host, and the most numbers that one wrote into a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.host: list[str] = []
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        met = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)] + made
        if any(tensor.device.type == "cpu" for tensor in met):
            self.host.append(str(func))
        if all(returned.alias_info is None for returned in func._schema.returns):
            self.most = max([self.most, *(tensor.numel() for tensor in made)])
        return out


@torch.inference_mode()
@pytest.mark.parametrize("workload", [_DECODE, _PREFILL], ids=lambda workload: workload.phase)
@pytest.mark.parametrize("spec", [*_SPECS, NoMixer()], ids=lambda spec: spec.kind)
def test_a_step_never_leaves_its_device(spec: Spec, workload: Workload) -> None:
    layer = LayerSpec(mixer=spec, ffn=_BASE.ffn)
    stretched = layer.mixer.kind in SOFTMAX_KINDS
    block = Block(hidden_size=24, workload=workload, layer=layer, stretched_rope=stretched)
    architecture = Architecture(name="one", base=_BASE, layers=(layer,))
    model = random_model(architecture, device=_META, dtype="bfloat16", seed=0, backend="torch")
    for runnable in (
        block_runnable(block, device=_META, copies=2, seed=0, backend="torch"),
        model_runnable(model, workload, device=_META, seed=0),
    ):
        runnable.function()
        with _Watch() as watch:
            runnable.function()
        assert watch.host == []


@torch.inference_mode()
@pytest.mark.parametrize(
    "operator", test_profilers_workbench._CASES.values(), ids=lambda operator: operator.kind
)
def test_an_operator_never_leaves_its_device(operator: Operator) -> None:
    runnable = operator_runnable(operator, Draw(_META, torch.bfloat16, torch.Generator(), "torch"))
    with _Watch() as watch:
        runnable.function()
    assert watch.host == []


@torch.inference_mode()
def test_a_decode_step_makes_no_second_cache() -> None:
    """The keys are written where they stay: a step makes nothing as large as they are."""
    layer = LayerSpec(mixer=_BASE.mixer, ffn=_BASE.ffn)
    long = _DECODE.replace(context=4096)
    runnable = block_runnable(
        Block(hidden_size=24, workload=long, layer=layer), device=_META, copies=1, seed=0
    )
    with _Watch() as watch:
        runnable.function()
    keys = long.batch * long.context * 8
    assert watch.most < keys / 2
    # That is what the watch looks for:
    state = AttentionState(
        torch.empty(3, 1, 4095, 8, device=_META), torch.empty(3, 1, 4095, 8, device=_META), torch.empty(3)
    )
    new = torch.empty(3, 1, 1, 8, device=_META)
    with _Watch() as watch:
        state.extended(new, new)
    assert watch.most >= keys
    with _Watch() as watch:
        torch.zeros(3) + 1
    assert watch.host
