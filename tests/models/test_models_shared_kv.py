"""Attention over an earlier layer's keys and values: contract, the attention it equals, conversion, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hwsearch.errors import InputError
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.contract import MixerContract
from hwsearch.models.convert import build_model
from hwsearch.models.mixers import mixer_for
from hwsearch.models.mixers.attention import KeysValues, SoftmaxAttention
from hwsearch.models.mixers.base import Mixer, MixerState, Rope
from hwsearch.models.native import native_name
from hwsearch.models.runtimes import fla_config, jet_nemotron_config
from hwsearch.operators import Operator
from hwsearch.searchspace.mixers import FullAttention, NoMixer, SharedKVAttention, SlidingWindowAttention
from hwsearch.searchspace.mixers import Mixer as Spec
from hwsearch.searchspace.mixers.base import LayerType
from hwsearch.searchspace.workload import Workload
from tests.models import tiny

OWN = FullAttention(num_heads=6, num_kv_heads=3, head_dim=8, qk_norm=True, qkv_bias=True)
WINDOWED = SlidingWindowAttention(window=6, num_heads=3, num_kv_heads=3, head_dim=8)


def reading(spec: FullAttention | SlidingWindowAttention) -> SharedKVAttention:
    """A layer that reads what a layer of this spec keeps."""
    return SharedKVAttention(**spec.model_dump(exclude={"kind"}))


class PairSpec(Spec):
    """A layer with keys and values, and one behind it that reads them."""

    source: FullAttention | SlidingWindowAttention
    reader: SharedKVAttention

    @property
    def layer_type(self) -> LayerType:
        return "full_attention"

    @property
    def label(self) -> str:
        return ""

    def parameters(self, hidden_size: int) -> int:
        return self.source.parameters(hidden_size) + self.reader.parameters(hidden_size)

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        return self.source.lower(hidden_size, workload) + self.reader.lower(hidden_size, workload)

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        return self.source.cache_bytes(context, element_bytes) + self.reader.cache_bytes(
            context, element_bytes
        )


class Pair(Mixer):
    """Both on the same inputs; what they add up to."""

    def __init__(self, spec: PairSpec, hidden_size: int) -> None:
        super().__init__()
        rope = Rope(theta=10000.0)
        self.source = mixer_for(spec.source, hidden_size, norm_eps=1e-5, rope=rope)
        self.reader = mixer_for(spec.reader, hidden_size, norm_eps=1e-5, rope=rope)

    @classmethod
    def from_spec(cls, spec: Spec, hidden_size: int, **_: object) -> Pair:
        assert isinstance(spec, PairSpec)
        return cls(spec, hidden_size)

    def new_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MixerState:
        return self.source.new_state(batch, device=device, dtype=dtype)

    def forward(
        self,
        hidden_BTD: Tensor,
        *,
        state: MixerState | None = None,
        mask_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        lent: list[KeysValues] = []
        self.source.backend = self.reader.backend = self.backend
        mixed, state = self.source(
            hidden_BTD, state=state, mask_BT=mask_BT, positions_BT=positions_BT, lent=lent
        )
        again, _ = self.reader(hidden_BTD, state=lent[0], mask_BT=mask_BT)
        self.kernel_used = self.reader.kernel_used
        return mixed + again, state


class PairContract(MixerContract):
    bookkeeping_bytes = 8

    def build(self) -> Mixer:
        assert isinstance(self.spec, PairSpec)
        torch.manual_seed(0)
        pair = Pair(self.spec, self.hidden_size)
        with torch.no_grad():
            for parameter in pair.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return pair.to(self.device).eval()


class TestSharedFullAttention(PairContract):
    spec = PairSpec(source=OWN, reader=reading(OWN))


class TestSharedWindow(PairContract):
    spec = PairSpec(source=WINDOWED, reader=reading(WINDOWED).replace(num_heads=6, sinks=True, qk_norm=True))
    tokens_held = 5


@torch.no_grad()
@pytest.mark.parametrize("own", [OWN, WINDOWED])
def test_it_is_the_attention_that_has_these_keys_itself(
    own: FullAttention | SlidingWindowAttention,
) -> None:
    """The same inputs, the reader's queries and output, the source's keys and values."""
    torch.manual_seed(0)
    rope = Rope(theta=10000.0)
    source, reader = mixer_for(own, 24, rope=rope), mixer_for(reading(own), 24, rope=rope)
    whole = mixer_for(own, 24, rope=rope)
    keys = {name: t for name, t in source.state_dict().items() if name.startswith(("k_", "v_"))}
    whole.load_state_dict(reader.state_dict() | keys)
    hidden, lent = torch.randn(2, 19, 24), []  # type: ignore[var-annotated]
    assert isinstance(source, SoftmaxAttention)
    source(hidden, lent=lent)
    assert torch.equal(reader(hidden, state=lent[0])[0], whole(hidden)[0])
    with pytest.raises(InputError, match="keys and values of an earlier layer"):
        reader(hidden)


STACK = (tiny.FULL, tiny.WINDOW, tiny.SHARED, tiny.SHARED_WINDOW, NoMixer(), tiny.SHARED)


def test_the_cache_holds_the_lenders_keys_alone() -> None:
    model, cheap = tiny.model(*STACK), tiny.model(*STACK[:2])
    found = []
    for each in (model, cheap):
        cache = each.new_cache()
        tiny.logits(each, tiny.tokens(2, 30), past_key_values=cache)
        found.append(cache.bytes)
    assert found[0] == found[1]
    spec = model.config.spec
    assert spec.cache_bytes(30, 4) == tiny.architecture(*STACK[:2]).cache_bytes(30, 4)
    assert spec.kv_sources == (None, None, 0, 1, None, 0)


def test_hooks_that_move_inputs_hand_on_what_is_lent() -> None:
    """As on a model that accelerate spreads over several devices; here they are one and the same."""
    hooks = pytest.importorskip("accelerate.hooks")
    model, ids = tiny.model(*STACK), tiny.tokens(2, 9)
    expected = tiny.logits(model, ids)
    for layer in model.model.layers:
        hooks.add_hook_to_module(layer, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
    assert torch.equal(tiny.logits(model, ids), expected)


def test_checkpointing_that_would_lose_gradients_is_refused() -> None:
    model = tiny.model(*STACK).train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="'use_reentrant': False"):
        model(tiny.tokens(1, 5))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_conversion_takes_queries_and_output_and_no_keys(tmp_path: Path, family: str) -> None:
    tiny.save_checkpoint(tmp_path, family)
    teacher = Checkpoint(tmp_path)
    own = teacher.base.mixer
    architecture = tiny.architecture(own, reading(own), own).replace(base=teacher.base)
    model, origins = build_model(architecture, checkpoint=teacher)
    prefix, theirs = "model.layers.1.mixer.", "model.layers.1.self_attn."
    taken = {key.removeprefix(prefix): t for key, t in model.state_dict().items() if key.startswith(prefix)}
    assert {name[0] for name in taken} == {"q", "o"}
    for name, tensor in taken.items():
        assert torch.equal(tensor, teacher.tensor(theirs + name)), name
    assert origins[1].new == origins[1].mapped == ()


def test_other_runtimes_say_that_they_cannot_hold_it() -> None:
    architecture = tiny.architecture(tiny.FULL, tiny.SHARED, tiny.LINEAR[0])
    assert architecture.targets == ()
    with pytest.raises(InputError, match=r"layer 1 \(shared_kv_attention\): it has no such mixer"):
        native_name(architecture)
    with pytest.raises(InputError, match=r"layer 1 \(shared_kv_attention\): there is no such mixer there"):
        fla_config(architecture)
    with pytest.raises(InputError, match=r"layer 1 \(shared_kv_attention\): there is no such mixer there"):
        jet_nemotron_config(tiny.architecture(tiny.FULL, tiny.SHARED, tiny.LINEAR[1]))
