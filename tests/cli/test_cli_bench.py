"""bench, doctor and store: a space profiled, fitted, and a whole model of it measured beside its prediction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hwsearch.cli.main import run
from hwsearch.costmodel.model import CostModel
from hwsearch.pipeline.bench import bench_architectures
from hwsearch.pipeline.blocks import BlockTable, load_blocks
from hwsearch.profilers.store import Store
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.presets import space_named
from hwsearch.searchspace.workload import Workload
from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented

pytest.importorskip("transformers")

WORKLOADS = ("prefill:batch=1,context=24", "decode:batch=2,context=24")
ASKED = [part for text in WORKLOADS for part in ("--workload", text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, a space file of two choices over it, and a store with what it asks for."""
    made = tmp_path_factory.mktemp("bench")
    (made / "tiny").mkdir()
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 32,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
    }
    (made / "tiny" / "config.json").write_text(json.dumps(config))
    (made / "space.json").write_text(json.dumps({"mixers": [{"kind": "full_attention"}, {"kind": "none"}]}))
    command = ["profile", "--space", str(made / "space.json"), "--base", str(made / "tiny"), *ASKED]
    assert run([*command, "--visits", "1", "--timeout", "0", "-o", str(made / "tiny.db"), "--json"]) == 0
    return made


def test_a_whole_model_beside_its_blocks(hwsearch: Call, folder: Path) -> None:
    space = space_named(str(folder / "space.json"), base_named(str(folder / "tiny")))
    architecture = space.decode([0, 1], name="mixed")
    (folder / "mixed.json").write_text(architecture.to_json())
    command = ["bench", folder / "mixed.json", *ASKED, "--visits", 1]
    found = hwsearch(*command, "--cost-model", folder / "tiny.db", "--json").json
    _assert_documented(found, "bench")
    (found,) = found["architectures"]
    _assert_documented(found, "bench: each of architectures")
    assert [phase["phase"] for phase in found["phases"]] == ["prefill", "decode"]
    for phase in found["phases"]:
        _assert_documented(phase, "bench: each of phases")
        assert phase["predicted_from"] == "blocks"
        error = 100 * (phase["predicted_ms"] / phase["measured_ms"] - 1)
        assert phase["error_percent"] == pytest.approx(error)
        assert phase["predicted_ms_low"] < phase["predicted_ms"] < phase["predicted_ms_high"]
        within = phase["predicted_ms_low"] <= phase["measured_ms"] <= phase["predicted_ms_high"]
        assert phase["within_interval"] == within
        assert phase["machine_percent"] > -100
    table = load_blocks(folder / "tiny.db")
    assert table is not None
    assert len(table.times) == 2 * (2 + 1 + 2)
    for workload in table.workloads:
        (frame,), mixes = (
            [t.median_ms for b, t in table.times.items() if b.part == part and b.workload == workload]
            for part in ("frame", "mix")
        )
        # Either mix holds both layers once, as the model does.
        assert table.predict(architecture, workload).median_ms == pytest.approx(frame + np.mean(mixes))

    # On a machine that was ten times as slow when it was measured, mixes say so.
    slow = {
        block: dataclasses.replace(t, median_ms=10 * t.median_ms) if block.mix else t
        for block, t in table.times.items()
    }
    ((row, _),) = bench_architectures(
        [architecture], table.workloads, device="cpu", blocks=dataclasses.replace(table, times=slow), visits=1
    )
    assert row.machine is not None
    assert row.machine < 0.9
    assert any("the machine has changed" in text for text in row.notes)
    other = dataclasses.replace(table, backend="triton")
    ((row, _),) = bench_architectures([architecture], table.workloads, device="cpu", blocks=other, visits=1)
    assert row.machine is None
    assert "another backend or execution (triton, eager)" in row.notes[0]

    (alone,) = hwsearch(*command, "--json").json["architectures"]
    assert alone["phases"][0]["predicted_ms"] is None
    assert "no --cost-model" in hwsearch(*command).out

    # The full space has a mixer of which no block was measured: nothing is guessed.
    unknown = hwsearch(
        "bench", folder / "tiny", "--workload", "decode:batch=2,context=25", "--visits", 1,
        "--cost-model", folder / "tiny.db", "--json",
    ).json  # fmt: skip
    (phase,) = unknown["architectures"][0]["phases"]
    assert phase["predicted_ms"] is None
    assert "2 blocks are not measured" in phase["notes"][0]


def test_several_models_take_turns(folder: Path) -> None:
    space = space_named(str(folder / "space.json"), base_named(str(folder / "tiny")))
    models = [space.decode(genome, name=str(genome)) for genome in ([0, 1], [1, 0], [0, 0])]
    workload = Workload.from_text(WORKLOADS[1], dtype="float32")
    seen: list[str] = []
    found = bench_architectures(
        models, [workload], device="cpu", visits=4, on_visit=lambda model, _: seen.append(model.name)
    )
    rounds = [seen[at : at + 3] for at in range(0, 12, 3)]
    assert all(sorted(names) == sorted(model.name for model in models) for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    # Rows belong to their model: two layers of full attention keep twice the cache of one.
    (one,), (other,), (two,) = ([row.state_bytes for row in rows] for rows in found)
    assert one == other == two / 2


def test_the_largest_batch_within_a_memory(hwsearch: Call, folder: Path) -> None:
    command = ["bench", folder / "tiny", "--workload", "decode:batch=max,context=4k"]
    found = hwsearch(*command, "--memory", "64MiB", "--json").json
    (batch,) = found["architectures"][0]["largest_batches"]
    assert batch["memory_bytes"] == 64 * 2**20
    assert 0 < batch["measured"] <= batch["predicted"]
    assert "needs a cap" in hwsearch(*command).complaint
    assert "cannot read the budget" in hwsearch(*command, "--memory", "much").complaint


def test_what_cannot_run_is_one_line(hwsearch: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = hwsearch("bench", folder / "tiny", "--workload", "decode:batch=4,context=1000000k").complaint
    assert "are free: give a smaller batch or context" in large

    def fails(*_: object, **__: object) -> object:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nat line 3")

    monkeypatch.setattr("hwsearch.profilers.whole.model_runnable", fails)
    found = hwsearch("bench", folder / "tiny", *ASKED).complaint
    assert found.endswith("can't allocate memory; give a smaller batch or context")
    assert "cannot run prefill:batch=1,context=24" in found


def test_a_defect_is_no_full_memory(hwsearch: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> object:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("hwsearch.profilers.whole.model_runnable", fails)
    asked = ("--workload", "decode:batch=max,context=64", "--memory", "1GiB")
    assert "illegal memory access" in hwsearch("bench", folder / "tiny", *asked).complaint


def test_measured_blocks_are_part_of_a_saved_model(folder: Path, tmp_path: Path) -> None:
    table = load_blocks(folder / "tiny.db")
    assert table is not None
    table.save(tmp_path)
    assert BlockTable.load(tmp_path) == table
    assert BlockTable.load(folder) is None


def _knows_blocks_alone(folder: Path, path: Path) -> None:
    """A cost model without measured operators, which holds the blocks of the store."""
    table = load_blocks(folder / "tiny.db")
    assert table is not None
    with Store.open(folder / "tiny.db") as store:
        device = store.device()
    model = CostModel(
        device=device, runtime=table.runtime, dtype="float32", source="nothing", seed=0, families={}
    )
    model.save(path)
    table.save(path)


def test_predict_takes_the_latency_from_measured_blocks_where_there_are_all(
    hwsearch: Call, folder: Path, tmp_path: Path
) -> None:
    table = load_blocks(folder / "tiny.db")
    assert table is not None
    _knows_blocks_alone(folder, tmp_path / "made")
    space = space_named(str(folder / "space.json"), base_named(str(folder / "tiny")))
    architecture = space.decode([0, 1], name="mixed")
    (tmp_path / "mixed.json").write_text(architecture.to_json())
    command = ["predict", "--arch", tmp_path / "mixed.json", "--device", tmp_path / "made", "--workload"]
    (workload,) = (each for each in table.workloads if each.phase == "decode")
    asked = WORKLOADS[1]
    found = hwsearch(*command, asked, "--json").json
    assert found["predicted_from"] == "blocks"
    assert found["latency_ms"] == pytest.approx(table.predict(architecture, workload).median_ms)
    assert found["latency_ms_from_operators"] != found["latency_ms"]
    assert "layers measured whole" in found["notes"][0]
    shown = hwsearch(*command, asked).out
    assert "90% interval" in shown
    assert "in the latency: as it was measured" in shown
    other = hwsearch(*command, "decode:batch=3,context=24", "--json").json
    assert other["predicted_from"] == "operators"
    assert other["latency_ms"] == pytest.approx(other["latency_ms_from_operators"])
    assert "blocks are not measured" in other["notes"][-1]
    assert hwsearch(*command, asked, "--host", "hf-eager", "--json").json["predicted_from"] == "operators"


def test_stores_are_joined_and_exported(hwsearch: Call, folder: Path, tmp_path: Path) -> None:
    joined = hwsearch(
        "store", "merge", folder / "tiny.db", folder / "tiny.db", "-o", tmp_path / "c.db", "--json"
    ).json
    _assert_documented(joined, "store merge")
    assert joined["rows"] == 2 * joined["added"]
    written = hwsearch("store", "export", tmp_path / "c.db", "-o", tmp_path / "c.csv", "--json").json
    _assert_documented(written, "store export")
    assert written["rows"] == joined["added"]
    assert (
        "one of .csv, .parquet"
        in hwsearch("store", "export", tmp_path / "c.db", "-o", tmp_path / "c.xls").complaint
    )


def test_two_stores_are_compared(hwsearch: Call, folder: Path, tmp_path: Path) -> None:
    command = ["store", "compare", folder / "tiny.db", folder / "tiny.db"]
    found = hwsearch(*command, "--worst", 2, "--json").json
    _assert_documented(found, "store compare")
    for spread in (found["all"], *found["kinds"].values()):
        _assert_documented(spread, "store compare: all, and each of kinds")
        assert spread["largest"] == spread["shift"] == spread["rest"] == 0
    assert len(found["farthest"]) == 2
    assert found["reference_percent"] == 0
    assert "all shifted by" in hwsearch(*command).out
    assert "none.db does not exist" in hwsearch(*command[:3], tmp_path / "none.db").complaint


def test_the_doctor_looks_at_this_machine(hwsearch: Call) -> None:
    found = hwsearch("doctor", "--json").json
    _assert_documented(found, "doctor")
    assert found["healthy"] == (not found["findings"])
    assert {"device_name", "runtime", "cores", "threads", "governor", "reference_spread"} <= set(
        found["facts"]
    )
    absent = hwsearch("doctor", "--device", "cuda:99", "--json")
    assert absent.status == 1
    (finding,) = json.loads(absent.out)["findings"]
    assert finding["severity"] == "error"
    assert "device cuda:99" in hwsearch("doctor", "--device", "cuda:99").out


def test_cuda_graphs_are_refused_on_a_cpu(hwsearch: Call, folder: Path, tmp_path: Path) -> None:
    refused = hwsearch("profile", "--points", 8, "--execution", "cuda-graph", "-o", tmp_path / "a.db")
    assert "execution cuda-graph needs a CUDA device" in refused.complaint
    refused = hwsearch("bench", folder / "tiny", *ASKED, "--execution", "cuda-graph")
    assert "needs a CUDA device" in refused.complaint


def emptied(architecture: Architecture, *, fidelity: float, seed: int) -> float:
    """A quality loss for `search`: layers without attention."""
    return float(architecture.count()["none"])


def test_search_takes_latencies_from_measured_blocks(hwsearch: Call, folder: Path, tmp_path: Path) -> None:
    table = load_blocks(folder / "tiny.db")
    assert table is not None
    _knows_blocks_alone(folder, tmp_path / "made")
    command = [
        "search", "--base", folder / "tiny", "--device", tmp_path / "made", "--space", folder / "space.json",
        "--quality", "tests.cli.test_cli_bench:emptied", "--evaluations", 4,
    ]  # fmt: skip
    found = hwsearch(*command, "--workload", WORKLOADS[1], "-o", tmp_path / "run", "--json").json
    space = space_named(str(folder / "space.json"), base_named(str(folder / "tiny")))
    (workload,) = (each for each in table.workloads if each.phase == "decode")
    best = space.decode([0, 0], name="best")
    assert found["best"]["quality_loss"] == 0
    assert found["best"]["prediction"]["predicted_from"] == "blocks"
    assert found["best"]["latency_ms"] == pytest.approx(table.predict(best, workload).median_ms)
    assert found["notes"] == []
    other = hwsearch(*command, "--workload", "decode:batch=3,context=24", "-o", tmp_path / "other", "--json")
    assert "3 of the space's blocks are not measured whole" in other.json["notes"][0]
    assert "is the sum over operators" in other.err
