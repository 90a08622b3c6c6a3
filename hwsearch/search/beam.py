"""Beam search: growing a placement one layer at a time, as PostNAS places full attention.

PostNAS (arXiv 2508.15884) starts from an architecture without full attention and adds it layer by layer under a
task objective; of all sets of i layers the best `width` are kept and each is grown by every layer it lacks. Stated
for any space: a move sets one layer to another choice, and only moves that keep the space's rules are made. Width
and start are not given in the paper.

Evaluations go through the same callable as those of the other solvers, so with an `Evaluator` and a study they are
shared with them, survive a kill, and are never repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hwsearch.errors import InfeasibleError, InputError
from hwsearch.search.problem import Problem
from hwsearch.search.rules import Rules
from hwsearch.search.space import FloatArray, Genomes

__all__ = ["BeamResult", "beam_search"]

_SAMPLED = 64  # random genomes among which a start is looked for where none is given


@dataclass(frozen=True, eq=False)
class BeamResult:
    """Every genome (b, layers) met within the budgets, best first, with their costs (b, k), see `Problem.distinct`.

    path: the best genome of every size of the set, from the start on, and its first objective, whether within the
    budgets or not. evaluations: genomes asked for.
    """

    genomes: Genomes
    costs: FloatArray
    path: tuple[tuple[tuple[int, ...], float], ...]
    evaluations: int


def beam_search(
    problem: Problem,
    *,
    start: Genomes | None = None,
    choices: Sequence[int] | None = None,
    steps: int | None = None,
    width: int = 4,
    evaluate: Callable[[Genomes], FloatArray] | None = None,
    seed: int = 0,
) -> BeamResult:
    """Grows `start` (layers,) by moves to one of `choices`, at most `steps` of them, a beam of `width` wide.

    By default the start is the cheapest genome by the last objective among uniform ones and a random sample, every
    choice may be moved to, and the search ends where a step finds nothing better than what the beam has. With
    `steps` given, exactly so many moves are made: placing k full-attention layers is `choices=[full], steps=k`.
    A layer is moved once. evaluate: as for `engine.search`.

    Raises InputError for a start outside the space, InfeasibleError where nothing met the budgets.
    """
    if width < 1 or (steps is not None and steps < 0):
        raise InputError(f"a beam needs a width of at least 1 and 0 or more steps, got {width} and {steps}")
    rules = Rules(problem.space)
    seen = _Seen(problem, evaluate or problem.costs)
    beam = _start(problem, rules, seed) if start is None else np.asarray(start, dtype=np.int64)[None]
    if not problem.space.valid(beam).all():
        raise InputError(f"the start {beam[0].tolist()} is not an architecture of the space")
    beam = seen.best(seen.ask(beam), 1)
    origin = beam[0]
    targets = np.arange(rules.num_choices) if choices is None else np.asarray(choices)
    path = [seen.entry(beam[0])]
    while steps is None or len(path) <= steps:
        children = _grown(beam, origin, targets, rules)
        if not len(children):
            break
        found = seen.best(seen.ask(children), width)
        if not len(found) or (steps is None and not seen.better(found[0], beam[0])):
            break
        beam = found
        path.append(seen.entry(beam[0]))
    return seen.result(tuple(path))


def _start(problem: Problem, rules: Rules, seed: int) -> Genomes:
    """One genome of (1, layers): of those within the budgets, or nearest to them, the cheapest by what is free.

    Only costs that need no evaluation are looked at; where there are none, the first genome serves.
    """
    rng = np.random.default_rng(seed)
    sampled = problem.space.sample(_SAMPLED, rng=rng)
    uniform = np.array(
        [np.where(rules.allowed[:, c], c, sampled[c % _SAMPLED]) for c in range(rules.num_choices)]
    )
    genomes = np.concatenate((rules.repair(uniform, rng=rng), sampled))
    if len(problem.objectives) == 1 or problem.objectives[-1].tier == "expensive":
        return genomes[:1]
    return genomes[np.argsort(problem.objectives[-1].cost(genomes), kind="stable")[:1]]


def _grown(beam: Genomes, origin: Genomes, targets: Genomes, rules: Rules) -> Genomes:
    """Every valid genome one move away from one of the beam (b, layers), at a layer that has not moved."""
    moves = [
        (row, layer, choice)
        for row, genome in enumerate(beam)
        for layer in np.flatnonzero(genome == origin)
        for choice in targets[rules.allowed[layer, targets]]
        if choice != genome[layer]
    ]
    if not moves:
        return beam[:0]
    rows, layers, choices = np.array(moves).T
    children = beam[rows]
    children[np.arange(len(rows)), layers] = choices
    children = np.unique(children, axis=0)
    return children[rules.space.valid(children)]


class _Seen:
    """All genomes asked for, with their costs."""

    def __init__(self, problem: Problem, evaluate: Callable[[Genomes], FloatArray]) -> None:
        self._problem = problem
        self._evaluate = evaluate
        self._costs: dict[tuple[int, ...], FloatArray] = {}

    def ask(self, genomes: Genomes) -> Genomes:
        """Evaluates what is new among genomes (n, layers); those that did not fail."""
        fresh = np.array([g for g in genomes.tolist() if tuple(g) not in self._costs], dtype=np.int64)
        if len(fresh):
            for genome, costs in zip(fresh.tolist(), self._evaluate(fresh), strict=True):
                self._costs[tuple(genome)] = costs
        good = [bool(np.isfinite(self._costs[tuple(genome)]).all()) for genome in genomes.tolist()]
        return genomes[good]

    def _keys(self, genomes: Genomes) -> tuple[FloatArray, FloatArray]:
        costs = np.array([self._costs[tuple(genome)] for genome in genomes.tolist()])
        return costs[:, self._problem.objective_columns[0]], self._problem.violations(costs)

    def best(self, genomes: Genomes, count: int) -> Genomes:
        """The `count` genomes with the least violation, then the least first objective, then the least genome."""
        if not len(genomes):
            return genomes
        first, violations = self._keys(genomes)
        order = np.lexsort((*genomes.T[::-1], first, violations))
        return genomes[order[:count]]

    def better(self, one: Genomes, other: Genomes) -> bool:
        first, violations = self._keys(np.stack((one, other)))
        return bool((violations[0], first[0]) < (violations[1], first[1]))

    def entry(self, genome: Genomes) -> tuple[tuple[int, ...], float]:
        return tuple(genome.tolist()), float(self._keys(genome[None])[0][0])

    def result(self, path: tuple[tuple[tuple[int, ...], float], ...]) -> BeamResult:
        good = [genome for genome, costs in self._costs.items() if np.isfinite(costs).all()]
        genomes = self.best(np.array(good, dtype=np.int64), len(good))
        genomes = genomes[self._keys(genomes)[1] <= 0]
        if not len(genomes):
            raise InfeasibleError(
                f"beam search met no architecture within the budgets in {len(self._costs)} evaluations: "
                "give more steps, a wider beam or another start, or relax a budget"
            )
        costs = np.array([self._costs[tuple(genome)] for genome in genomes.tolist()])
        return BeamResult(genomes, costs, path, len(self._costs))
