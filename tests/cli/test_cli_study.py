"""hwsearch study, spaces and schema; searching a space from a file, and a fixed placement."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path

import jsonschema
import pytest

from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented

SEARCH = (
    "search", "--base", "Qwen3-1.7B", "--device", "h100-sxm", "--quality", "qwen3-1.7b-sweep",
    "--workload", "decode:batch=16,context=32768", "--population", "12", "--json",
)  # fmt: skip


def _run(hwsearch: Call, directory: Path, *more: object) -> Path:
    found = hwsearch(*SEARCH, "--budget", "latency<=8ms", "--generations", 6, "-o", directory, *more)
    assert found.status == 0, found.err
    return directory


def test_a_run_is_shown_plotted_and_exported(hwsearch: Call, tmp_path: Path) -> None:
    run = _run(hwsearch, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    shown = hwsearch("study", "show", run, "--json").json
    _assert_documented(shown, "study show")
    assert shown["front"] == result["front"]
    assert shown["evaluations"] == result["evaluations"] == shown["by_fidelity"]["1.0"]
    assert shown["exact"] == result["exact"]["value"]
    volumes = [step["hypervolume"] for step in shown["convergence"]]
    assert volumes == sorted(volumes)
    assert len(volumes) == 6
    assert shown["convergence"][-1] == {
        "evaluations": result["evaluations"],
        "best": result["front"][0]["objectives"][0],
        "hypervolume": volumes[-1],
    }
    for title in ("Front: ", "Convergence", "exact optimum"):
        assert title in hwsearch("study", "show", run).out

    table = tmp_path / "table.csv"
    _assert_documented(hwsearch("study", "export", run, "-o", table, "--json").json, "study export")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["evaluations"]
    best = min((row for row in rows if row["violation"] == "0.0"), key=lambda row: float(row["quality_loss"]))
    assert [int(gene) for gene in best["genome"].split()] == result["front"][0]["genome"]

    parquet = pytest.importorskip("pyarrow.parquet")
    assert hwsearch("study", "export", run, "-o", tmp_path / "table.parquet").status == 0
    again = parquet.read_table(tmp_path / "table.parquet").to_pylist()
    assert [row["latency"] for row in again] == [float(row["latency"]) for row in rows]

    pytest.importorskip("matplotlib")
    for name, magic in (("run.png", b"\x89PNG"), ("run.svg", b"<?xml")):
        assert hwsearch("study", "plot", run, "-o", tmp_path / name).status == 0
        assert (tmp_path / name).read_bytes().startswith(magic)
    assert "end the file in .png" in hwsearch("study", "plot", run, "-o", tmp_path / "run.xyz").complaint
    assert "cannot write" in hwsearch("study", "plot", run, "-o", tmp_path / "no" / "run.png").complaint


def test_more_generations_on_the_command_line(hwsearch: Call, tmp_path: Path) -> None:
    run = _run(hwsearch, tmp_path / "run")
    again = hwsearch(*SEARCH, "--budget", "latency<=8ms", "--generations", 9, "-o", run, "--resume")
    assert (
        again.json["evaluations"]
        > json.loads(hwsearch("study", "show", run, "--json").out)["evaluations"] - 1
    )
    assert len(hwsearch("study", "show", run, "--json").json["convergence"]) == 9
    fewer = hwsearch(*SEARCH, "--budget", "latency<=8ms", "--generations", 8, "-o", run, "--resume")
    assert "holds 9 generations: ask for at least as many, not 8" in fewer.complaint


def test_more_evaluations_keep_the_population_they_began_with(hwsearch: Call, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    given = (*SEARCH[:-3], "--budget", "latency<=8ms")  # no population
    assert hwsearch(*given, "--evaluations", 880, "-o", run).status == 0
    assert hwsearch(*given, "--evaluations", 1500, "-o", run, "--resume").status == 0
    assert hwsearch(*given, "--evaluations", 1500, "--population", 22, "-o", again).status == 0
    assert (run / "result.json").read_bytes() == (again / "result.json").read_bytes()
    other = hwsearch(
        *given, "--space", "puzzle", "--assume", "narrow_ffn=0.5", "-o", run, "--resume"
    ).complaint
    assert 'was started with preset = "postnas", not "puzzle"' in other
    solver = hwsearch(*given, "--solver", "exact", "-o", run, "--resume").complaint
    assert 'was started with solver = "auto", not "exact"' in solver


def test_what_is_no_run_is_refused_in_one_line(hwsearch: Call, tmp_path: Path) -> None:
    assert "no run in" in hwsearch("study", "show", tmp_path).complaint
    foreign = tmp_path / "journal.sqlite"
    foreign.write_bytes(b"something else entirely" * 99)
    assert "is damaged" in hwsearch("study", "show", tmp_path).complaint
    foreign.unlink()
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE trials (x)")
    connection.close()
    assert "not a search journal" in hwsearch("study", "export", tmp_path, "-o", tmp_path / "x.csv").complaint
    run = _run(hwsearch, tmp_path / "run")
    assert (
        "end the file in .csv, .parquet or .log"
        in hwsearch("study", "export", run, "-o", tmp_path / "x").complaint
    )


def test_spaces_and_schemas_are_listed(hwsearch: Call) -> None:
    listed = hwsearch("spaces", "--json").json
    _assert_documented(listed, "spaces")
    for space in listed["spaces"]:
        _assert_documented(space, "spaces: each of spaces")
    assert "postnas-grid" in hwsearch("spaces").out
    content = hwsearch("spaces", "puzzle", "--base", "Qwen3-8B").json
    schema = hwsearch("schema", "space").json
    jsonschema.Draft202012Validator(schema).validate(content)
    assert "did you mean puzzle" in hwsearch("spaces", "puzle").complaint


def test_a_space_from_a_file_is_searched(hwsearch: Call, tmp_path: Path) -> None:
    space = tmp_path / "mine.toml"
    space.write_text(
        'limits = [{of = "full_attention", at_least = 1, at_most = 1, every = 7}]\n'
        'mixers = [{kind = "full_attention"}, {kind = "full_attention", num_kv_heads = 2},'
        ' {kind = "jet_block", num_heads = 16, head_k_dim = [64, 128], state_size = 524288}]\n'
        "ffn = {share = [1.0, 0.5]}\n"
    )
    found = hwsearch(
        *SEARCH, "--space", space, "--generations", 3, "-o", tmp_path / "run", "--assume", "narrow_ffn=0.4"
    )
    assert "reshaped_attention is left out of the space" in found.err
    assert found.json["best"]["mixers"]["full_attention"] == 4
    assumed = hwsearch(
        *SEARCH, "--space", space, "--generations", 3, "-o", tmp_path / "all", "--assume", "narrow_ffn=0.4",
        "--assume", "reshaped_attention=0.1",
    ).json  # fmt: skip
    assert not assumed["notes"]
    assert int(assumed["space_size"]) > int(found.json["space_size"])
    space.write_text("mixerz = 3")
    broken = hwsearch(*SEARCH, "--space", space, "-o", tmp_path / "none")
    assert "mixerz: unknown key, did you mean mixers" in broken.complaint


def test_a_placement_is_kept(hwsearch: Call, tmp_path: Path) -> None:
    run = _run(hwsearch, tmp_path / "run")
    placed = tmp_path / "placed.json"
    assert hwsearch("export", run, "-o", placed).status == 0
    before = json.loads(placed.read_text())["layer_types"]
    found = hwsearch(
        *SEARCH, "--space", "postnas-grid", "--placement", placed, "--generations", 3, "-o", tmp_path / "grid"
    ).json
    assert found["best"]["layer_types"] == before
    wrong = hwsearch(*SEARCH, "--placement", "jet-nemotron-4b", "-o", tmp_path / "wrong")
    assert "36 layers and the space 28" in wrong.complaint


def test_a_run_opens_as_an_optuna_study(hwsearch: Call, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    run = _run(hwsearch, tmp_path / "run", "--population", 20, "--generations", 2)
    result = json.loads((run / "result.json").read_text())
    log = tmp_path / "run.log"
    assert hwsearch("study", "export", run, "-o", log).status == 0
    backend = optuna.storages.journal.JournalFileBackend(str(log))
    study = optuna.load_study(study_name="run", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == result["evaluations"]
    assert study.metric_names == ["quality_loss", "latency"]
    best = min(study.best_trials, key=lambda trial: trial.values)
    assert best.values == result["front"][0]["objectives"]
    assert list(best.params.values()) == result["front"][0]["genome"]
    assert "choose another file" in hwsearch("study", "export", run, "-o", log).complaint


def test_solvers_agree_on_the_best(hwsearch: Call, tmp_path: Path) -> None:
    best = {}
    for solver in ("auto", "exact", "evolve", "beam"):
        run = _run(hwsearch, tmp_path / solver, "--solver", solver, "--population", 100, "--generations", 60)
        found = json.loads((run / "result.json").read_text())
        best[solver] = found["front"][0]["objectives"][0]
        assert (found["exact"] is None) == (solver == "evolve")
        shown = hwsearch("study", "show", run, "--json").json
        assert shown["front"] == found["front"]
    assert best["exact"] <= min(best.values()) + 1e-12
    assert max(best["auto"], best["evolve"]) <= 1.01 * best["exact"]
    assert best["beam"] <= 1.3 * best["exact"]
    mixed = hwsearch(
        *SEARCH,
        "--budget",
        "latency<=8ms",
        "-o",
        tmp_path / "exact",
        "--resume",
        "--population",
        100,
        "--solver",
        "beam",
    )
    assert 'solver = "exact", not "beam"' in mixed.complaint
