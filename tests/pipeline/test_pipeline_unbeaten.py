"""Placements that lose no task to a rule of thumb."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hwsearch.pipeline.postnas_placement import rule_placements, unbeaten
from hwsearch.search.beam import BeamResult


class _Scorer:
    """Accuracies of two tasks by genome."""

    def __init__(self, accuracies: Mapping[tuple[int, ...], tuple[float, ...]]) -> None:
        self._accuracies = accuracies

    def scores(self, genomes: Any) -> list[Any]:
        return [
            SimpleNamespace(
                tasks={str(i): SimpleNamespace(accuracy=a) for i, a in enumerate(self._accuracies[tuple(g)])}
            )
            for g in genomes.tolist()
        ]


_FOUND = BeamResult(
    genomes=np.array([[1, 0, 2], [0, 1, 2], [0, 0, 2]]),
    costs=np.array([[0.1], [0.2], [0.05]]),
    path=(((0, 0, 2), 0.05), ((1, 0, 2), 0.1)),
    evaluations=3,
)
_RIVALS = np.array([[2, 1, 0], [2, 0, 1]])


@pytest.mark.parametrize(
    ("best", "second", "expected"),
    [
        ((0.9, 0.8), (0.6, 0.9), [0, 1, 2]),  # the best by the mean loses a task to the first rule
        ((0.9, 0.9), (0.6, 0.95), [1, 0, 2]),  # nobody loses: what was searched for decides
        ((0.9, 0.7), (0.2, 0.95), [1, 0, 2]),  # both lose, one by more
    ],
)
def test_a_task_is_not_paid_for_another(
    best: tuple[float, ...], second: tuple[float, ...], expected: list[int]
) -> None:
    scorer: Any = _Scorer(
        {
            (1, 0, 2): best,
            (0, 1, 2): second,
            (0, 0, 2): (1.0, 1.0),
            (2, 1, 0): (0.3, 0.9),
            (2, 0, 1): (0.6, 0.1),
        }
    )
    # The start, which is no end of the search, would beat them all.
    assert unbeaten(_FOUND, _RIVALS, scorer=scorer) == expected


def test_without_tasks_what_was_searched_for_decides() -> None:
    scorer: Any = _Scorer({tuple(g): () for g in [*_FOUND.genomes.tolist(), *_RIVALS.tolist()]})
    assert unbeaten(_FOUND, _RIVALS, scorer=scorer) == [1, 0, 2]


def test_rules_of_thumb() -> None:
    assert rule_placements(8, 2) == {"uniform": [2, 6], "first": [0, 1], "last": [6, 7]}
    assert rule_placements(8, 0) == {"uniform": [], "first": [], "last": []}
