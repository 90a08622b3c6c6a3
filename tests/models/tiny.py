"""Tiny architectures and checkpoints that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from hwsearch.models.configuration import HybridConfig
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.ffn import SwiGLU
from hwsearch.searchspace.mixers import (
    GLA,
    H3,
    RGLRU,
    RWKV7,
    DeltaNet,
    FullAttention,
    GatedDeltaNet,
    JetBlock,
    Mamba2,
    MixerSpec,
    RetNet,
    SharedKVAttention,
    SlidingWindowAttention,
)

VOCABULARY = 97
FULL = FullAttention(num_heads=4, num_kv_heads=2, head_dim=16, qk_norm=True)
WINDOW = SlidingWindowAttention(window=5, **FULL.model_dump(exclude={"kind"}))
SHARED = SharedKVAttention(**FULL.model_dump(exclude={"kind"}))
SHARED_WINDOW = SharedKVAttention(**WINDOW.model_dump(exclude={"kind"}))

LINEAR: tuple[MixerSpec, ...] = (
    GatedDeltaNet(num_k_heads=2, num_v_heads=4, head_k_dim=12, head_v_dim=20),
    JetBlock(num_heads=2, head_k_dim=12, head_v_dim=20),
    DeltaNet(num_heads=4, head_k_dim=8, head_v_dim=8),
    GLA(num_heads=2, head_k_dim=8, head_v_dim=16),
    RetNet(num_heads=2, head_k_dim=8, head_v_dim=16),
    Mamba2(num_heads=4, head_dim=16, state_size=8),
    RWKV7(num_heads=2, head_dim=16),
    RGLRU(width=48, num_heads=2),
    H3(width=48),
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def base(num_layers: int, **changes: Any) -> Base:
    """A base of Qwen3's kind, hidden size 32."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "family": "qwen3",
        "num_layers": num_layers,
        "hidden_size": 32,
        "vocab_size": VOCABULARY,
        "mixer": FULL,
        "ffn": SwiGLU(intermediate_size=48),
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
    }
    return Base.model_validate(fields | changes)


def architecture(*mixers: MixerSpec, **changes: Any) -> Architecture:
    """One layer per mixer."""
    host = base(len(mixers), **changes)
    layers = tuple(LayerSpec(mixer=mixer, ffn=host.ffn) for mixer in mixers)
    return Architecture(name="hybrid", base=host, layers=layers)


def model(*mixers: MixerSpec, **changes: Any) -> HybridForCausalLM:
    """A model with random weights that are large enough to tell positions apart, in evaluation mode."""
    torch.manual_seed(0)
    config = HybridConfig.of(architecture(*mixers, **changes))
    config.initializer_range = 0.2
    made: HybridForCausalLM = HybridForCausalLM(config).eval()
    return made


def tokens(batch: int, length: int, *, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (batch, length), generator=generator)


def save_checkpoint(
    folder: Path, family: str, *, shards: bool = False, **changes: Any
) -> transformers.PreTrainedModel:
    """A checkpoint that transformers saved, and its model. Norms and biases are random too, so that none is a no-op."""
    torch.manual_seed(0)
    common = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    made: transformers.PreTrainedModel
    match family:
        case "qwen2":
            made = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common | changes))
        case "qwen3":
            made = transformers.Qwen3ForCausalLM(
                transformers.Qwen3Config(**{"head_dim": 16} | common | changes)
            )
        case _:
            made = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**{"rope_parameters": LLAMA3_ROPE} | common | changes)
            )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    made.save_pretrained(folder, max_shard_size="40KB" if shards else "5GB")
    return made.eval()


def largest_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def relative_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number on the right."""
    return largest_difference(left, right) / float(right.abs().max())


def logits(module: Any, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(ids, **arguments).logits
    return found


def pieces(total: int, lengths: Sequence[int]) -> list[slice]:
    """Slices of the given lengths that cover `total`, the last one cut short."""
    slices, start = [], 0
    for length in lengths:
        slices.append(slice(start, min(start + length, total)))
        start += length
    assert start >= total
    return slices


def tokenizer() -> Any:
    """One token per word, "t3" to "t96", after three special ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<pad>", "<eos>", "<bos>", *(f"t{i}" for i in range(3, VOCABULARY))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )
