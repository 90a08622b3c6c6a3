"""How a supernet is trained, as its folder keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hwsearch.surrogate.training import Recipe

__all__ = ["SupernetSettings"]


@dataclass(frozen=True, kw_only=True)
class SupernetSettings:
    """batch: rows; length: their tokens; dtype: of all weights, the checkpoint's if None."""

    recipe: Recipe = field(default_factory=Recipe)
    batch: int = 8
    length: int = 1024
    dtype: str | None = None
    train_attention: bool = False

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> SupernetSettings:
        """From the JSON values of `content`."""
        return cls(**{**content, "recipe": Recipe.of(content["recipe"])})

    def content(self) -> dict[str, Any]:
        """As JSON values."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """Of all weights; the checkpoint's if None."""
        if self.dtype is None:
            return None
        found: torch.dtype = getattr(torch, self.dtype)
        return found
