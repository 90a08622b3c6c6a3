"""Reading a run's journal without writing to it: the evaluations, the front they make, and how a search converged.

A run may be looked at while another process writes to it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import DataError, InputError
from hwsearch.search.database import JOURNAL, check_journal
from hwsearch.search.hypervolume import hypervolume, reference_point
from hwsearch.search.pareto import Archive
from hwsearch.search.space import BoolArray, FloatArray, Genomes

__all__ = ["Journal", "Step", "read_journal"]

_STEPS = 60  # of the convergence, where a search had no generations
_COLUMNS = "id, generation, position, fidelity, seed, status, violation, seconds, ended, error, genome, costs"


@dataclass(frozen=True)
class Step:
    """After so many full evaluations: the least first objective within the budgets, and the front's hypervolume."""

    evaluations: int
    best: float | None
    hypervolume: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Journal:
    """The n evaluations of a run, in the order asked for.

    names, units: of the k costs, the objectives first. rows: every column of the table but the next two, by name.
    genomes: (n, layers). costs: (n, k), NaN where an evaluation failed. meta: what the run was started with.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    num_objectives: int
    rows: Mapping[str, list[Any]]
    genomes: Genomes
    costs: FloatArray
    meta: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.genomes)

    @cached_property
    def full(self) -> NDArray[np.int64]:
        """Rows of the evaluations at full fidelity that did not fail."""
        fidelity = np.array(self.rows["fidelity"])
        return np.flatnonzero((fidelity == 1) & np.isfinite(self.costs).all(axis=1))

    @cached_property
    def feasible(self) -> BoolArray:
        """Which rows are within the budgets, (n,)."""
        return np.array([violation == 0 for violation in self.rows["violation"]], dtype=bool)

    def front(self) -> Archive:
        """The best trade-offs within the budgets at full fidelity."""
        return self._front(self.full)

    def _front(self, rows: NDArray[np.int64]) -> Archive:
        archive = Archive(num_layers=self.genomes.shape[1], num_objectives=self.num_objectives)
        inside = rows[self.feasible[rows]]
        if len(inside):
            archive.add(self.genomes[inside], self.costs[inside, : self.num_objectives])
        return archive

    def convergence(self) -> list[Step]:
        """One step for each generation, or where there were none for each sixtieth of the evaluations.

        The hypervolume's reference is the worst of the first step.
        """
        if not len(self.full):
            return []
        generations = np.array([-1 if g is None else g for g in self.rows["generation"]])[self.full]
        if (generations >= 0).all():
            ends = np.flatnonzero(np.append(np.diff(generations) != 0, True)) + 1
        else:
            count = min(_STEPS, len(self.full))
            ends = np.linspace(0, len(self.full), count + 1).round().astype(np.int64)[1:]
        objectives = self.costs[:, : self.num_objectives]
        reference = reference_point(objectives[self.full[: ends[0]]])
        archive = self._front(self.full[:0])
        steps = []
        first = 0
        for end in ends.tolist():
            new = self.full[first:end]
            new = new[self.feasible[new]]
            if len(new):
                archive.add(self.genomes[new], objectives[new])
            first = end
            best = float(archive.objectives[0, 0]) if len(archive) else None
            steps.append(Step(end, best, hypervolume(archive.objectives, reference)))
        return steps


def read_journal(directory: Path) -> Journal:
    """What a run directory holds so far.

    Raises InputError where there is no run, DataError where its journal is foreign or damaged.
    """
    path = directory / JOURNAL
    if not path.is_file():
        raise InputError(f"no run in {directory}: it holds no {JOURNAL}")
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        check_journal(connection, path)
        meta = {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM evaluation ORDER BY generation IS NULL, generation, position, id"
        ).fetchall()
    except sqlite3.DatabaseError as error:
        raise DataError(f"{path} is damaged ({error}): start again in another directory") from None
    finally:
        connection.close()
    costs = meta.get("costs")
    if not rows or costs is None:
        raise InputError(f"the run in {directory} has no evaluations yet")
    genomes = [np.frombuffer(row[-2], "<i2") for row in rows]
    values = [
        np.full(len(costs["names"]), np.nan) if row[-1] is None else np.frombuffer(row[-1], "<f8")
        for row in rows
    ]
    names = [name.strip() for name in _COLUMNS.split(",")]
    return Journal(
        names=tuple(costs["names"]),
        units=tuple(costs["units"]),
        num_objectives=costs["objectives"],
        rows={name: [row[i] for row in rows] for i, name in enumerate(names[:-2])},
        genomes=np.array(genomes, dtype=np.int64),
        costs=np.array(values, dtype=np.float64),
        meta=meta,
    )
