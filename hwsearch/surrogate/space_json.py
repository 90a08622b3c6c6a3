"""A search space as JSON, whole: choices, what each layer may take, and every rule.

A space file describes a space for any base; this is the space over one, as a supernet was trained on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hwsearch.searchspace.architecture import LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.constraints import CountLimit, Pattern
from hwsearch.searchspace.space import SearchSpace

__all__ = ["space_content", "space_from_content"]


def space_content(space: SearchSpace) -> dict[str, Any]:
    """A space as JSON values."""
    return {
        "base": space.base.model_dump(mode="json"),
        "choices": [choice.model_dump(mode="json") for choice in space.choices],
        "allowed": [list(options) for options in space.allowed],
        **space.rules,
    }


def space_from_content(content: Mapping[str, Any]) -> SearchSpace:
    """The space that `space_content` described."""

    def limit(bounds: Sequence[int | None]) -> CountLimit:
        return CountLimit(at_least=bounds[0] or 0, at_most=bounds[1])

    return SearchSpace(
        base=Base.model_validate(content["base"]),
        choices=tuple(LayerSpec.model_validate(choice) for choice in content["choices"]),
        allowed=tuple(tuple(options) for options in content["allowed"]),
        groups={name: tuple(kinds) for name, kinds in content["groups"].items()},
        ties=tuple(content["ties"]),
        limits={kind: limit(bounds) for kind, bounds in content["limits"].items()},
        patterns=tuple(
            Pattern(kind=kind, every=every, limit=limit(bounds))
            for kind, every, *bounds in content["patterns"]
        ),
        forbidden=frozenset((before, after) for before, after in content["forbidden"]),
        orders=tuple((first, later) for first, later in content["orders"]),
    )
