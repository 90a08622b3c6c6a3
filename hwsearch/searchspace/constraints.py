"""Rules over the layers of an architecture, as values and as linear rows.

A rule that says how many layers of a stretch may be of some choices is one `CountRule`: a mask over (layer, choice)
and two bounds. Totals ("at most 4 full") and patterns ("one full in every 8") both come down to it, and it is all
that a solver or an evolution operator has to understand of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import InputError

__all__ = ["CountLimit", "CountRule", "Pattern", "count_rules"]

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class CountLimit:
    """At least and at most how many layers may use a kind of mixer."""

    at_least: int = 0
    at_most: int | None = None

    def check(self, what: str, available: int) -> None:
        """Raises InputError where no number of layers out of `available` lies within the bounds."""
        at_most = available if self.at_most is None else self.at_most
        if not 0 <= self.at_least <= min(at_most, available):
            raise InputError(
                f"{what}: at least {self.at_least} and at most {at_most} of {available} layers is impossible"
            )


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A limit on a kind within each block of `every` layers, counted from layer 0.

    A shorter block at the end is held to the upper bound only.
    """

    kind: str
    every: int
    limit: CountLimit

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"a pattern over {self.kind} repeats every {self.every} layers: write 1 or more")
        self.limit.check(f"{self.kind} in every {self.every} layers", self.every)

    def block(self, layer: int, num_layers: int) -> tuple[int, int]:
        """First layer of the block that holds `layer`, and the first one behind the block."""
        first = layer - layer % self.every
        return first, min(first + self.every, num_layers)

    def at_least(self, block: tuple[int, int]) -> int:
        """The lower bound that holds for a block."""
        first, end = block
        return self.limit.at_least if end - first == self.every else 0


@dataclass(frozen=True, eq=False)
class CountRule:
    """At least and at most how many layers may take a choice that is marked in members, (layers, choices)."""

    members: BoolArray
    at_least: int
    at_most: int


def count_rules(
    num_layers: int,
    masks: Mapping[str, BoolArray],
    *,
    limits: Mapping[str, CountLimit],
    patterns: tuple[Pattern, ...],
) -> tuple[CountRule, ...]:
    """Limits and patterns as rows; masks: kind -> which choices are of it, (choices,)."""
    rules = []
    for kind, limit in limits.items():
        members = np.tile(masks[kind], (num_layers, 1))
        most = num_layers if limit.at_most is None else limit.at_most
        rules.append(CountRule(members, limit.at_least, most))
    for pattern in patterns:
        for first in range(0, num_layers, pattern.every):
            block = pattern.block(first, num_layers)
            members = np.zeros((num_layers, len(masks[pattern.kind])), dtype=bool)
            members[slice(*block)] = masks[pattern.kind]
            most = pattern.every if pattern.limit.at_most is None else pattern.limit.at_most
            rules.append(CountRule(members, pattern.at_least(block), most))
    return tuple(rules)
