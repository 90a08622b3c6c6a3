"""Base models: the pretrained full-attention checkpoints that an architecture starts from.

Built in by their public dimensions (the `config.json` of each checkpoint), or read from any Hugging Face
`config.json` of the Qwen2, Qwen3 and Llama families.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictBool, ValidationError

from hwsearch.errors import DataError, unknown_name
from hwsearch.searchspace.ffn import FFNSpec, SwiGLU
from hwsearch.searchspace.mixers import FullAttention
from hwsearch.searchspace.spec import PositiveInt, Spec, problems, read_json

__all__ = ["BASES", "Base", "Family", "base_from_config", "base_named"]

Family = Literal["qwen2", "qwen3", "llama"]


class RopeScaling(Spec):
    """Rotary frequencies stretched for long contexts the way Llama 3 does it."""

    rope_type: Literal["llama3"] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: PositiveInt


class Base(Spec):
    """A full-attention model: `num_layers` equal layers of `mixer` and `ffn` between embedding and LM head."""

    name: str
    family: Family
    num_layers: PositiveInt
    hidden_size: PositiveInt
    vocab_size: PositiveInt
    mixer: FullAttention
    ffn: FFNSpec
    tie_word_embeddings: StrictBool
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: PositiveInt


def _base(
    name: str,
    family: Family,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    vocab: int = 151936,
    tied: bool = True,
    positions: int = 32768,
    llama_factor: float | None = None,
) -> Base:
    llama = family == "llama"
    scaling = RopeScaling(
        factor=llama_factor or 1.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    return Base(
        name=name,
        family=family,
        num_layers=layers,
        hidden_size=hidden,
        vocab_size=vocab,
        mixer=FullAttention(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2",
        ),
        ffn=SwiGLU(intermediate_size=intermediate),
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5 if llama else 1e-6,
        rope_theta=5e5 if llama else 1e6,
        rope_scaling=scaling if llama_factor else None,
        max_position_embeddings=positions,
    )


BASES: Mapping[str, Base] = {
    base.name: base
    for base in (
        _base("Qwen2.5-0.5B", "qwen2", 24, 896, 4864, 14, 2, 64),
        _base("Qwen2.5-1.5B", "qwen2", 28, 1536, 8960, 12, 2, 128, positions=131072),
        _base("Qwen2.5-3B", "qwen2", 36, 2048, 11008, 16, 2, 128),
        _base("Qwen2.5-7B", "qwen2", 28, 3584, 18944, 28, 4, 128, vocab=152064, tied=False, positions=131072),
        _base("Qwen3-0.6B", "qwen3", 28, 1024, 3072, 16, 8, 128),
        _base("Qwen3-1.7B", "qwen3", 28, 2048, 6144, 16, 8, 128),
        _base("Qwen3-4B", "qwen3", 36, 2560, 9728, 32, 8, 128),
        _base("Qwen3-8B", "qwen3", 36, 4096, 12288, 32, 8, 128, tied=False),
        _base(
            "Llama-3.2-1B",
            "llama",
            16,
            2048,
            8192,
            32,
            8,
            64,
            vocab=128256,
            positions=131072,
            llama_factor=32,
        ),
        _base(
            "Llama-3.2-3B",
            "llama",
            28,
            3072,
            8192,
            24,
            8,
            128,
            vocab=128256,
            positions=131072,
            llama_factor=32,
        ),
        _base(
            "Llama-3.1-8B",
            "llama",
            32,
            4096,
            14336,
            32,
            8,
            128,
            vocab=128256,
            tied=False,
            positions=131072,
            llama_factor=8,
        ),
    )
}


def base_named(name: str) -> Base:
    """A built-in base, or the one that a `config.json` (a file, or a checkpoint folder with one) describes.

    Raises InputError for an unknown name, DataError for a config that cannot be read.
    """
    if name in BASES:
        return BASES[name]
    path = Path(name)
    if path.is_dir() and (path / "config.json").is_file():
        return base_from_config(path / "config.json")
    if path.is_file():
        return base_from_config(path)
    if path.is_dir():
        raise DataError(f"{name}: the folder has no config.json")
    if name.startswith((".", "/", "~")) or path.suffix == ".json":
        raise DataError(f"{name}: no such file or folder")
    raise unknown_name("base model", name, BASES)


def base_from_config(path: Path) -> Base:
    """The base that a Hugging Face `config.json` describes.

    Raises DataError where the file is no such config, the family is not supported, or the model does not use
    the same full attention in every layer.
    """
    config = read_json(path)
    if not isinstance(config, dict) or config.get("model_type") not in ("qwen2", "qwen3", "llama"):
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise DataError(f"{path}: model_type must be one of qwen2, qwen3, llama; got {found!r}")
    family: Family = config["model_type"]
    _refuse_unsupported(config, path)
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    try:
        heads = config["num_attention_heads"]
        if not config.get("head_dim") and config["hidden_size"] % heads:
            raise DataError(
                f"{path}: hidden_size {config['hidden_size']} is not a multiple of num_attention_heads {heads}, and "
                "there is no head_dim"
            )
        fields = {
            "name": config.get("_name_or_path") or path.resolve().parent.name,
            "family": family,
            "num_layers": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "vocab_size": config["vocab_size"],
            "mixer": {
                "kind": "full_attention",
                "num_heads": heads,
                "num_kv_heads": config.get("num_key_value_heads") or heads,
                "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
                "qk_norm": family == "qwen3",
                "qkv_bias": family == "qwen2",
            },
            "ffn": {"kind": "swiglu", "intermediate_size": config["intermediate_size"]},
            "tie_word_embeddings": config.get("tie_word_embeddings", False),
            "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
            "rope_theta": config.get("rope_theta") or rope.get("rope_theta", 10000.0),
            "rope_scaling": _scaling(scaling),
            "max_position_embeddings": config["max_position_embeddings"],
        }
        return Base.model_validate(fields)
    except KeyError as error:
        raise DataError(
            f"{path}: the key {error} is missing; is it the config.json of a {family} model?"
        ) from None
    except (TypeError, ZeroDivisionError) as error:
        raise DataError(f"{path}: a dimension is not a positive number ({error})") from None
    except ValidationError as error:
        raise DataError(f"{path}: {problems(error)}") from None


def _refuse_unsupported(config: Mapping[str, Any], path: Path) -> None:
    other = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
    if other or config.get("use_sliding_window"):
        raise DataError(
            f"{path}: a base must use full attention in every layer, "
            f"this one has {', '.join(other) or 'sliding'} layers; describe it as an architecture instead"
        )
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise DataError(f"{path}: only SwiGLU feed-forward networks without bias are supported")
    if config["model_type"] in ("llama", "qwen3") and config.get("attention_bias"):
        raise DataError(f"{path}: attention_bias puts a bias on the output too, which is not supported")


def _scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in (None, "default"):
        return None
    # Other kinds fail validation with their name: cost does not depend on them, a built model would.
    kept = {name: scaling[name] for name in RopeScaling.model_fields if name in scaling}
    return {**kept, "rope_type": kind}
