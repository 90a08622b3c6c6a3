"""Rules about what came before, said as rules about neighbours: a choice together with what its path has seen.

An order rule closes choices once a choice of another kind has occurred, a need opens them. With one bit for each rule,
"seen or not", the nodes of a layer are pairs (bits, choice), and whether one may follow another is a matter of the two
alone. So a solver that knows forbidden neighbours knows these rules as well, for twice the nodes per rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwsearch.search.space import BoolArray, FloatArray, Genomes

__all__ = ["Memory"]

Pair = tuple[BoolArray, BoolArray]


class Memory:
    """Nodes bits * C + choice. orders: (first, later), needs: (what, earlier), as `Space` has them, masks (C,)."""

    def __init__(self, choices: int, *, orders: Sequence[Pair], needs: Sequence[Pair]) -> None:
        self.choices = choices
        self.states = 2 ** (len(orders) + len(needs))
        raising = np.array([*(later for _, later in orders), *(earlier for _, earlier in needs)], dtype=bool)
        raised = (2 ** np.arange(len(raising))) @ raising.reshape(-1, choices) if len(raising) else 0
        before = np.arange(self.states)[:, None]
        self._after = before | np.broadcast_to(raised, choices)  # (states, C), the bits after each choice
        self._barred = np.zeros((self.states, choices), dtype=bool)
        for bit, (first, _) in enumerate(orders):
            self._barred |= ((before >> bit) & 1 == 1) & first
        for bit, (what, _) in enumerate(needs, start=len(orders)):
            self._barred |= ((before >> bit) & 1 == 0) & what

    def blocked(self, forbidden: BoolArray) -> BoolArray:
        """Which node may not be followed by which, (N, N), where choices (C, C) may not follow one another."""
        states, choices = self.states, self.choices
        onto = self._after[:, None, :] == np.arange(states)[None, :, None]  # (states, states, C)
        leads = onto & ~self._barred[:, None, :]
        blocked = ~leads[:, None] | forbidden[None, :, None, :]
        square: BoolArray = blocked.reshape(states * choices, states * choices)
        return square

    def closed(self, closed: BoolArray) -> BoolArray:
        """Which nodes (L, N) are closed to each layer where these choices (L, C) are, the first one's bits known."""
        nodes = np.tile(closed, (1, self.states))
        onto = self._after[0] == np.arange(self.states)[:, None]
        nodes[0] |= (~onto | self._barred[0]).ravel()
        return nodes

    def opened(self, closed: BoolArray) -> BoolArray:
        """The choices (L, C) that are closed in every state, from nodes (L, N)."""
        shut: BoolArray = np.all(closed.reshape(len(closed), self.states, self.choices), axis=1)
        return shut

    def unfold(self, tables: FloatArray, *, axes: int = 1) -> FloatArray:
        """Tables whose last axes are choices, over nodes: what a choice costs does not depend on what came before."""
        return np.tile(tables, (1,) * (tables.ndim - axes) + (self.states,) * axes)

    def fold(self, nodes: Genomes) -> Genomes:
        """The choices of nodes."""
        return nodes % self.choices
