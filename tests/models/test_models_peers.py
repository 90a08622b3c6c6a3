"""Mixers against the modules of transformers that others wrote from the same papers, with the same weights.

Where fla or another kernel package is importable, transformers' modules call it, even without a GPU: their own
PyTorch functions are put back in its place.
"""

from __future__ import annotations

import inspect
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.models.recurrent_gemma import modeling_recurrent_gemma

from hwsearch.kernels.attention import attention
from hwsearch.models.contract import relative_error
from hwsearch.models.mixers import mixer_for
from hwsearch.models.mixers.base import Mixer
from hwsearch.searchspace import mixers as specs
from hwsearch.searchspace.mixers import MixerSpec

HIDDEN, LENGTH = 48, 70


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _plain(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *names: str) -> None:
    """Functions of a module without the wrapper that swaps them for kernels."""
    for name in names:
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))


def _random(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))


def _ours(spec: MixerSpec, weights: dict[str, Tensor]) -> Mixer:
    mixer = mixer_for(spec, HIDDEN, norm_eps=1e-5).eval()
    mixer.load_state_dict(weights)
    return mixer


def _agree(mixer: Mixer, hidden: Tensor, theirs: Tensor) -> None:
    """The whole sequence, and token by token behind a prompt."""
    with torch.no_grad():
        assert relative_error(mixer(hidden)[0], theirs) <= 1e-5
        out, state = mixer(hidden[:, :60], state=mixer.new_state(len(hidden)))
        outputs = [out]
        for t in range(60, LENGTH):
            out, state = mixer(hidden[:, t : t + 1], state=state)
            outputs.append(out)
        assert relative_error(torch.cat(outputs, dim=1), theirs) <= 1e-5


def test_mamba2(monkeypatch: pytest.MonkeyPatch) -> None:
    _plain(
        monkeypatch,
        modeling_mamba2,
        "mamba2_chunk_scan",
        "causal_conv1d_fn",
        "mamba2_split_conv1d_scan_combined",
    )
    config = transformers.Mamba2Config(
        hidden_size=HIDDEN,
        num_heads=6,
        head_dim=16,
        state_size=8,
        n_groups=2,
        expand=2,
        chunk_size=16,
        layer_norm_epsilon=1e-5,
        num_hidden_layers=1,
        use_bias=False,
    )
    theirs = modeling_mamba2.Mamba2Mixer(config, layer_idx=0).eval()
    _random(theirs)
    spec = specs.Mamba2(num_heads=6, head_dim=16, state_size=8, n_groups=2)
    hidden = torch.randn(2, LENGTH, HIDDEN)
    with torch.no_grad():
        expected = theirs(hidden)
    _agree(_ours(spec, theirs.state_dict()), hidden, expected)


def test_rg_lru() -> None:
    """From position 1 on: RecurrentGemma leaves the input of position 0 unscaled, the paper does not."""
    config = transformers.RecurrentGemmaConfig(
        hidden_size=HIDDEN, lru_width=60, num_attention_heads=3, num_hidden_layers=1, conv1d_width=4
    )
    theirs = modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock(config, layer_idx=0).eval()
    _random(theirs)
    hidden = torch.randn(2, LENGTH, HIDDEN)
    positions = torch.arange(1, LENGTH + 1)[None].expand(2, -1)
    with torch.no_grad():
        expected = theirs(hidden, positions, None, use_cache=False)[0]
    _agree(_ours(specs.RGLRU(width=60, num_heads=3), theirs.state_dict()), hidden, expected)


def test_gated_delta_net(monkeypatch: pytest.MonkeyPatch) -> None:
    _plain(monkeypatch, modeling_qwen3_next, "torch_chunk_gated_delta_rule", "causal_conv1d_fn")
    k_heads, v_heads, k_dim, v_dim = 2, 6, 8, 12
    config = transformers.Qwen3NextConfig(
        hidden_size=HIDDEN,
        linear_num_key_heads=k_heads,
        linear_num_value_heads=v_heads,
        linear_key_head_dim=k_dim,
        linear_value_head_dim=v_dim,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        rms_norm_eps=1e-5,
    )
    theirs = modeling_qwen3_next.Qwen3NextGatedDeltaNet(config, layer_idx=0).eval()
    _random(theirs)
    weights = theirs.state_dict()
    # Theirs lie side by side per key head: queries, keys, the values and gates of its value heads.
    group = v_heads // k_heads * v_dim
    joined = weights["in_proj_qkvz.weight"].view(k_heads, -1, HIDDEN)
    q, k, v, z = (x.reshape(-1, HIDDEN) for x in joined.split([k_dim, k_dim, group, group], dim=1))
    b, a = (x.reshape(-1, HIDDEN) for x in weights["in_proj_ba.weight"].view(k_heads, -1, HIDDEN).chunk(2, 1))
    keys = k_heads * k_dim
    q_conv, k_conv, v_conv = weights["conv1d.weight"].split([keys, keys, v_heads * v_dim])
    mapped = {
        "q_proj.weight": q,
        "k_proj.weight": k,
        "v_proj.weight": v,
        "g_proj.weight": z,
        "b_proj.weight": b,
        "a_proj.weight": a,
        "q_conv1d.weight": q_conv,
        "k_conv1d.weight": k_conv,
        "v_conv1d.weight": v_conv,
        "A_log": weights["A_log"],
        "dt_bias": weights["dt_bias"],
        "o_norm.weight": weights["norm.weight"],
        "o_proj.weight": weights["out_proj.weight"],
    }
    spec = specs.GatedDeltaNet(num_k_heads=k_heads, num_v_heads=v_heads, head_k_dim=k_dim, head_v_dim=v_dim)
    hidden = torch.randn(2, LENGTH, HIDDEN)
    with torch.no_grad():
        expected = theirs(hidden)
    _agree(_ours(spec, mapped), hidden, expected)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_attention_sinks(backend: str) -> None:
    """gpt-oss has a sink logit per head."""
    q, k, v = (torch.randn(2, heads, 33, 16) for heads in (6, 2, 2))
    sinks = torch.randn(6)
    mask = torch.full((33, 33), -torch.inf).triu(1)[None, None]
    module = SimpleNamespace(num_key_value_groups=3, sinks=sinks, training=False)
    expected, _ = modeling_gpt_oss.eager_attention_forward(module, q, k, v, mask, scaling=0.25)
    ours = attention(q, k, v, sinks_H=sinks, backend=backend)
    assert relative_error(ours.transpose(1, 2), expected) <= 1e-5
