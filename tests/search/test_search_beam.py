"""Beam search against enumeration, and evaluations that it shares with the journal."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from hwsearch.errors import InfeasibleError, InputError
from hwsearch.search.beam import beam_search
from hwsearch.search.engine import search
from hwsearch.search.evaluation import Evaluator, Measured
from hwsearch.search.exact import minimise
from hwsearch.search.executors import InlineExecutor
from hwsearch.search.problem import Additive, Budget, Objective, Problem
from hwsearch.search.space import FloatArray, Genomes
from hwsearch.search.study import Study
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.presets import preset_named
from tests.search.search_problems import hybrid, random_problem
from tests.search.slow_objective import loss, problem_with

SPACE = preset_named("postnas-placement", BASES["Qwen3-0.6B"].replace(num_layers=10))
FULL, LINEAR = 0, 2


def interacting(genomes: Genomes) -> FloatArray:
    """Layers matter, and two full layers in a row are worth less than two apart."""
    full = genomes == FULL
    worth = np.random.default_rng(4).lognormal(size=10)
    return np.asarray(
        worth.sum() - full @ worth + 0.8 * (full[:, 1:] & full[:, :-1]).sum(axis=1), dtype=float
    )


def test_a_wide_beam_places_full_layers_as_enumeration_does() -> None:
    problem = Problem(SPACE, objectives=(Objective("loss", cost=interacting),))
    start = np.full(10, LINEAR)
    found = beam_search(problem, start=start, choices=[FULL], steps=3, width=50)
    every = np.array(
        [
            [FULL if i in places else LINEAR for i in range(10)]
            for places in itertools.combinations(range(10), 3)
        ]
    )
    best = every[np.argmin(interacting(every))]
    assert found.path[3] == (tuple(best.tolist()), interacting(best[None])[0])
    assert [sum(c == FULL for c in genome) for genome, _ in found.path] == [0, 1, 2, 3]
    assert found.evaluations <= 1 + 10 + 45 + 120


def test_an_additive_objective_needs_no_width() -> None:
    problem = random_problem(3, space=hybrid(9), tightness=0.5)
    start = problem.space.sample(1, rng=np.random.default_rng(0))[0]
    additive = Problem(problem.space, objectives=problem.objectives[:1])
    narrow = beam_search(additive, start=start, width=1)
    values = [value for _, value in narrow.path]
    assert values == sorted(values, reverse=True)
    assert narrow.costs[0, 0] == values[-1]


def test_budgets_hold_and_the_best_come_first() -> None:
    problem = random_problem(3, space=hybrid(9), tightness=0.5)
    found = beam_search(problem, width=8)
    assert (problem.violations(found.costs) <= 0).all()
    assert problem.space.valid(found.genomes).all()
    assert (np.diff(found.costs[:, 0]) >= 0).all()
    np.testing.assert_array_equal(found.costs, problem.costs(found.genomes))
    evolved = search(problem, seed=0, population=40, generations=40)
    assert found.costs[0, 0] <= 1.25 * evolved.objectives[0, 0]


def test_evaluations_are_shared_with_the_journal(tmp_path: Path) -> None:
    problem = problem_with(Measured(loss))
    fastest = minimise(problem.space, problem.objectives[1].cost, problem.budgets)
    assert fastest is not None
    start = np.array(fastest.genome)
    with InlineExecutor() as inline, Study.open(tmp_path / "run", settings={}) as study:
        study.bind_problem(problem)
        first = Evaluator(problem, seed=0, executor=inline, study=study)
        one = beam_search(problem, start=start, choices=[0], steps=2, evaluate=first)
        again = Evaluator(problem, seed=0, executor=inline, study=study)
        two = beam_search(problem, start=start, choices=[0], steps=2, evaluate=again)
        assert first.measured == one.evaluations == two.evaluations
        assert again.measured == 0
        np.testing.assert_array_equal(one.genomes, two.genomes)
        # Evolution finds the journal's entries too, and puts each at its place in a generation.
        third = Evaluator(problem, seed=0, executor=inline, study=study)
        search(problem, seed=0, population=12, generations=2, study=study, evaluate=third)
        assert third.measured <= 24
        assert len(study.known()) == first.measured + third.measured


def test_wrong_starts_and_unreachable_budgets() -> None:
    problem = Problem(SPACE, objectives=(Objective("loss", cost=interacting),))
    with pytest.raises(InputError, match="not an architecture of the space"):
        beam_search(problem, start=np.full(10, 9))
    with pytest.raises(InputError, match="width of at least 1"):
        beam_search(problem, width=0)
    full_layers = Additive(np.tile([1.0, 0.0, 0.0], (10, 1)))
    never = Budget("full", text="full<=-1", cost=full_layers, at_most=-1)
    with pytest.raises(InfeasibleError, match="met no architecture within the budgets"):
        beam_search(Problem(SPACE, objectives=problem.objectives, budgets=(never,)))
