"""What the engine needs to know of a search space, and the plainest space there is.

`hwsearch.searchspace.SearchSpace` fits `Space` as it stands. Somebody else's space fits it by the same nine
names; one without rules leaves `tie_classes`, `count_rules`, `order_masks` and `need_masks` empty and
`transition_mask` all False, as `GridSpace` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import InputError
from hwsearch.searchspace.constraints import CountRule
from hwsearch.searchspace.space import Genomes

__all__ = ["BoolArray", "FloatArray", "Genomes", "GridSpace", "Space"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Space(Protocol):
    """Genomes of L layers with one of C choices each, and the rules they obey.

    The rules only guide the operators and the exact solver: `valid` has the last word on every genome. The
    exact solver is right only if `allowed_mask`, `tie_classes`, `count_rules`, `order_masks`, `need_masks`
    and `transition_mask` say all that `valid` checks.
    """

    @property
    def num_layers(self) -> int: ...

    @property
    def allowed_mask(self) -> BoolArray:
        """Which choices each layer may take, (L, C)."""
        ...

    @property
    def tie_classes(self) -> Sequence[Genomes]:
        """Per tie a class for each choice, (C,): layers of a class other than -1 must share it."""
        ...

    @property
    def count_rules(self) -> Sequence[CountRule]:
        """How many layers may take some of the choices."""
        ...

    @property
    def order_masks(self) -> Sequence[tuple[BoolArray, BoolArray]]:
        """Per order rule which choices (C,) may not come anywhere after which (C,)."""
        ...

    @property
    def need_masks(self) -> Sequence[tuple[BoolArray, BoolArray]]:
        """Per need which choices (C,) may only come somewhere after which (C,)."""
        ...

    @property
    def transition_mask(self) -> BoolArray:
        """Which choice (row) may not be followed by which (column), (C, C)."""
        ...

    def sample(self, n: int, *, rng: np.random.Generator) -> Genomes:
        """n random genomes, (n, L), all valid."""
        ...

    def valid(self, genomes: Genomes) -> BoolArray:
        """Which genomes (n, L) belong to the space, (n,)."""
        ...


@dataclass(frozen=True)
class GridSpace:
    """A space without rules: gene i is an integer in 0..cardinalities[i]-1."""

    cardinalities: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.cardinalities or min(self.cardinalities) < 1:
            raise InputError(f"cardinalities must be at least 1 each, got {list(self.cardinalities)}")

    @property
    def num_layers(self) -> int:
        return len(self.cardinalities)

    @property
    def tie_classes(self) -> tuple[Genomes, ...]:
        return ()

    @property
    def count_rules(self) -> tuple[CountRule, ...]:
        return ()

    @property
    def order_masks(self) -> tuple[tuple[BoolArray, BoolArray], ...]:
        return ()

    @property
    def need_masks(self) -> tuple[tuple[BoolArray, BoolArray], ...]:
        return ()

    @cached_property
    def allowed_mask(self) -> BoolArray:
        return np.arange(max(self.cardinalities))[None] < np.array(self.cardinalities)[:, None]

    @cached_property
    def transition_mask(self) -> BoolArray:
        most = max(self.cardinalities)
        return np.zeros((most, most), dtype=bool)

    def sample(self, n: int, *, rng: np.random.Generator) -> Genomes:
        return rng.integers(0, self.cardinalities, size=(n, self.num_layers))

    def valid(self, genomes: Genomes) -> BoolArray:
        inside: BoolArray = np.all((genomes >= 0) & (genomes < np.array(self.cardinalities)), axis=1)
        return inside
