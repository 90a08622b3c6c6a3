"""What a model is asked to do: a prefill or one decode step, at a batch size and a context length."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from hwsearch.errors import InputError
from hwsearch.operators import dtype_bytes
from hwsearch.searchspace.spec import PositiveInt, Spec, problems

__all__ = ["Phase", "Workload", "read_size", "read_workload"]

Phase = Literal["prefill", "decode"]

_EXAMPLE = "decode:batch=16,context=32768"
_NUMBERS = ("batch", "context", "chunk")
_MOST_PASSES = 1024


class Workload(Spec):
    """One forward pass of a whole model, or the passes of a chunked prefill.

    prefill: `batch` prompts of `context` tokens each, from an empty cache, all at once or `chunk` tokens of every
    prompt per pass. `past` tokens are in the cache already: that is how `passes` describes its later pieces.
    decode: one new token for each of `batch` sequences, the token's cache entry included in `context`.
    """

    phase: Phase
    batch: PositiveInt
    context: PositiveInt
    chunk: PositiveInt | None = None
    past: Annotated[int, Field(ge=0, strict=True)] = 0
    dtype: str = "bfloat16"

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        dtype_bytes(value)
        return value

    @model_validator(mode="after")
    def _chunks_of_a_prefill(self) -> Self:
        if self.phase == "decode" and (self.chunk is not None or self.past):
            raise ValueError("a decode step is one token per sequence: leave chunk out")
        if self.chunk is not None and self.context > _MOST_PASSES * self.chunk:
            raise ValueError(
                f"chunk={self.chunk} cuts context={self.context} into more than {_MOST_PASSES} passes: "
                f"use chunk={-(-self.context // _MOST_PASSES)} or more"
            )
        return self

    @property
    def element_bytes(self) -> int:
        return dtype_bytes(self.dtype)

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model: rows of every projection, over all passes."""
        return self.batch * (self.context if self.phase == "prefill" else 1)

    @property
    def pass_tokens(self) -> int:
        """Tokens of the largest pass: what activations are held for."""
        return (
            self.batch * min(self.chunk or self.context, self.context)
            if self.phase == "prefill"
            else self.batch
        )

    @property
    def passes(self) -> tuple[Workload, ...]:
        """The forward passes, in order; the workload itself where there is one."""
        if self.chunk is None or self.chunk >= self.context:
            return (self,)
        return tuple(
            self.replace(chunk=None, past=start, context=min(self.chunk, self.context - start))
            for start in range(0, self.context, self.chunk)
        )

    @classmethod
    def from_text(cls, text: str, *, dtype: str = "bfloat16") -> Self:
        """A workload from `phase:batch=N,context=N[,chunk=N][,dtype=NAME]`; k and m multiply by 1024 and 1024².

        `dtype` is the one to take where the text names none.

        Raises InputError with an example where the text does not fit, and for batch=max.
        """
        workload, largest = _read(cls, text, dtype)
        if largest:
            raise InputError(
                f"workload {text!r}: batch=max depends on the architecture, so that only hwsearch predict takes "
                f"it; write for example {_EXAMPLE}"
            )
        return workload

    def __str__(self) -> str:
        chunk = "" if self.chunk is None else f",chunk={self.chunk}"
        dtype = "" if self.dtype == "bfloat16" else f",dtype={self.dtype}"
        return f"{self.phase}:batch={self.batch},context={self.context}{chunk}{dtype}"


def read_workload(text: str, *, dtype: str = "bfloat16") -> tuple[Workload, bool]:
    """A workload as `Workload.from_text` reads it, and whether its text says batch=max; its batch is then 1."""
    return _read(Workload, text, dtype)


def read_size(text: str) -> int | None:
    """A whole number, k and m multiplying by 1024 and 1024 squared; None where it is none."""
    number = re.fullmatch(r"(-?\d+)([kKmM]?)", text)
    return int(number[1]) * {"": 1, "k": 1024, "m": 1024**2}[number[2].lower()] if number else None


W = TypeVar("W", bound=Workload)


def _read(kind: type[W], text: str, dtype: str) -> tuple[W, bool]:
    phase, _, rest = text.partition(":")
    fields: dict[str, int | str] = {"phase": phase.strip()}
    largest = False
    for part in filter(None, (p.strip() for p in rest.split(","))):
        name, equals, value = (p.strip() for p in part.partition("="))
        if name == "batch" and value == "max" and name not in fields:
            largest, fields[name] = True, 1
            continue
        number = read_size(value)
        if not equals or (name in _NUMBERS and number is None) or name in fields or name == "past":
            raise InputError(f"workload {text!r}: cannot read {part!r}; write for example {_EXAMPLE}")
        fields[name] = value if number is None else number
    try:
        return kind.model_validate({"dtype": dtype, **fields}), largest
    except ValidationError as error:
        raise InputError(f"workload {text!r}: {problems(error)}; write for example {_EXAMPLE}") from None
