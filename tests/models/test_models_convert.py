"""Conversion: the documented mapping from attention to linear mixers, neutral gates, and what the report says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.convert import build_model
from hwsearch.models.neutral import neutral_start
from hwsearch.models.projections import Heads, Teacher, channel_map, mapped_mixer
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.mixers import GLA, GatedDeltaNet, JetBlock, Mamba2, MixerSpec
from tests.models import tiny


def test_as_many_heads_as_the_teacher_take_one_each() -> None:
    teacher = Heads(3, 4)
    assert channel_map(Heads(3, 4), teacher, rotated=False).tolist() == list(range(12))
    assert channel_map(Heads(3, 2), teacher, rotated=False).tolist() == [0, 1, 4, 5, 8, 9]
    # Channels 0 and 2 of a head turn together, faster than 1 and 3.
    assert channel_map(Heads(3, 2), teacher, rotated=True).tolist() == [1, 3, 5, 7, 9, 11]
    assert channel_map(Heads(3, 5), teacher, rotated=False).tolist() == [
        0,
        1,
        2,
        3,
        -1,
        4,
        5,
        6,
        7,
        -1,
        8,
        9,
        10,
        11,
        -1,
    ]


def test_more_heads_repeat_the_teachers_and_fewer_join_them() -> None:
    teacher = Heads(2, 2)
    assert channel_map(Heads(4, 2), teacher, rotated=False).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert channel_map(Heads(1, 4), teacher, rotated=False).tolist() == [0, 1, 2, 3]
    assert channel_map(Heads(1, 2), teacher, rotated=False).tolist() == [0, 2]
    assert channel_map(Heads(2, 3), Heads(3, 2), rotated=False).tolist() == [0, 1, -1, 2, 3, 4]


def _teacher(heads: int, kv_heads: int, dim: int, *, qk_norm: bool = False) -> Teacher:
    torch.manual_seed(0)
    mixer = tiny.FULL.replace(num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, qk_norm=qk_norm)
    attention = {
        "q_proj.weight": torch.randn(heads * dim, 32),
        "k_proj.weight": torch.randn(kv_heads * dim, 32),
        "v_proj.weight": torch.randn(kv_heads * dim, 32),
        "o_proj.weight": torch.randn(32, heads * dim),
        "q_norm.weight": torch.rand(dim) + 0.5,
        "k_norm.weight": torch.rand(dim) + 0.5,
    }
    return Teacher.of(mixer, attention)


@pytest.mark.parametrize(("heads", "dim"), [(4, 8), (8, 8), (2, 16), (1, 32), (4, 11), (12, 8), (2, 40)])
def test_values_and_output_together_do_what_they_did(heads: int, dim: int) -> None:
    """Wherever every channel of the teacher is read, output times values is the teacher's."""
    teacher = _teacher(4, 2, 8)
    spec = GatedDeltaNet(num_k_heads=heads, num_v_heads=heads, head_k_dim=4, head_v_dim=dim)
    made = mapped_mixer(spec, teacher)
    torch.testing.assert_close(
        made["o_proj.weight"] @ made["v_proj.weight"], teacher.o @ teacher.v, atol=1e-5, rtol=1e-4
    )


def test_grouped_keys_reach_every_head_and_the_norms_weight_is_kept() -> None:
    teacher = _teacher(4, 2, 8, qk_norm=True)
    plain = _teacher(4, 2, 8)
    assert torch.equal(plain.k[:8], plain.k[8:16])
    assert not torch.equal(plain.k[8:16], plain.k[16:24])
    spec = GatedDeltaNet(num_k_heads=4, num_v_heads=4, head_k_dim=8, head_v_dim=8)
    made = mapped_mixer(spec, teacher)
    x = torch.randn(5, 32)
    weight = teacher.k[:8] / plain.k[:8]
    attended = (
        F.rms_norm(x @ plain.k[:8].T, (8,)) * weight[:, 0]
    )  # as Qwen3 forms its keys, before they rotate
    torch.testing.assert_close(
        F.normalize(x @ made["k_proj.weight"][:8].T, dim=-1),
        F.normalize(attended, dim=-1),
        atol=1e-4,
        rtol=1e-3,
    )


def test_mamba2_takes_queries_as_c_and_keys_as_b() -> None:
    teacher = _teacher(4, 2, 8)
    spec = Mamba2(num_heads=4, head_dim=8, state_size=8, n_groups=4)
    made = mapped_mixer(spec, teacher)["in_proj.weight"]
    assert made.shape == (32 + 32 + 2 * 32 + 4, 32)
    assert torch.equal(made[32:64], teacher.v)
    assert torch.equal(made[64:96], teacher.k)
    assert torch.equal(made[96:128], teacher.q)
    assert not made[128:].any()


def test_neutral_gates_forget_slowly_and_alike_for_every_token() -> None:
    spec = GatedDeltaNet(num_k_heads=2, num_v_heads=4, head_k_dim=12, head_v_dim=20)
    start = neutral_start(spec, 32)
    rates = start["A_log"].exp() * F.softplus(start["dt_bias"])
    torch.testing.assert_close(rates, torch.logspace(-3, -1, 4))
    assert not start["a_proj.weight"].any()
    assert not start["b_proj.weight"].any()
    assert torch.equal(start["k_conv1d.weight"][:, 0], torch.tensor([0.0, 0, 0, 1]).expand(24, 4))
    gates = neutral_start(GLA(num_heads=2, head_k_dim=3, head_v_dim=4), 32)["gk_proj.1.bias"]
    torch.testing.assert_close(-F.logsigmoid(gates) / 16, torch.logspace(-3, -1, 3).repeat(2))
    kernel = neutral_start(JetBlock(num_heads=2, head_k_dim=3, head_v_dim=4), 32)
    assert kernel["dynamic_conv1d.kernel_generator.w2.bias"].reshape(8, 4).sum(0).tolist() == [0, 0, 0, 8]


@pytest.mark.parametrize("spec", tiny.LINEAR, ids=lambda spec: spec.kind)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_every_linear_mixer_converts_and_runs(tmp_path: Path, spec: MixerSpec, family: str) -> None:
    tiny.save_checkpoint(tmp_path, family)
    checkpoint = Checkpoint(tmp_path)
    base = checkpoint.base
    layers = tuple(LayerSpec(mixer=mixer, ffn=base.ffn) for mixer in (base.mixer, spec, base.mixer))
    architecture = Architecture(name="a", base=base, layers=layers)
    model, origins = build_model(architecture, checkpoint=checkpoint, seed=3)
    mapped = mapped_mixer(spec, Teacher.of(base.mixer, _attention(checkpoint)))
    neutral = neutral_start(spec, base.hidden_size)
    state = model.get_submodule("model.layers.1.mixer").state_dict()
    assert mapped, "nothing of the attention is used"
    assert set(neutral) <= set(state)
    for name, tensor in neutral.items():
        assert torch.equal(state[name], tensor.to(state[name].dtype)), name
    assert {f"mixer.{name}" for name in mapped} == set(origins[1].mapped)
    assert {f"mixer.{name}" for name in state} == {*origins[1].mapped, *origins[1].new} - {
        name for name in origins[1].new if not name.startswith("mixer.")
    }
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    again, _ = build_model(architecture, checkpoint=checkpoint, seed=3)
    ids = tiny.tokens(2, 20)
    logits = tiny.logits(model, ids, use_cache=False)
    assert torch.equal(logits, tiny.logits(again, ids, use_cache=False))
    assert math.isfinite(float(logits.sum()))


def _attention(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    prefix = "model.layers.1.self_attn."
    return {
        name.removeprefix(prefix): checkpoint.tensor(name)
        for name in checkpoint.names
        if name.startswith(prefix)
    }
