"""Parameters and caches against published figures; operators' FLOPs and bytes against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from hwsearch.errors import InputError
from hwsearch.operators import KINDS, attended_pairs, columns, operator
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.mixers import GatedDeltaNet, JetBlock
from hwsearch.searchspace.references import architecture_named
from hwsearch.searchspace.workload import Workload

MIB = 2**20


@pytest.mark.parametrize(
    ("name", "cache_mib"),  # arXiv 2508.15884 table 3, 64K tokens; hybrids with fp32 recurrent state
    [
        ("Qwen2.5-1.5B", 1792),
        ("Qwen3-1.7B", 7168),
        ("Llama-3.2-3B", 7168),
        ("jet-nemotron-4b", 258.0),
        ("jet-nemotron-2b", 157.25),
    ],
)
def test_cache_at_64k_is_exactly_the_published_one(name: str, cache_mib: float) -> None:
    assert architecture_named(name).cache_bytes(65536) == cache_mib * MIB


def test_short_convolution_state_of_jet_nemotron_2b_is_24_kib_a_layer() -> None:
    architecture = architecture_named("jet-nemotron-2b")
    assert architecture.conv_state_bytes() == architecture.count()["jet_block"] * 24 * 1024


@pytest.mark.parametrize(
    ("name", "billions"),  # the checkpoints' published parameter counts
    [
        ("Qwen2.5-0.5B", 0.494),
        ("Qwen2.5-1.5B", 1.544),
        ("Qwen2.5-3B", 3.086),
        ("Qwen2.5-7B", 7.616),
        ("Qwen3-0.6B", 0.596),
        ("Qwen3-1.7B", 1.721),
        ("Qwen3-4B", 4.022),
        ("Qwen3-8B", 8.191),
        ("Llama-3.2-1B", 1.236),
        ("Llama-3.2-3B", 3.213),
        ("Llama-3.1-8B", 8.030),
    ],
)
def test_parameters_of_the_built_in_bases(name: str, billions: float) -> None:
    assert architecture_named(name).parameters / 1e9 == pytest.approx(billions, abs=6e-4)


@pytest.mark.parametrize(
    ("d_k", "d_v", "heads", "billions"),  # arXiv 2508.15884 table 2; its row 256/144/8 contradicts the others
    [
        (256, 288, 4, 1.62),
        (192, 384, 4, 1.64),
        (128, 576, 4, 1.70),
        (192, 192, 8, 1.70),
        (128, 288, 8, 1.74),
        (128, 192, 12, 1.78),
        (96, 256, 12, 1.84),
        (64, 384, 12, 1.98),
    ],
)
def test_parameters_of_the_published_hardware_aware_grid(
    d_k: int, d_v: int, heads: int, billions: float
) -> None:
    base = BASES["Qwen2.5-1.5B"]
    delta = GatedDeltaNet(num_k_heads=heads, num_v_heads=heads, head_k_dim=d_k, head_v_dim=d_v)
    mixers = (base.mixer,) * 4 + (delta,) * 24
    layers = tuple(LayerSpec(mixer=mixer, ffn=base.ffn) for mixer in mixers)
    architecture = Architecture(name="grid", base=base, layers=layers)
    assert architecture.parameters / 1e9 == pytest.approx(billions, abs=0.01)
    # 24 states of 294912 fp32 values; two-headed KV cache of four layers
    assert architecture.cache_bytes(65536) == 24 * 294912 * 4 + 4 * 65536 * 1024


@pytest.mark.parametrize("seq_len", [1, 5, 9])
@pytest.mark.parametrize("past_len", [0, 1, 7])
@pytest.mark.parametrize("window", [0, 1, 3, 8, 100])
def test_attended_pairs_equal_counting_the_mask(seq_len: int, past_len: int, window: int) -> None:
    query = past_len + np.arange(seq_len)[:, None]
    key = np.arange(past_len + seq_len)[None]
    mask = (key <= query) & ((query - key < window) if window else True)
    args = (np.float64(x) for x in (seq_len, past_len, window))
    assert float(attended_pairs(*(np.array([x]) for x in args))[0]) == mask.sum()


def test_projection_flops_are_two_per_weight_and_token() -> None:
    base = BASES["Qwen2.5-1.5B"]
    workload = Workload(phase="prefill", batch=3, context=7)
    for mixer in (base.mixer, JetBlock(num_heads=12, head_k_dim=96, head_v_dim=256)):
        gemms = [op for op in mixer.lower(base.hidden_size, workload) if op.kind == "gemm"]
        flops = sum(float(KINDS["gemm"].flops(columns("gemm", [op.dims]))[0]) for op in gemms)
        weights = sum(op.dims[1] * op.dims[2] for op in gemms)
        assert flops == 2 * 21 * weights
        # Biases, norms, decays and convolution biases are the only parameters outside the projections.
        assert 0 < mixer.parameters(base.hidden_size) - weights < 0.01 * weights


def test_a_window_as_long_as_the_sequence_is_no_window() -> None:
    dims = {"batch": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    wide = operator("generation_attention", kv_len=128, window=128, **dims)
    assert wide == operator("generation_attention", kv_len=128, window=0, **dims)
    narrow = operator("context_attention", seq_len=64, past_len=65, window=128, **dims)
    assert narrow.dims[-1] == 128


@pytest.mark.parametrize(
    ("kind", "dims", "told"),
    [
        ("gem", {"m": 1}, "did you mean gemm"),
        ("gemm", {"m": 1, "n": 2}, "takes the dimensions m, n, k"),
        ("gemm", {"m": 0, "n": 2, "k": 3}, "m must be at least 1, got 0"),
    ],
)
def test_impossible_operators_are_refused(kind: str, dims: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        operator(kind, **dims)
