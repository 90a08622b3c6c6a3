"""A run directory: a SQLite journal of every evaluation, and the result as JSON.

    RUN/journal.sqlite   settings, every evaluation, random state and population after every generation
    RUN/writer.lock      held by the process that writes
    RUN/result.json      written when the run ends

A generation is one transaction, and an expensive evaluation is one of its own as soon as it ends. So after a kill at
any moment the journal holds whole generations and, of the one that was cut short, the evaluations that had ended; a
resumed run repeats nothing that is in it and goes on exactly as the first would have.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from hwsearch.errors import DataError, InputError, OutputError, plainly
from hwsearch.search.database import JOURNAL, LOCK, connect, damaged, lock, writing
from hwsearch.search.problem import Problem
from hwsearch.search.space import FloatArray, Genomes

__all__ = ["RESULT", "Evaluation", "History", "Study", "read_result"]

RESULT = "result.json"
_KEEP = """INSERT INTO evaluation
    (generation, position, genome, fidelity, seed, status, costs, violation, seconds, ended, error)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
# What was kept before its generation ended, or in an earlier step of the search, is not written twice.
_PLACE = """ ON CONFLICT (genome, fidelity) DO UPDATE
    SET generation = excluded.generation, position = excluded.position WHERE generation IS NULL"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """One evaluation of a genome (layers,): its costs (k,), None with the error where it failed."""

    genome: Genomes
    costs: FloatArray | None
    violation: float | None
    fidelity: float = 1.0
    seed: int | None = None
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class History:
    """What a journal holds: (genomes, costs) of each generation, NaN where it failed, and the state after the last."""

    batches: list[tuple[Genomes, FloatArray]]
    state: Mapping[str, Any] | None


class Study:
    """An open run directory with the one right to write to it. Use it as a context manager."""

    def __init__(self, directory: Path, *, connection: sqlite3.Connection, lock: sqlite3.Connection) -> None:
        self.directory = directory
        self._connection = connection
        self._lock = lock

    @classmethod
    def open(cls, directory: Path, *, settings: Mapping[str, Any], resume: bool = False) -> Self:
        """Starts a run in a new or empty directory, or goes on with the one it holds.

        settings: everything that decides the result, as JSON values; a resumed run must have the same.

        Raises InputError where the directory is in use and `resume` is not asked for, where there is nothing
        to resume, or where the settings differ; DataError where the journal is foreign or damaged; OutputError
        where the directory cannot be written to or another process writes to it.
        """
        journal = directory / JOURNAL
        there = journal.is_file()
        if there and not resume:
            connect(journal).close()  # a file of something else cannot be gone on with
            raise InputError(
                f"{directory} already holds a run: go on with it by --resume, or choose another directory"
            )
        if resume and not there:
            raise InputError(f"{directory} holds no run to resume: leave out --resume to start one there")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not there and any(p.name != LOCK for p in directory.iterdir()):
                raise InputError(f"{directory} is not empty and holds no run: choose another directory")
        except OSError as error:
            raise OutputError(
                f"cannot create the run directory {directory}: {error.strerror}; choose another"
            ) from None
        held = lock(directory)
        try:
            connection = connect(journal)
            study = cls(directory, connection=connection, lock=held)
            study.bind("settings", settings)
        except BaseException:
            held.close()
            raise
        return study

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives up the right to write."""
        self._connection.close()
        self._lock.close()

    def discard(self) -> None:
        """Closes the run and removes it where it holds no evaluation, so that its directory can be used again."""
        (evaluations,) = self._connection.execute("SELECT count(*) FROM evaluation").fetchone()
        self.close()
        if evaluations:
            return
        for name in (JOURNAL, LOCK):
            (self.directory / name).unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's files keep it
            self.directory.rmdir()

    def bind(self, key: str, value: Mapping[str, Any]) -> None:
        """Stores part of the run's identity, or checks that it is what the run was started with.

        Raises InputError naming what differs.
        """
        stored = self.recall(key)
        given = json.loads(json.dumps(value))
        if stored is None:
            self.remember(key, value)
            return
        differences = list(_differences(stored, given))
        if differences:
            # One option changes a name and whole tables that follow from it: the name tells more.
            path, before, now = min(differences, key=lambda found: len("".join(found)))
            raise InputError(
                f"{self.directory} was started with {path} = {before}, not {now}: "
                "resume with the settings it was started with, or choose another directory"
            )

    def bind_problem(self, problem: Problem) -> None:
        """Stores what the columns of costs are, or checks that they are what the run was started with."""
        names = [name for name, _ in problem.distinct]
        units = [o.unit for o in problem.objectives] + [""] * (len(names) - len(problem.objectives))
        self.bind("costs", {"names": names, "units": units, "objectives": len(problem.objectives)})

    def recall(self, key: str) -> Any:
        """A JSON value stored by `bind` or `remember`; None where there is none."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def remember(self, key: str, value: Any) -> None:
        """Stores a JSON value."""
        with writing(self.directory), self._connection as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def keep(self, *evaluations: Evaluation) -> None:
        """Writes evaluations outside generations, in one transaction."""
        with writing(self.directory), self._connection as connection:
            connection.executemany(_KEEP, map(_row, evaluations))

    def known(self, fidelity: float = 1.0) -> dict[bytes, FloatArray]:
        """Costs (k,) of all evaluations at a fidelity by the bytes of the int64 genome; NaN where they failed."""
        rows = self._connection.execute(
            "SELECT genome, costs FROM evaluation WHERE fidelity = ?", (fidelity,)
        ).fetchall()
        names = self.recall("costs")
        failed = np.full(len(names["names"]) if names else 0, np.nan)
        return {
            np.frombuffer(genome, "<i2").astype(np.int64).tobytes(): failed
            if costs is None
            else np.frombuffer(costs, "<f8").astype(np.float64)
            for genome, costs in rows
        }

    def record(
        self,
        generation: int,
        genomes: Genomes,
        costs: FloatArray,
        violations: FloatArray,
        state: Mapping[str, Any],
        *,
        seconds: float = 0.0,
    ) -> None:
        """Writes one generation in one transaction: genomes (n, layers), costs (n, k), violations (n,).

        Rows of costs that are not finite are evaluations that failed. Evaluations that `keep` wrote before get their
        place in the generation. seconds: what the evaluations that it did not write took together.
        """
        failed = [not np.isfinite(row).all() for row in costs]
        share = seconds / max(len(genomes), 1)
        with writing(self.directory), self._connection as connection:
            ended = time.time()
            connection.executemany(
                _KEEP + _PLACE,
                [
                    (
                        generation,
                        i,
                        genome.tobytes(),
                        1.0,
                        None,
                        "failed" if bad else "ok",
                        None if bad else cost.tobytes(),
                        None if bad else violation,
                        share,
                        ended,
                        "the costs are not finite" if bad else None,
                    )
                    for i, (genome, cost, violation, bad) in enumerate(
                        zip(
                            genomes.astype("<i2"),
                            costs.astype("<f8"),
                            violations.tolist(),
                            failed,
                            strict=True,
                        )
                    )
                ],
            )
            count = connection.execute(
                "SELECT count(*) FROM evaluation WHERE generation = ?", (generation,)
            ).fetchone()[0]
            connection.execute("INSERT INTO generation VALUES (?, ?)", (generation, count))
            connection.execute(
                "INSERT OR REPLACE INTO state VALUES (0, ?, ?)", (generation, json.dumps(state))
            )

    def history(self) -> History:
        """Every generation so far. Raises DataError where the journal contradicts itself."""
        journal = self.directory / JOURNAL
        try:
            sizes = self._connection.execute(
                "SELECT number, evaluations FROM generation ORDER BY number"
            ).fetchall()
            rows = self._connection.execute(
                "SELECT generation, genome, costs FROM evaluation WHERE generation IS NOT NULL "
                "ORDER BY generation, position"
            ).fetchall()
            state = self._connection.execute("SELECT generation, json FROM state").fetchone()
        except sqlite3.DatabaseError as error:
            raise damaged(journal, str(error)) from None
        expected = [number for number, count in sizes for _ in range(count)]
        ended = sizes[-1][0] if sizes else None
        if [row[0] for row in rows] != expected or (state[0] if state else None) != ended:
            raise damaged(journal, "its evaluations and generations do not match")
        if not sizes:
            return History([], None)
        failed = np.full(len(self.recall("costs")["names"]), np.nan)
        values = [failed if row[2] is None else np.frombuffer(row[2], "<f8") for row in rows]
        if len({len(row[1]) for row in rows}) > 1 or any(len(value) != len(failed) for value in values):
            raise damaged(journal, "its genomes or costs differ in length")
        genomes = np.array([np.frombuffer(row[1], "<i2") for row in rows], dtype=np.int64)
        costs = np.array(values, dtype=np.float64)
        ends = np.cumsum([count for _, count in sizes])[:-1]
        return History(
            list(zip(np.split(genomes, ends), np.split(costs, ends), strict=True)), json.loads(state[1])
        )

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json, whole or not at all. Raises OutputError where that fails."""
        target = self.directory / RESULT
        partial = target.with_suffix(".json.part")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            raise OutputError(
                f"cannot write {target}: {error.strerror}; the journal can be resumed"
            ) from None


def _row(evaluation: Evaluation) -> tuple[Any, ...]:
    costs = evaluation.costs
    return (
        None,
        None,
        evaluation.genome.astype("<i2").tobytes(),
        evaluation.fidelity,
        evaluation.seed,
        "failed" if costs is None else "ok",
        None if costs is None else costs.astype("<f8").tobytes(),
        evaluation.violation,
        evaluation.seconds,
        time.time(),
        evaluation.error,
    )


def _differences(stored: Any, given: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Where two JSON values differ: the paths and both values."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            if key in stored and key in given:
                yield from _differences(stored[key], given[key], f"{path}{key}.")
            else:
                before, now = (json.dumps(v[key]) if key in v else "nothing" for v in (stored, given))
                yield f"{path}{key}", before, now
    elif stored != given:
        yield path.rstrip("."), json.dumps(stored), json.dumps(given)


def read_result(directory: Path) -> dict[str, Any]:
    """The result.json of a finished run.

    Raises InputError where there is no finished run, DataError where the file is damaged.
    """
    path = directory / RESULT
    if not path.is_file():
        state = (
            "has not ended: go on with it by --resume" if (directory / JOURNAL).is_file() else "is not there"
        )
        raise InputError(f"no result in {directory}: the run {state}")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path} ({plainly(error)}): go on by --resume to write it again"
        ) from None
    if not isinstance(result, dict) or result.get("schema_version") != 1:
        raise DataError(f"{path} is not a search result: go on by --resume to write it again")
    return result
