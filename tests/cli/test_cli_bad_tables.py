"""fit, evaluate and import on tables that are wrong: one clear message each, or counts of what was left out."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hwsearch.costmodel.devices import device_named
from hwsearch.operators import Operator
from hwsearch.profilers.store import Store
from hwsearch.records import Environment, Measurement
from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented
from tests.costmodel.conftest import gemm_table

H100 = device_named("h100-sxm")
Row = dict[str, object]


def _rows() -> list[Row]:
    table = gemm_table(40, seed=1)
    return [
        {
            "framework": "vLLM",
            "version": "0.24.0",
            "device": H100.device_name,
            "op_name": "gemm",
            "kernel_source": "x",
            "gemm_dtype": "bfloat16",
            **dict(zip(("m", "n", "k"), dims, strict=True)),
            "latency": latency,
        }
        for dims, latency in zip(table.dims.tolist(), table.latency_ms.tolist(), strict=True)
    ]


def _write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _scaled(factor: float) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [row | {"latency": factor * float(str(row["latency"]))} for row in rows]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_scaled(1e3), "add --unit us"),
        (_scaled(1e-3), "add --unit s"),
        (lambda rows: [row | {"latency": "nan"} for row in rows[:20]] + rows[20:], "20 of 40 rows are bad"),
        (lambda rows: [rows[0] | {"device": "NVIDIA H200"}, *rows[1:]], "mixes the devices"),
        (lambda rows: [rows[0] | {"version": "0.19.0"}, *rows[1:]], "mixes the versions"),
        (lambda rows: [row | {"device": "NVIDIA X9"} for row in rows], "ceilings of"),
        (lambda rows: [{k: v for k, v in row.items() if k != "k"} for row in rows], "lacks the column"),
        (lambda rows: [row | {"gemm_dtype": "fp8"} for row in rows], "no usable row"),
        (lambda rows: rows[:9], "9 measured operators"),
        (lambda rows: [row | {"device": " "} for row in rows], "40 of 40 rows have no device"),
        (lambda rows: [rows[0] | {"version": ""}, *rows[1:]], "1 of 40 rows have no version"),
        (lambda rows: [row | {"m": True} for row in rows], "m is not a whole number of at least 1"),
        (lambda rows: [row | {"m": 2**62} for row in rows], "m is above 1099511627776"),
    ],
    ids=[
        "microseconds",
        "seconds",
        "nan",
        "devices",
        "versions",
        "unknown",
        "column",
        "dtype",
        "few",
        "no device",
        "no version",
        "truth",
        "huge",
    ],
)
def test_bad_tables_are_one_line_and_write_nothing(
    hwsearch: Call, tmp_path: Path, change: Callable[[list[Row]], list[Row]], told: str
) -> None:
    path = _write(tmp_path / "t.csv", change(_rows()))
    for arguments in (("fit", path, "-o", tmp_path / "model"), ("evaluate", "h100-sxm", path)):
        assert told in hwsearch(*arguments).complaint
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_place_that_holds_something_else_is_refused_before_the_table_is_read(
    hwsearch: Call, tmp_path: Path
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert "exists and is not a cost model" in hwsearch("fit", tmp_path / "none.csv", "-o", notes).complaint
    assert notes.read_text() == "mine"


def test_a_table_that_excel_marked_as_unicode_is_read(hwsearch: Call, tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", _rows())
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert hwsearch("evaluate", "h200-sxm", path, "--as-is", "--json").json["operators"]["gemm"]["rows"] == 40


def test_rows_left_out_are_counted_by_every_command(hwsearch: Call, tmp_path: Path) -> None:
    rows = _rows()
    rows[0]["latency"], rows[1]["latency"], rows[2]["latency"] = "nan", 1e-7, 1e6
    path = _write(tmp_path / "t.csv", [*rows, rows[5]])
    left_out = {
        "t.csv: latency is missing or not a number": 1,
        "t.csv: faster than 1.3 x the roofline of h100-sxm": 1,
        "t.csv: more than 200 x slower than the roofline of h100-sxm": 1,
    }
    model, store = tmp_path / "model", tmp_path / "t.db"
    fitted = hwsearch("fit", path, "-o", model, "--json").json
    imported = hwsearch("import", "aiconfigurator", path, "-o", store, "--json").json
    judged = hwsearch("evaluate", "h200-sxm", path, "--as-is", "--json").json
    for content, section in ((fitted, "fit"), (imported, "import"), (judged, "evaluate")):
        _assert_documented(content, section)
        assert content["left_out"] == left_out
        assert content["merged"] == {"exact duplicates": 1}
    assert imported["added"] == 37

    regimes = judged["regimes"]["gemm"]
    assert sum(errors["rows"] for errors in regimes.values()) == judged["operators"]["gemm"]["rows"] == 37
    assert len(judged["worst"]) == 10
    for row in judged["worst"]:
        _assert_documented(row, "evaluate: each of worst")
        assert set(row["dims"]) == {"m", "n", "k"}
        assert row["error"] == pytest.approx(100 * (row["predicted_ms"] / row["measured_ms"] - 1))
    assert fitted["operators"]["gemm"]["rows"] == 7
    assert [abs(row["error"]) for row in judged["worst"]] == sorted(
        (abs(row["error"]) for row in judged["worst"]), reverse=True
    )
    errors = judged["operators"]["gemm"]
    _assert_documented(errors, "evaluate: each of operators")
    assert abs(errors["bias"]) <= errors["mape"]
    told = hwsearch("evaluate", model, path, "--as-is").complaint
    assert "left out: 1 rows, t.csv: latency is missing" in told
    out = hwsearch("evaluate", "h200-sxm", path, "--as-is").out
    for said in ("tokens up to 64", "furthest off", "left out: 1 rows", "merged: 1 rows, exact duplicates"):
        assert said in out


def test_a_store_is_checked_too(hwsearch: Call, tmp_path: Path) -> None:
    """Whoever wrote it: rows that no H100 can run so fast are left out, and too many of them refused."""
    where = Environment(device_name=H100.device_name, runtime="x 1")
    measurements = [
        Measurement(
            operator=Operator("gemm", tuple(dims)),
            dtype="bfloat16",
            environment=where,
            samples_ms=(latency,),
            kernel="y",
        )
        for dims, latency in zip(
            gemm_table(60, seed=2).dims.tolist(), gemm_table(60, seed=2).latency_ms.tolist(), strict=True
        )
    ]
    absurd = [replace(m, samples_ms=(1e-9,)) for m in measurements]
    for wrong, path in ((6, tmp_path / "few.db"), (30, tmp_path / "many.db")):
        with Store.open(path, create=True) as store:
            store.add_device(H100)
            store.add([*absurd[:wrong], *measurements[wrong:]])
    found = hwsearch("fit", tmp_path / "few.db", "-o", tmp_path / "m", "--json").json
    assert found["left_out"] == {"gemm: faster than 1.3 x the roofline of h100-sxm": 6}
    told = hwsearch("fit", tmp_path / "many.db", "-o", tmp_path / "n").complaint
    assert "30 of 60 rows are bad" in told
    assert (
        "leave --unit out" in hwsearch("evaluate", "h100-sxm", tmp_path / "few.db", "--unit", "us").complaint
    )

    together = hwsearch(
        "import", "store", tmp_path / "few.db", tmp_path / "many.db", "-o", tmp_path / "all.db", "--json"
    ).json
    _assert_documented(together, "import")
    assert (together["rows"], together["added"]) == (120, 60)
    with Store.open(tmp_path / "other.db", create=True) as store:
        store.add([replace(measurements[0], environment=replace(where, runtime="x 2"))])
    mixed = hwsearch(
        "import", "store", tmp_path / "few.db", tmp_path / "other.db", "-o", tmp_path / "all.db"
    ).complaint
    assert "one store holds one device, runtime and dtype" in mixed


def test_profiles_of_vidur_can_be_imported_and_judged(hwsearch: Call, tmp_path: Path) -> None:
    home = tmp_path / "a100"
    home.mkdir()
    names = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "input_layernorm")
    # Llama-3-8B at 32768 tokens: github.com/microsoft/vidur, data/profiling/compute/a100
    times = (7.2595, 4.926, 33.094, 16.6075, 0.8255)
    row: Row = {f"time_stats.{name}.median": ms for name, ms in zip(names, times, strict=True)}
    row |= {"n_head": 32, "n_kv_head": 8, "n_embd": 4096, "n_expanded_embd": 14336, "use_gated_mlp": True}
    path = _write(home / "mlp.csv", [row | {"num_tokens": 32768, "num_tensor_parallel_workers": 1}])
    found = hwsearch("import", "vidur", path, "-o", tmp_path / "v.db", "--json").json
    _assert_documented(found, "import")
    assert (found["rows"], found["added"]) == (5, 5)
    for source in (path, tmp_path / "v.db"):
        judged = hwsearch("evaluate", "a100-sxm", source, "--as-is", "--json").json
        assert judged["operators"]["gemm"]["rows"] == 4
        assert judged["operators"]["gemm"]["mape"] < 15
        assert judged["notes"] == ["elementwise: the model has no fitted family; its roofline was judged"]
    assert "judge the saved model on it with --as-is" in hwsearch("evaluate", "a100-sxm", path).complaint
    bare = _write(tmp_path / "mlp.csv", [row | {"num_tokens": 32768, "num_tensor_parallel_workers": 1}])
    assert "--device" in hwsearch("import", "vidur", bare, "-o", tmp_path / "w.db").complaint
    assert hwsearch("import", "vidur", bare, "--device", "a100-sxm", "-o", tmp_path / "w.db").status == 0
