"""Checks of measured latencies: units, rows that cannot be, repeats, and how many of them are too many."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.importers import import_tables
from hwsearch.costmodel.quality import check_unit, disagreeing, fastest_ms, repeated, suspicious
from hwsearch.errors import DataError, InputError
from hwsearch.operators import columns
from tests.costmodel.conftest import gemm_table

H100 = device_named("h100-sxm")
HEADER = (
    "framework",
    "version",
    "device",
    "op_name",
    "kernel_source",
    "gemm_dtype",
    "m",
    "n",
    "k",
    "latency",
)


def _table(path: Path, *, scale: float = 1.0, changes: dict[int, object] | None = None) -> Path:
    """A plausible gemm table of 40 rows in milliseconds times `scale`; `changes` maps rows to latencies."""
    table = gemm_table(40, seed=0)
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(HEADER)
        for row, (dims, latency) in enumerate(zip(table.dims.tolist(), table.latency_ms, strict=True)):
            value = (changes or {}).get(row, latency * scale)
            writer.writerow(("vLLM", "0.24.0", H100.device_name, "gemm", "x", "bfloat16", *dims, value))
    return path


@pytest.mark.parametrize(("unit", "scale"), [("us", 1e3), ("s", 1e-3), ("ns", 1e6)])
def test_a_table_in_another_unit_is_refused_and_read_when_told(
    tmp_path: Path, unit: str, scale: float
) -> None:
    path = _table(tmp_path / "t.csv", scale=scale)
    with pytest.raises(DataError, match=f"look like {unit}: add --unit {unit}$"):
        import_tables(path)
    read = import_tables(path, unit=unit).tables["gemm"]
    assert read.latency_ms == pytest.approx(
        import_tables(_table(tmp_path / "ms.csv")).tables["gemm"].latency_ms
    )


def test_milliseconds_taken_for_microseconds_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"look like ms: add --unit ms$"):
        import_tables(_table(tmp_path / "t.csv"), unit="us")
    with pytest.raises(InputError, match="unknown unit 'hours'"):
        import_tables(_table(tmp_path / "t.csv"), unit="hours")


def test_a_few_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    changes = {0: "nan", 1: "inf", 2: 0, 3: -1, 4: 1e-9, 5: 1e-5, 6: 1e5, 7: "fast"}
    imported = import_tables(_table(tmp_path / "t.csv", changes=changes))
    assert imported.left_out == {
        "t.csv: latency is missing or not a number": 3,
        "t.csv: latency is not positive": 2,
        "t.csv: faster than 1.3 x the roofline of h100-sxm": 2,
        "t.csv: more than 200 x slower than the roofline of h100-sxm": 1,
    }
    assert len(imported.tables["gemm"]) == 32
    assert sum(imported.left_out.values()) + len(imported.tables["gemm"]) == imported.rows


def test_more_than_a_third_of_bad_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="14 of 40 rows are bad, more than a third"):
        import_tables(_table(tmp_path / "t.csv", changes=dict.fromkeys(range(14), -1)))
    assert import_tables(_table(tmp_path / "t.csv", changes=dict.fromkeys(range(13), -1))).tables


def test_what_the_cache_holds_may_be_faster_than_memory() -> None:
    """41 MB of weights fit in an L2 of 50 MB and not in one of 1 MB."""
    c = columns("gemm", [(1, 5000, 4096)])
    bytes_ms = 1e3 * 2 * (4096 + 5000 * 4096 + 5000) / H100.bandwidth
    assert fastest_ms("gemm", c, device=H100, size=2)[0] == pytest.approx(bytes_ms / 10)
    small = replace(H100, l2_bytes=2**20)
    assert fastest_ms("gemm", c, device=small, size=2)[0] == pytest.approx(bytes_ms, rel=0.1)


def test_experts_that_no_token_may_choose_do_not_count() -> None:
    few, many = (
        fastest_ms("moe", columns("moe", [(16, 2048, 5120, 22, experts)]), device=H100, size=2)[0]
        for experts in (22, 512)
    )
    assert few == many


def test_measured_ceilings_judge_no_speed() -> None:
    table = gemm_table(40, seed=0)
    absurd = table.latency_ms / 1e4
    assert suspicious("gemm", table.dims, absurd, device=H100, size=2)
    assert suspicious("gemm", table.dims, absurd, device=replace(H100, source="measured"), size=2) == {}


def test_few_rows_do_not_make_a_unit() -> None:
    table = gemm_table(40, seed=0).take(np.arange(4))
    check_unit("gemm", table.dims, table.latency_ms * 1e3, device=H100, size=2, place="x", unit="ms")


def test_repeats_are_counted_and_those_at_odds_found() -> None:
    dims = np.array([[1, 1, 1], [1, 1, 1], [2, 2, 2], [2, 2, 2], [3, 3, 3], [3, 3, 3]])
    latency = np.array([1.0, 1.0, 1.0, 1.4, 1.0, 1.6])
    at_odds = disagreeing(dims, latency)
    assert at_odds.tolist() == [False, False, False, False, True, True]
    assert repeated(dims[~at_odds], latency[~at_odds]) == {
        "exact duplicates": 1,
        "repeats that agree within 50%, merged by their median": 1,
    }


def test_a_duplicated_table_says_so(tmp_path: Path) -> None:
    path = _table(tmp_path / "t.csv")
    header, *rows = path.read_text().splitlines()
    operator, latency = rows[8].rsplit(",", 1)
    twice = f"{operator},{2 * float(latency)}"
    path.write_text("\n".join([header, *rows, *rows[:7], twice]) + "\n")
    imported = import_tables(path)
    assert imported.merged == {"exact duplicates": 7}
    assert imported.left_out == {"gemm: measured more than once, more than 50% apart": 2}
    assert len(imported.tables["gemm"]) == 39
