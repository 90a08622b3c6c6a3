"""HybridConfig: an architecture as a transformers config.

The architecture is kept whole, as its JSON; the usual names beside it (`hidden_size`, `layer_types`, ...) are read from
it, for the tools that look for them. `auto_map` names the module that `save_pretrained` puts beside the weights, so
that AutoModelForCausalLM finds the classes on a machine where hwsearch is installed and was not imported.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from hwsearch.errors import InputError
from hwsearch.models.mixers.base import Rope
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import Base

__all__ = ["SHIM", "SHIM_TEXT", "HybridConfig", "rope_of"]

SHIM = "modeling_hwsearch"
SHIM_TEXT = (
    "from hwsearch.models.configuration import HybridConfig\n"
    "from hwsearch.models.hybrid import HybridForCausalLM, HybridModel\n"
)


class HybridConfig(PreTrainedConfig):
    """The config of HybridForCausalLM; make one with `HybridConfig.of(architecture)`.

    `vocab_size` alone may differ from the architecture's: resizing the embeddings changes it.
    """

    model_type = "hwsearch_hybrid"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (transformers declares it so)

    architecture: dict[str, Any] | None = None
    vocab_size: int | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers makes a config without arguments to find out what is a default.
        if self.architecture is not None:
            architecture = Architecture.from_content(self.architecture, source="config.json")
            self.architecture = architecture.model_dump(mode="json")
            self.vocab_size = self.vocab_size or architecture.base.vocab_size
            kwargs |= _usual_names(architecture)
            self.tie_word_embeddings = architecture.base.tie_word_embeddings
            kwargs["auto_map"] = {
                "AutoConfig": f"{SHIM}.HybridConfig",
                "AutoModel": f"{SHIM}.HybridModel",
                "AutoModelForCausalLM": f"{SHIM}.HybridForCausalLM",
            }
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, architecture: Architecture) -> HybridConfig:
        """The config of a model with this architecture."""
        return cls(architecture=architecture.model_dump(mode="json"))

    @property
    def spec(self) -> Architecture:
        """The architecture. InputError where there is none."""
        if self.architecture is None:
            raise InputError(
                "this HybridConfig holds no architecture: make it with HybridConfig.of(architecture)"
            )
        return Architecture.from_content(self.architecture, source="config.json")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: the shim that save_pretrained writes serves instead of a copy of this file."""


def rope_of(base: Base) -> Rope:
    """The rotary embedding of a base."""
    if base.rope_scaling is None:
        return Rope(theta=base.rope_theta)
    return Rope(theta=base.rope_theta, **base.rope_scaling.model_dump(exclude={"rope_type"}))


def _usual_names(architecture: Architecture) -> dict[str, Any]:
    base = architecture.base
    return {
        "hidden_size": base.hidden_size,
        "intermediate_size": base.ffn.intermediate_size,
        "num_hidden_layers": base.num_layers,
        "num_attention_heads": base.mixer.num_heads,
        "num_key_value_heads": base.mixer.num_kv_heads,
        "head_dim": base.mixer.head_dim,
        "rms_norm_eps": base.rms_norm_eps,
        "max_position_embeddings": base.max_position_embeddings,
        "layer_types": list(architecture.layer_types),
    }


AutoConfig.register(HybridConfig.model_type, HybridConfig)
