"""An architecture: a base model with one (mixer, FFN) pair per layer. Architecture JSON, version 1.

`layer_types` (Hugging Face's vocabulary) and `targets` (model classes of transformers that can hold it) are
written for the reader and derived from the layers; a file in which they disagree with the layers is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from hwsearch.errors import DataError
from hwsearch.operators import Operator
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.ffn import FFNSpec
from hwsearch.searchspace.mixers import (
    FullAttention,
    GatedDeltaNet,
    MixerSpec,
    NoMixer,
    SharedKVAttention,
    SlidingWindowAttention,
    elementwise,
)
from hwsearch.searchspace.spec import Spec, decode_json, problems, read_json
from hwsearch.searchspace.workload import Workload

__all__ = ["SCHEMA_VERSION", "Architecture", "LayerSpec", "architecture_schema"]

SCHEMA_VERSION = 1
_DERIVED = ("layer_types", "targets")
_FULL_CLASS = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


class LayerSpec(Spec):
    """One decoder layer: a pre-normed mixer and a pre-normed FFN, each with its residual."""

    mixer: MixerSpec
    ffn: FFNSpec

    def parameters(self, hidden_size: int) -> int:
        norms = 1 if isinstance(self.mixer, NoMixer) else 2
        return self.mixer.parameters(hidden_size) + self.ffn.parameters(hidden_size) + norms * hidden_size

    def lower(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        """The operators of the layer over all passes of the workload.

        A residual addition runs inside the norm that follows it.
        """
        return self.lower_mixer(hidden_size, workload) + self.lower_ffn(hidden_size, workload)

    def lower_mixer(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        if isinstance(self.mixer, NoMixer):
            return ()
        return tuple(
            op
            for step in workload.passes
            for op in (_norm(hidden_size, step), *self.mixer.lower(hidden_size, step))
        )

    def lower_ffn(self, hidden_size: int, workload: Workload) -> tuple[Operator, ...]:
        return tuple(
            op
            for step in workload.passes
            for op in (_norm(hidden_size, step), *self.ffn.lower(hidden_size, step))
        )


def _norm(hidden_size: int, workload: Workload) -> Operator:
    return elementwise(workload, hidden_size, reads=2, writes=2)


class Architecture(Spec):
    """A whole model. `layers` has one entry for each of the base's layers."""

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1)
    base: Base
    layers: tuple[LayerSpec, ...]

    @model_validator(mode="before")
    @classmethod
    def _drop_derived(cls, data: Any, info: ValidationInfo) -> Any:
        """Check the derived keys of a file against its layers, then leave them out."""
        if not isinstance(data, dict) or not any(key in data for key in _DERIVED):
            return data
        stated = {key: data[key] for key in _DERIVED if key in data}
        rest = {key: value for key, value in data.items() if key not in _DERIVED}
        architecture = cls.model_validate(rest, context=info.context)
        for key, value in stated.items():
            derived = getattr(architecture, key)
            if not isinstance(value, list | tuple) or list(value) != list(derived):
                raise ValueError(f"{key} does not follow from the layers; remove it or write {list(derived)}")
        return rest

    @model_validator(mode="after")
    def _one_per_layer(self) -> Self:
        if len(self.layers) != self.base.num_layers:
            raise ValueError(
                f"layers has {len(self.layers)} entries and the base {self.base.name} {self.base.num_layers} layers"
            )
        return self

    @model_validator(mode="after")
    def _keys_to_read(self) -> Self:
        for index, (layer, source) in enumerate(zip(self.layers, self.kv_sources, strict=True)):
            if isinstance(layer.mixer, SharedKVAttention) and source is None:
                raise ValueError(
                    f"layers[{index}]: shared_kv_attention has nothing to read: no earlier layer is "
                    f"{layer.mixer.wanted}"
                )
        return self

    @model_serializer(mode="wrap")
    def _write_derived(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), "layer_types": list(self.layer_types), "targets": list(self.targets)}

    @cached_property
    def layer_types(self) -> tuple[str, ...]:
        """Each layer in Hugging Face's `layer_types` vocabulary."""
        return tuple(layer.mixer.layer_type for layer in self.layers)

    @cached_property
    def kv_sources(self) -> tuple[int | None, ...]:
        """Per layer the one whose keys and values it reads instead of its own; None for all but shared_kv_attention."""
        return tuple(
            next((i for i in reversed(range(index)) if layer.mixer.reads(self.layers[i].mixer)), None)
            if isinstance(layer.mixer, SharedKVAttention)
            else None
            for index, layer in enumerate(self.layers)
        )

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Model classes of transformers whose layers can hold this architecture; often none."""
        return tuple(_native_targets(self))

    @property
    def parameters(self) -> int:
        """Trainable parameters, tied embeddings counted once."""
        hidden = self.base.hidden_size
        embeddings = self.base.vocab_size * hidden * (1 if self.base.tie_word_embeddings else 2)
        return embeddings + hidden + sum(layer.parameters(hidden) for layer in self.layers)

    def cache_bytes(self, context: int, element_bytes: int = 2) -> int:
        """Bytes per sequence of keys, values and fp32 recurrent states after `context` tokens."""
        return sum(layer.mixer.cache_bytes(context, element_bytes) for layer in self.layers)

    def conv_state_bytes(self, element_bytes: int = 2) -> int:
        """Bytes per sequence that short convolutions keep between decode steps."""
        return sum(layer.mixer.conv_state_bytes(element_bytes) for layer in self.layers)

    def lower_embedding(self, workload: Workload) -> tuple[Operator, ...]:
        return tuple(elementwise(step, self.base.hidden_size, reads=1, writes=1) for step in workload.passes)

    def lower_head(self, workload: Workload) -> tuple[Operator, ...]:
        """Final norm and LM head, on the last token of each sequence."""
        last = Workload(phase="decode", batch=workload.batch, context=workload.context, dtype=workload.dtype)
        return (
            _norm(self.base.hidden_size, last),
            Operator("gemm", (last.tokens, self.base.vocab_size, self.base.hidden_size)),
        )

    def count(self) -> Counter[str]:
        """How many layers use each kind of mixer."""
        return Counter(layer.mixer.kind for layer in self.layers)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str) -> Self:
        """Raises DataError, naming `source` and the path of the first problems."""
        return cls.from_content(decode_json(text, source=source), source=source)

    @classmethod
    def from_content(cls, data: Any, *, source: str) -> Self:
        """From decoded JSON. Raises DataError, naming `source` and the path of the first problems."""
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DataError(
                f"{source}: schema_version {version} is newer than {SCHEMA_VERSION}, "
                "the one this hwsearch reads; upgrade hwsearch"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DataError(f"{source} is not a valid architecture: {problems(error)}") from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises DataError where the file cannot be read or does not hold an architecture."""
        return cls.from_content(read_json(path), source=str(path))

    @classmethod
    def of_base(cls, base: Base) -> Self:
        """The untouched base model."""
        layer = LayerSpec(mixer=base.mixer, ffn=base.ffn)
        return cls(name=base.name, base=base, layers=(layer,) * base.num_layers)


def architecture_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of architecture JSON version 1."""
    schema = Architecture.model_json_schema(mode="validation")
    schema["properties"] |= {
        "layer_types": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Derived from the layers.",
        },
        "targets": {"type": "array", "items": {"type": "string"}, "description": "Derived from the layers."},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hwsearch architecture, version 1",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def _native_targets(architecture: Architecture) -> list[str]:
    """Which transformers classes can hold the layers without custom code (verified on transformers 5.23).

    A native class holds one set of attention dimensions, one window, and one feed-forward size.
    """
    base = architecture.base
    mixers = {layer.mixer for layer in architecture.layers}
    if any(layer.ffn != base.ffn for layer in architecture.layers):
        return []
    full = {m for m in mixers if isinstance(m, FullAttention)}
    sliding = {m for m in mixers if isinstance(m, SlidingWindowAttention)}
    delta = {m for m in mixers if isinstance(m, GatedDeltaNet)}
    windowless = {FullAttention(**m.model_dump(exclude={"kind", "window"})) for m in sliding}
    plain = not base.mixer.sinks and base.mixer.scores == "softmax"
    if not plain or (full | windowless) - {base.mixer} or len(sliding) > 1 or len(delta) > 1:
        return []
    if mixers == full:
        return [_FULL_CLASS[base.family]]
    if mixers == full | sliding:
        return ["MinistralForCausalLM" if base.family == "llama" else _FULL_CLASS[base.family]]
    if mixers == full | delta and full and base.family == "qwen3":
        return ["Qwen3_5ForCausalLM"]
    return []
