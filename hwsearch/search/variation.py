"""How new genomes come from old ones: operators that know the graph of choices.

Each takes and returns whole populations (n, layers). What they break of the space's rules `Rules.repair` mends.
"""

from __future__ import annotations

import numpy as np

from hwsearch.search.rules import Rules
from hwsearch.search.space import Genomes

__all__ = ["crossover", "mutate", "swap", "switch_tie", "vary"]

_CROSSOVER_RATE = 0.9
_SWAP_RATE = 0.3
_SWITCH_RATE = 0.1


def crossover(first: Genomes, second: Genomes, *, rng: np.random.Generator) -> Genomes:
    """Children that take one segment of layers from `second` and the rest from `first`."""
    n, layers = first.shape
    cuts = np.sort(rng.integers(0, layers + 1, size=(n, 2)), axis=1)
    cuts[rng.random(n) >= _CROSSOVER_RATE] = 0
    at = np.arange(layers)
    inside = (at >= cuts[:, :1]) & (at < cuts[:, 1:])
    return np.where(inside, second, first)


def mutate(genomes: Genomes, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """Each layer, with probability 1 / layers, takes another choice at random among those it is allowed."""
    genomes = genomes.copy()
    rows, layers = np.nonzero(rng.random(genomes.shape) < 1 / genomes.shape[1])
    allowed = rules.allowed[layers]
    genomes[rows, layers] = np.argmax(rng.random(allowed.shape) * allowed, axis=1)
    return genomes


def swap(genomes: Genomes, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """Some genomes exchange the choices of two of their layers: a full-attention layer moves."""
    n, layers = genomes.shape
    pairs = rng.integers(0, layers, size=(n, 2))
    rows = np.flatnonzero(rng.random(n) < _SWAP_RATE)
    a, b = pairs[rows].T
    at_a, at_b = genomes[rows, a], genomes[rows, b]
    fits = rules.allowed[a, at_b] & rules.allowed[b, at_a]
    genomes = genomes.copy()
    genomes[rows[fits], a[fits]] = at_b[fits]
    genomes[rows[fits], b[fits]] = at_a[fits]
    return genomes


def switch_tie(genomes: Genomes, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """Some genomes change a whole tied group to another member, in every layer at once."""
    genomes = genomes.copy()
    for tie in rules.ties:
        rows = np.flatnonzero(rng.random(len(genomes)) < _SWITCH_RATE)
        target = rng.choice(np.flatnonzero(tie.members), size=len(rows))
        switched = tie.partner[genomes[rows], target[:, None]]
        genomes[rows] = np.where(tie.members[genomes[rows]], switched, genomes[rows])
    return genomes


def vary(parents: Genomes, n: int, *, rules: Rules, rng: np.random.Generator) -> Genomes:
    """At most n valid children of parents (p, layers), the best parents first.

    Parents are drawn by binary tournament; a child that cannot be mended is dropped.
    """
    first, second = rng.integers(0, len(parents), size=(2, n, 2)).min(axis=2)
    children = crossover(parents[first], parents[second], rng=rng)
    children = swap(children, rules=rules, rng=rng)
    children = switch_tie(children, rules=rules, rng=rng)
    children = mutate(children, rules=rules, rng=rng)
    return rules.repair(children, rng=rng)
