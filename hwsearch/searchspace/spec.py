"""The base of every spec: frozen, strict, unknown keys refused, errors that name the path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwsearch.errors import DataError, plainly

__all__ = ["PositiveInt", "Spec", "decode_json", "parse", "problems", "read_json"]

_REASONS = {"extra_forbidden": "unknown key", "missing": "is missing"}

S = TypeVar("S", bound="Spec")
# The upper bound keeps products of two dimensions, a few times over, inside 64 bits.
PositiveInt = Annotated[int, Field(ge=1, le=2**30, strict=True)]


class Spec(BaseModel):
    """A validated, immutable value. Subclasses only declare fields and derive figures from them."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def replace(self, /, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**own, **changes})


def problems(error: ValidationError) -> str:
    """What is wrong, one `path: reason (got value)` per problem, the first four."""
    lines = []
    for item in error.errors(include_url=False):
        path = (
            "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in item["loc"]).lstrip(".")
            or "(top level)"
        )
        reason = _REASONS.get(item["type"], item["msg"].removeprefix("Value error, "))
        told = isinstance(item["input"], dict | list) or item["type"] in _REASONS
        got = "" if told else repr(item["input"])
        lines.append(f"{path}: {reason}" + (f" (got {got})" if got else ""))
    more = len(lines) - 4
    return "; ".join(lines[:4]) + (f"; and {more} more" if more > 0 else "")


def parse(kind: type[S], text: str | bytes, *, source: str) -> S:
    """A spec from JSON text. DataError, naming `source` and the path inside it, where it does not fit."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"{source} is not a valid {kind.__name__}: {problems(error)}") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file. DataError where it cannot be read or is not JSON."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return decode_json(text, source=str(path))


def decode_json(text: str | bytes, *, source: str) -> Any:
    """JSON text, decoded strictly: a key that occurs twice and NaN are refused. DataError, naming `source`."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else plainly(error)
        raise DataError(f"{source} is not valid JSON: {why}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice in one object")
        found[key] = value
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
