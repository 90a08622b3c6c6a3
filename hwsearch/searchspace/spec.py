"""The base of every spec: frozen, strict, unknown keys refused, errors that name the path."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwsearch.errors import DataError

__all__ = ["PositiveInt", "Spec", "parse", "problems"]

S = TypeVar("S", bound="Spec")
# The upper bound keeps products of two dimensions, a few times over, inside 64 bits.
PositiveInt = Annotated[int, Field(ge=1, le=2**30, strict=True)]


class Spec(BaseModel):
    """A validated, immutable value. Subclasses only declare fields and derive figures from them."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def replace(self, /, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return type(self).model_validate({**dict(self), **changes})


def problems(error: ValidationError) -> str:
    """What is wrong, one `path: reason (got value)` per problem, the first four."""
    lines = []
    for item in error.errors(include_url=False):
        path = (
            "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in item["loc"]).lstrip(".")
            or "(top level)"
        )
        reason = (
            "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        )
        got = (
            ""
            if isinstance(item["input"], dict | list) or item["type"] == "extra_forbidden"
            else repr(item["input"])
        )
        lines.append(f"{path}: {reason}" + (f" (got {got})" if got else ""))
    more = len(lines) - 4
    return "; ".join(lines[:4]) + (f"; and {more} more" if more > 0 else "")


def parse(kind: type[S], text: str | bytes, *, source: str) -> S:
    """A spec from JSON text. DataError, naming `source` and the path inside it, where it does not fit."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"{source} is not a valid {kind.__name__}: {problems(error)}") from None
