"""How new genomes come from old ones: operators that know the graph of choices, and how often each is used.

Each operator takes and returns whole populations (n, layers). What they break of the space's rules `Rules.repair`
mends. How often an operator takes part follows how many of its children survive, beside those without it
(probability matching; Thierens 2005).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hwsearch.search.rules import Rules
from hwsearch.search.space import BoolArray, FloatArray, Genomes

__all__ = [
    "OPERATORS",
    "Rates",
    "corners",
    "crossover",
    "move",
    "mutate",
    "step",
    "swap",
    "switch_tie",
    "vary",
]

_MEMORY = 0.9  # how much of the survival seen so far counts against that of one more generation
_LEAST, _MOST = 0.05, 0.9


def crossover(first: Genomes, second: Genomes, *, rng: np.random.Generator) -> Genomes:
    """Children that take one segment of layers from `second` and the rest from `first`."""
    n, layers = first.shape
    cuts = rng.integers(0, layers + 1, size=(2, n, 1))
    at = np.arange(layers)
    inside = (at >= cuts.min(axis=0)) & (at < cuts.max(axis=0))
    return np.where(inside, second, first)


def mutate(genomes: Genomes, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """Each layer, with probability 1 / layers, takes another choice at random among those it is allowed."""
    genomes = genomes.copy()
    rows, layers = np.nonzero(rng.random(genomes.shape) < 1 / genomes.shape[1])
    allowed = rules.allowed[layers]
    genomes[rows, layers] = np.argmax(rng.random(allowed.shape) * allowed, axis=1)
    return genomes


def swap(genomes: Genomes, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """Two layers exchange their choices: a full-attention layer changes places with another."""
    a, b = rng.integers(0, genomes.shape[1], size=(2, len(genomes)))
    rows = np.arange(len(genomes))
    at_a, at_b = genomes[rows, a], genomes[rows, b]
    fits = rules.allowed[a, at_b] & rules.allowed[b, at_a]
    genomes = genomes.copy()
    genomes[rows, a] = np.where(fits, at_b, at_a)
    genomes[rows, b] = np.where(fits, at_a, at_b)
    return genomes


def move(genomes: Genomes, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """One layer moves to another depth, and those between make room."""
    n, layers = genomes.shape
    origin, target = rng.integers(0, layers, size=(2, n, 1))
    at = np.arange(layers)
    source = at + ((at >= origin) & (at < target)) - ((at <= origin) & (at > target))
    moved = np.take_along_axis(genomes, np.where(at == target, origin, source), axis=1)
    fits = rules.allowed[at, moved].all(axis=1, keepdims=True)
    return np.where(fits, moved, genomes)


def step(genomes: Genomes, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """One layer takes the next larger or smaller choice of its grid."""
    rows = np.arange(len(genomes))
    layers = rng.integers(0, genomes.shape[1], size=len(genomes))
    to = genomes[rows, layers] + rng.choice((-1, 1), size=len(genomes))
    inside = (to >= 0) & (to < rules.num_choices)
    to = np.where(inside, to, 0)
    genomes = genomes.copy()
    genomes[rows, layers] = np.where(inside & rules.allowed[layers, to], to, genomes[rows, layers])
    return genomes


def switch_tie(genomes: Genomes, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """A whole tied group changes to another member, in every layer at once."""
    for tie in rules.ties:
        target = rng.choice(np.flatnonzero(tie.members), size=len(genomes))
        switched = tie.partner[genomes, target[:, None]]
        genomes = np.where(tie.members[genomes], switched, genomes)
    return genomes


def corners(genomes: Genomes, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """One genome per choice that has it in every layer that may, and its next smaller one in the others.

    genomes (n, layers) fill layers that allow none of these.
    """
    rows = []
    for choice in range(rules.num_choices):
        allowed = rules.allowed[:, : choice + 1]
        last = choice - np.argmax(allowed[:, ::-1], axis=1)
        rows.append(np.where(allowed.any(axis=1), last, genomes[choice % len(genomes)]))
    return rules.repair(np.array(rows), rng=rng)


Operator = Callable[..., Genomes]
OPERATORS: dict[str, tuple[Operator, float]] = {
    "swap": (swap, 0.3),
    "move": (move, 0.1),
    "step": (step, 0.2),
    "switch_tie": (switch_tie, 0.1),
}
_CROSSOVER_RATE = 0.9


class Rates:
    """How often each operator takes part, (operators,), crossover first: learnt from what survives."""

    def __init__(self, rules: Rules) -> None:
        self.names = ("crossover", *(name for name in OPERATORS if name != "switch_tie" or rules.ties))
        self.values: FloatArray = np.array(
            [_CROSSOVER_RATE, *(OPERATORS[name][1] for name in self.names[1:])]
        )
        # Children and survivors, without and with each operator; a few to begin with, so that luck weighs little.
        self._seen = np.full((2, len(self.names)), 20.0)
        self._survived = 10.0 * np.stack((1 - self.values, self.values)) + 5.0

    def learn(self, used: BoolArray, survived: BoolArray) -> None:
        """Takes in which operators (n, operators) made which children, and which of these survived (n,)."""
        if not len(used):
            return
        marks = np.stack((~used, used)).astype(np.float64)  # (2, n, operators)
        self._seen = _MEMORY * self._seen + marks.sum(axis=1)
        self._survived = _MEMORY * self._survived + (marks * survived[:, None]).sum(axis=1)
        without, with_ = (self._survived + 1.0) / (self._seen + 2.0)
        self.values = np.clip(with_ / (with_ + without), _LEAST, _MOST)

    def state(self) -> dict[str, Any]:
        """The rates as JSON."""
        return {
            "values": self.values.tolist(),
            "seen": self._seen.tolist(),
            "survived": self._survived.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.values = np.array(state["values"])
        self._seen, self._survived = np.array(state["seen"]), np.array(state["survived"])


def vary(
    parents: Genomes, n: int, *, rules: Rules, rates: Rates, rng: np.random.Generator
) -> tuple[Genomes, BoolArray]:
    """At most n valid children of parents (p, layers), the best parents first, and who took part (c, operators).

    Parents are drawn by binary tournament; a child that cannot be mended is dropped.
    """
    first, second = rng.integers(0, len(parents), size=(2, n, 2)).min(axis=2)
    used = rng.random((n, len(rates.names))) < rates.values
    children = parents[first]
    for column, name in enumerate(rates.names):
        rows = np.flatnonzero(used[:, column])
        if name == "crossover":
            children[rows] = crossover(children[rows], parents[second[rows]], rng=rng)
        elif len(rows):
            children[rows] = OPERATORS[name][0](children[rows], rules=rules, rng=rng)
    children = mutate(children, rules=rules, rng=rng)
    children, kept = rules.mend(children, rng=rng)
    return (children, used) if kept.all() else (children[kept], used[kept])
