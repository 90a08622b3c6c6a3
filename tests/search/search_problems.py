"""Spaces and random problems for the tests of the search."""

from __future__ import annotations

import numpy as np

from hwsearch.search.problem import Additive, Budget, Objective, Pairwise, Problem
from hwsearch.search.space import FloatArray, Genomes, GridSpace, Space
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.presets import preset_named
from hwsearch.searchspace.space import CountLimit, SearchSpace


def hybrid(layers: int) -> SearchSpace:
    """The postnas choices (a tied group, no two layers without mixer in a row) over a base of few layers."""
    return preset_named("postnas", base_named("Qwen3-1.7B").replace(num_layers=layers))


def limited(layers: int, *, at_most: int = 2, at_least: int = 1) -> SearchSpace:
    """`hybrid` with at most some layers of full attention and at least some without mixer."""
    space = hybrid(layers).limit("full_attention", CountLimit(at_most=at_most))
    return space.limit("none", CountLimit(at_least=at_least))


def random_problem(seed: int, *, space: Space, tightness: float, peak: bool = True) -> Problem:
    """Quality loss against latency, with a latency and a memory budget.

    tightness 0 leaves only the fastest genome, 1 the one with the least loss. The importance of layers is
    log-normal, as in measured sweeps; better choices tend to be slower.
    """
    rng = np.random.default_rng(seed)
    shape = space.allowed_mask.shape
    order = rng.permutation(shape[1])
    time = np.sort(rng.random(shape[1]))[order] * rng.uniform(0.8, 1.2, shape) + 0.05
    loss = np.sort(rng.random(shape[1]))[::-1][order] * rng.lognormal(0, 1, (shape[0], 1))
    loss = loss * rng.uniform(0.7, 1.3, shape)
    size = rng.random(shape)
    latency = Additive(time, constant=0.3)
    memory = Additive(size, constant=1.0, peak=rng.random(shape) if peak else None)
    fastest, best = time.min(axis=1).sum(), time[np.arange(shape[0]), loss.argmin(axis=1)].sum()
    bound = 0.3 + fastest + tightness * (best - fastest)
    return Problem(
        space,
        objectives=(
            Objective("loss", unit="points", cost=Additive(loss)),
            Objective("latency", unit="ms", cost=latency),
        ),
        budgets=(
            Budget(
                "latency",
                text=f"latency<={bound:.4g}ms",
                cost=latency,
                at_most=bound,
                describe=lambda value: f"{value:.3f} ms",
            ),
            Budget(
                "memory",
                text="memory<=X",
                cost=memory,
                at_most=1.0 + 0.5 * shape[0] + 1.0,
                describe=lambda value: f"{value:.3f} GiB",
            ),
        ),
    )


def a_cost(rng: np.random.Generator, shape: tuple[int, ...], *, far: bool) -> Additive | Pairwise:
    """Random tables, sometimes of a few whole numbers so that ties abound."""
    layers, choices = shape

    def draw(*size: int) -> FloatArray:
        whole = rng.integers(0, 4, size=size).astype(np.float64)
        return whole if rough else rng.normal(size=size)

    rough = rng.random() < 0.4
    form = rng.integers(3)
    if form == 0 or layers < 2:
        return Additive(
            draw(*shape), constant=float(rng.normal()), peak=draw(*shape) if rng.random() < 0.5 else None
        )
    if form == 1 or not far:
        return Pairwise.neighbours(draw(*shape), draw(layers - 1, choices, choices), constant=1.0)
    pairs = np.array([(i, j) for i in range(layers) for j in range(i + 1, layers) if rng.random() < 0.5])
    pairs = pairs.reshape(-1, 2).astype(np.int64)
    return Pairwise(draw(*shape), pairs=pairs, together=draw(len(pairs), choices, choices))


def everything(space: Space) -> Genomes:
    """All valid genomes of a small space."""
    options = [np.flatnonzero(row) for row in space.allowed_mask]
    genomes = np.stack(np.meshgrid(*options, indexing="ij"), axis=-1).reshape(-1, space.num_layers)
    return genomes[space.valid(genomes)]


def grid(layers: int, choices: int) -> GridSpace:
    return GridSpace((choices,) * layers)
