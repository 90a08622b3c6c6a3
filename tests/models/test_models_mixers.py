"""Every mixer keeps the contract; and some facts of single mixers."""

from __future__ import annotations

import pytest

from hwsearch.errors import InputError
from hwsearch.models.contract import MixerContract
from hwsearch.models.mixers import MIXERS, mixer_for
from hwsearch.searchspace import mixers as specs


class TestFullAttention(MixerContract):
    spec = specs.FullAttention(num_heads=3, num_kv_heads=1, head_dim=8, qk_norm=True, qkv_bias=True)
    bookkeeping_bytes = 8  # how many tokens were seen


class TestSigmoidAttention(MixerContract):
    spec = specs.FullAttention(num_heads=6, num_kv_heads=3, head_dim=8, scores="sigmoid")
    bookkeeping_bytes = 8


class TestSlidingWindow(MixerContract):
    spec = specs.SlidingWindowAttention(window=6, num_heads=3, num_kv_heads=3, head_dim=8)
    tokens_held = 5  # the next query brings the sixth
    bookkeeping_bytes = 8


class TestSinksInAWindow(MixerContract):
    spec = specs.SlidingWindowAttention(window=30, num_heads=6, num_kv_heads=2, head_dim=8, sinks=True)
    tokens_held = 29
    bookkeeping_bytes = 8


class TestGatedDeltaNet(MixerContract):
    spec = specs.GatedDeltaNet(num_k_heads=1, num_v_heads=3, head_k_dim=8, head_v_dim=12)


class TestJetBlock(MixerContract):
    spec = specs.JetBlock(num_heads=3, head_k_dim=6, head_v_dim=8)


class TestDeltaNet(MixerContract):
    spec = specs.DeltaNet(num_heads=3, head_k_dim=8, head_v_dim=12, conv_size=3)


class TestGLA(MixerContract):
    spec = specs.GLA(num_heads=3, head_k_dim=8, head_v_dim=12)


class TestRetNet(MixerContract):
    spec = specs.RetNet(num_heads=3, head_k_dim=8, head_v_dim=12)


class TestMamba2(MixerContract):
    spec = specs.Mamba2(num_heads=6, head_dim=10, state_size=7, n_groups=2)


class TestRWKV7(MixerContract):
    spec = specs.RWKV7(num_heads=3, head_dim=8, decay_low_rank_dim=5, a_low_rank_dim=4, gate_low_rank_dim=6)


class TestRGLRU(MixerContract):
    spec = specs.RGLRU(width=30, num_heads=3)


class TestH3(MixerContract):
    spec = specs.H3(width=20, state_size=5)


def test_every_mixer_keeps_the_contract() -> None:
    # Shared keys and values keep it together with the layer that lends them: test_models_shared_kv.py.
    alone = set(MIXERS) - {specs.SharedKVAttention}
    cases = [case for case in MixerContract.__subclasses__() if hasattr(case, "spec")]
    assert {type(case.spec) for case in cases} >= alone


def test_a_backend_that_no_operation_has_is_refused() -> None:
    mixer = mixer_for(TestRGLRU.spec, 24, backend="triton")
    with pytest.raises(InputError, match="unknown backend for short_conv and diagonal_scan"):
        mixer(TestRGLRU().inputs())
    mixer = mixer_for(TestGLA.spec, 24, backend="fla")
    with pytest.raises(InputError, match="runs on CUDA devices, and the tensors are on cpu"):
        mixer(TestGLA().inputs())


def test_rwkv7_is_as_wide_as_the_model() -> None:
    with pytest.raises(InputError, match="num_heads 3 x head_dim 8 = 24 must be the hidden size 32"):
        mixer_for(TestRWKV7.spec, 32)
