"""What a model is asked to do: a prefill or one decode step, at a batch size and a context length."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import ValidationError, field_validator

from hwsearch.errors import InputError
from hwsearch.operators import dtype_bytes
from hwsearch.searchspace.spec import PositiveInt, Spec, problems

__all__ = ["Phase", "Workload"]

Phase = Literal["prefill", "decode"]

_EXAMPLE = "decode:batch=16,context=32768"


class Workload(Spec):
    """One forward pass of a whole model.

    prefill: `batch` prompts of `context` tokens each, from an empty cache.
    decode: one new token for each of `batch` sequences, the token's cache entry included in `context`.
    """

    phase: Phase
    batch: PositiveInt
    context: PositiveInt
    dtype: str = "bfloat16"

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        dtype_bytes(value)
        return value

    @property
    def element_bytes(self) -> int:
        return dtype_bytes(self.dtype)

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model: rows of every projection."""
        return self.batch * (self.context if self.phase == "prefill" else 1)

    @classmethod
    def from_text(cls, text: str, *, dtype: str = "bfloat16") -> Self:
        """A workload from `phase:batch=N,context=N[,dtype=NAME]`; k and m multiply by 1024 and 1024 squared.

        `dtype` is the one to take where the text names none.

        Raises InputError with an example where the text does not fit.
        """
        phase, _, rest = text.partition(":")
        fields: dict[str, int | str] = {"phase": phase.strip()}
        for part in filter(None, (p.strip() for p in rest.split(","))):
            name, equals, value = (p.strip() for p in part.partition("="))
            number = re.fullmatch(r"(-?\d+)([kKmM]?)", value)
            if not equals or (name in ("batch", "context") and not number) or name in fields:
                raise InputError(f"workload {text!r}: cannot read {part!r}; write for example {_EXAMPLE}")
            scale = {"": 1, "k": 1024, "m": 1024**2}[number[2].lower()] if number else 1
            fields[name] = int(number[1]) * scale if number else value
        try:
            return cls.model_validate({"dtype": dtype, **fields})
        except ValidationError as error:
            raise InputError(f"workload {text!r}: {problems(error)}; write for example {_EXAMPLE}") from None

    def __str__(self) -> str:
        dtype = "" if self.dtype == "bfloat16" else f",dtype={self.dtype}"
        return f"{self.phase}:batch={self.batch},context={self.context}{dtype}"
