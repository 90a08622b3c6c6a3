"""The journal: resume after kill -9 is identical, and wrong directories give one clear error."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from hwsearch.errors import DataError, InputError, OutputError
from hwsearch.search.database import JOURNAL
from hwsearch.search.engine import Progress, SearchResult, search
from hwsearch.search.journal import read_journal
from hwsearch.search.study import RESULT, Study, read_result
from tests.search.search_problems import hybrid, random_problem

SETTINGS = {"problem": {"seed": 3, "layers": 14}, "note": "test"}

# A run that can be killed: it tells when a generation is done, and dawdles so that the kill meets the middle.
PROGRAM = """
import sys, time
from pathlib import Path
from tests.search.test_search_study import SETTINGS, run
run(Path(sys.argv[1]), resume=sys.argv[2] == "resume", dawdle=float(sys.argv[3]))
"""


def run(
    directory: Path,
    *,
    resume: bool = False,
    dawdle: float = 0.0,
    stop_at: int = 0,
    seed: int = 0,
    generations: int = 30,
) -> SearchResult:
    def on_generation(progress: Progress) -> None:
        print(progress.generation, flush=True)
        time.sleep(dawdle)
        if progress.generation == stop_at:
            raise KeyboardInterrupt

    problem = random_problem(3, space=hybrid(14), tightness=0.3)
    with Study.open(directory, settings=SETTINGS, resume=resume) as study:
        return search(
            problem,
            seed=seed,
            population=40,
            generations=generations,
            study=study,
            on_generation=on_generation,
        )


def journal(directory: Path) -> list[Any]:
    with sqlite3.connect(directory / JOURNAL) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute(
            "SELECT id, generation, position, genome, fidelity, seed, status, costs, violation, error "
            "FROM evaluation ORDER BY id"
        ).fetchall()
        return [*rows, *connection.execute("SELECT * FROM state").fetchall()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    run(directory)
    return directory


def assert_same(one: Path, other: Path) -> None:
    assert (one / RESULT).read_bytes() == (other / RESULT).read_bytes()
    assert journal(one) == journal(other)


@pytest.mark.parametrize("generations", [1, 9, 20])
def test_killed_and_resumed_is_identical(uninterrupted: Path, tmp_path: Path, generations: int) -> None:
    directory = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), "start", "0.02"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= generations:
            break
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()
    assert not (directory / RESULT).exists()
    assert len(journal(directory)) < len(journal(uninterrupted))
    run(directory, resume=True)
    assert_same(directory, uninterrupted)


def test_interrupted_and_resumed_is_identical(uninterrupted: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(directory, stop_at=11)
    with pytest.raises(InputError, match="has not ended: go on with it by --resume"):
        read_result(directory)
    run(directory, resume=True)
    assert_same(directory, uninterrupted)


def test_more_generations_go_on_as_if_asked_for_at_first(uninterrupted: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run(directory, generations=13)
    assert read_result(directory)["generations"] == 13
    run(directory, resume=True)
    assert_same(directory, uninterrupted)
    with pytest.raises(InputError, match="holds 30 generations: ask for at least as many, not 29"):
        run(directory, resume=True, generations=29)


def test_a_finished_run_gives_its_result_at_once(uninterrupted: Path) -> None:
    before = journal(uninterrupted)
    written = read_result(uninterrupted)
    result = run(uninterrupted, resume=True, dawdle=100.0)
    assert journal(uninterrupted) == before
    assert [entry["genome"] for entry in written["front"]] == result.genomes.tolist()
    assert [entry["objectives"] for entry in written["front"]] == result.objectives.tolist()
    assert written["settings"] == SETTINGS
    assert written["gap"] == result.gap
    assert written["exact"]["proven"] is True


def test_every_evaluation_is_in_the_journal_once(uninterrupted: Path) -> None:
    with sqlite3.connect(uninterrupted / JOURNAL) as connection:
        rows = connection.execute("SELECT genome, costs, violation FROM evaluation ORDER BY id").fetchall()
    genomes = np.array([np.frombuffer(row[0], "<i2") for row in rows], dtype=np.int64)
    assert len(np.unique(genomes, axis=0)) == len(genomes) == read_result(uninterrupted)["evaluations"]
    problem = random_problem(3, space=hybrid(14), tightness=0.3)
    costs = np.array([np.frombuffer(row[1], "<f8") for row in rows])
    np.testing.assert_array_equal(costs, problem.costs(genomes))
    np.testing.assert_array_equal([row[2] for row in rows], problem.violations(costs))


def test_an_existing_run_is_not_overwritten(uninterrupted: Path) -> None:
    with pytest.raises(InputError, match="--resume, or choose another directory"):
        run(uninterrupted)


def test_nothing_to_resume_and_a_folder_of_other_things(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        run(tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        run(tmp_path)


def test_other_settings_are_refused_by_name(uninterrupted: Path) -> None:
    changed = {**SETTINGS, "problem": {"seed": 4, "layers": 14}}
    with pytest.raises(InputError, match=r"problem\.seed = 3, not 4"):
        Study.open(uninterrupted, settings=changed, resume=True)
    with pytest.raises(InputError, match=r"note = \"test\", not nothing"):
        Study.open(uninterrupted, settings={"problem": SETTINGS["problem"]}, resume=True)
    with pytest.raises(InputError, match="seed = 0, not 1"):
        run(uninterrupted, resume=True, seed=1)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Study.open(tmp_path / "run", settings={}), pytest.raises(OutputError, match="another process"):
        Study.open(tmp_path / "run", settings={}, resume=True)
    Study.open(tmp_path / "run", settings={}, resume=True).close()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_foreign_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        Study.open(tmp_path, settings={}, resume=True)


def test_another_programs_database_and_a_newer_version_are_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / JOURNAL) as connection:
        connection.execute("CREATE TABLE trials (x)")
    connection.close()
    for resume in (True, False):
        with pytest.raises(DataError, match="not a search journal"):
            Study.open(tmp_path, settings={}, resume=resume)
    Study.open(tmp_path / "newer", settings={}).close()
    with sqlite3.connect(tmp_path / "newer" / JOURNAL) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(DataError, match="version 9"):
        Study.open(tmp_path / "newer", settings={}, resume=True)


def test_damage_is_noticed(uninterrupted: Path, tmp_path: Path) -> None:
    with sqlite3.connect(uninterrupted / JOURNAL) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    whole = (uninterrupted / JOURNAL).read_bytes()
    for name, content in (
        ("short", whole[: len(whole) // 2]),
        ("holes", whole[:8192] + bytes(40960) + whole[49152:]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / JOURNAL).write_bytes(content)
        with pytest.raises(DataError, match="is damaged"):
            run(tmp_path / name, resume=True)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / JOURNAL).write_bytes(whole)
    with sqlite3.connect(tmp_path / "rows" / JOURNAL) as connection:
        connection.execute("DELETE FROM evaluation WHERE id = 50")
    connection.close()
    with pytest.raises(DataError, match="do not match"):
        run(tmp_path / "rows", resume=True)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot create"):
            Study.open(directory, settings={})
    with Study.open(tmp_path / "run", settings={}) as study:
        (tmp_path / "run" / RESULT).mkdir()
        with pytest.raises(OutputError, match=r"cannot write .*result\.json"):
            study.finish({})
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / RESULT).write_text(json.dumps({"front": []})[:5])
    with pytest.raises(DataError, match="cannot read"):
        read_result(tmp_path / "half")


@pytest.mark.parametrize("solver", ["exact", "beam"])
def test_other_solvers_leave_their_front_in_the_journal(
    tmp_path: Path, solver: Literal["exact", "beam"]
) -> None:
    problem = random_problem(3, space=hybrid(6), tightness=0.4)
    results = []
    for resume in (False, True):
        with Study.open(tmp_path / "run", settings={}, resume=resume) as study:
            results.append(search(problem, seed=0, solver=solver, study=study))
    np.testing.assert_array_equal(results[0].genomes, results[1].genomes)
    front = read_journal(tmp_path / "run").front()
    np.testing.assert_array_equal(front.genomes, results[0].genomes)
    np.testing.assert_array_equal(front.objectives, results[0].objectives)
