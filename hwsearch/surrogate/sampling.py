"""Which paths of a supernet are trained, step by step; a function of seed and step, so that training resumes.

uniform: every layer draws one of its choices, all alike. balanced: the same, but each choice of a layer comes exactly
once in as many paths as the layer has choices, in random order (strict fairness, arXiv 1907.01845). feasible: uniform
among the architectures of the space, all rules kept; with a limit on full attention the paths are those that a search
under that limit will ask for. The first two know no rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwsearch.searchspace.space import SearchSpace

__all__ = ["Sampling", "path_sampler"]

Genomes = NDArray[np.int64]
Sampling = Literal["uniform", "balanced", "feasible"]


def path_sampler(space: SearchSpace, how: Sampling, *, seed: int) -> Callable[[int, int], Genomes]:
    """A function of (first, count) that gives the genomes (count, layers) of the draws first to first + count - 1."""
    draw = {"uniform": _uniform, "balanced": _balanced, "feasible": _feasible}[how]
    return lambda first, count: np.stack([draw(space, seed, first + i) for i in range(count)])


def _uniform(space: SearchSpace, seed: int, draw: int) -> Genomes:
    rng = np.random.default_rng([seed, draw])
    return np.array([rng.choice(options) for options in space.allowed], dtype=np.int64)


def _balanced(space: SearchSpace, seed: int, draw: int) -> Genomes:
    chosen = []
    for layer, options in enumerate(space.allowed):
        round_, place = divmod(draw, len(options))
        chosen.append(np.random.default_rng([seed, layer, round_]).permutation(options)[place])
    return np.array(chosen, dtype=np.int64)


def _feasible(space: SearchSpace, seed: int, draw: int) -> Genomes:
    genome: Genomes = space.sample(1, rng=np.random.default_rng([seed, draw]))[0]
    return genome
