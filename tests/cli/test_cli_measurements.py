"""profile, fit, evaluate and import, end to end on this machine's CPU and on tables."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from hwsearch.cli.main import run
from hwsearch.costmodel.model import CostModel
from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented

pytest.importorskip("torch")

POINTS = 8 * 16  # a few more of each kind than fitting and judging take


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile of this CPU and a model fitted to it; every worker makes its own."""
    made = tmp_path_factory.mktemp("cpu")
    assert (
        run(["profile", "--points", str(POINTS), "--visits", "1", "-o", str(made / "cpu.db"), "--json"]) == 0
    )
    assert run(["fit", str(made / "cpu.db"), "-o", str(made / "cpu.costmodel"), "--json"]) == 0
    return made


def test_profile_fit_evaluate_predict(hwsearch: Call, folder: Path) -> None:
    store, model = folder / "cpu.db", folder / "cpu.costmodel"
    again = hwsearch("profile", "--points", POINTS, "--visits", 1, "-o", store, "--json").json
    _assert_documented(again, "profile")
    assert (again["measured"], again["skipped"], again["measurements"]) == (0, POINTS, POINTS)

    judged = hwsearch("evaluate", model, store, "--json").json
    _assert_documented(judged, "evaluate")
    assert set(judged["operators"]) >= {"gemm", "generation_attention", "delta_rule_decode"}
    saved = CostModel.load(model)
    assert {kind: asdict(errors) for kind, errors in saved.held_out.items()} == judged["operators"]
    assert "fitted on all" in hwsearch("evaluate", model, store, "--as-is").complaint

    predicted = hwsearch(
        "predict",
        "--arch",
        "Qwen2.5-0.5B",
        "--device",
        model,
        "--workload",
        "decode:batch=1,context=1k",
        "--json",
    ).json
    assert predicted["dtype"] == "float32"
    assert "torch" in predicted["runtime"]
    assert predicted["latency_ms"] > 0


def test_a_saved_model_that_is_damaged_is_refused(hwsearch: Call, folder: Path) -> None:
    model = folder / "cpu.costmodel"
    arrays = model / "arrays.npz"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[: len(whole) // 2])
    outcome = hwsearch(
        "predict", "--arch", "Qwen2.5-0.5B", "--device", model, "--workload", "decode:batch=1,context=1k"
    )
    assert str(model) in outcome.complaint
    arrays.write_bytes(whole)


def test_a_truncated_store_is_refused_and_left_alone(hwsearch: Call, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    whole = (folder / "cpu.db").read_bytes()
    broken.write_bytes(whole[: len(whole) // 3])
    before = broken.read_bytes()
    for arguments in (
        ("fit", broken, "-o", tmp_path / "model"),
        ("evaluate", folder / "cpu.costmodel", broken),
        ("profile", "-o", broken),
    ):
        assert "broken.db" in hwsearch(*arguments).complaint
    assert broken.read_bytes() == before
    assert not (tmp_path / "model").exists()


@pytest.mark.shared
def test_import_then_evaluate_gives_what_the_tables_give(
    hwsearch: Call, shared_data: Path, tmp_path: Path
) -> None:
    store = tmp_path / "a100.db"
    source = shared_data / "data" / "a100_sxm" / "gdn.parquet"
    imported = hwsearch("import", "aiconfigurator", source, "-o", store, "--json").json
    _assert_documented(imported, "import")
    assert imported["added"] == imported["measurements"] > 100
    again = hwsearch("import", "aiconfigurator", source, "-o", store, "--json").json
    assert again["added"] == 0
    direct = hwsearch("fit", source, "-o", tmp_path / "m1", "--json").json
    through = hwsearch("fit", store, "-o", tmp_path / "m2", "--json").json
    assert direct["operators"] == through["operators"]


@pytest.mark.shared
def test_rows_of_another_device_or_dtype_are_not_taken_for_the_models_own(
    hwsearch: Call, shared_data: Path, folder: Path
) -> None:
    other = shared_data / "data" / "h200_sxm" / "gdn.parquet"
    assert "--as-is" in hwsearch("evaluate", "h100-sxm", other).complaint
    judged = hwsearch("evaluate", "h100-sxm", other, "--as-is", "--json")
    assert "was measured on NVIDIA H200" in judged.err
    assert all(errors["skipped_seen"] == 0 for errors in judged.json["operators"].values())
    assert "float32" in hwsearch("evaluate", "h100-sxm", folder / "cpu.db").complaint


@pytest.mark.shared
def test_a_truncated_table_is_refused(hwsearch: Call, shared_data: Path, tmp_path: Path) -> None:
    whole = (shared_data / "data" / "h100_sxm" / "gdn.parquet").read_bytes()
    broken = tmp_path / "gdn.parquet"
    broken.write_bytes(whole[: len(whole) // 2])
    assert "gdn.parquet" in hwsearch("evaluate", "h100-sxm", broken).complaint
