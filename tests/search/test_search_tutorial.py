"""The tutorial of the search runs as it is printed, and is as short as it claims."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial-search.md"


def test_the_tutorial_runs_in_under_thirty_lines(capsys: object) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    names: dict[str, object] = {}
    exec(compile(code, str(TUTORIAL), "exec"), names)
    result, problem = names["result"], names["problem"]
    objectives, violations = problem.evaluate(result.genomes)  # type: ignore[attr-defined]
    assert (violations == 0).all()
    assert np.array_equal(objectives, result.objectives)  # type: ignore[attr-defined]
    assert result.evaluations <= 600  # type: ignore[attr-defined]
    sample = problem.space.sample(20_000, rng=np.random.default_rng(1))  # type: ignore[attr-defined]
    values, over = problem.evaluate(sample)  # type: ignore[attr-defined]
    assert objectives[0, 0] < values[over <= 0, 0].min()
