"""fit --from and device files, as a user with an unknown GPU and two dozen measurements calls them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from hwsearch.costmodel.builtin_models import load_builtin
from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented

DECODE = ("--arch", "Qwen2.5-0.5B", "--workload", "decode:batch=1,context=1k")


@pytest.fixture
def ceilings(tmp_path: Path) -> Path:
    """Half an H100."""
    path = tmp_path / "gpu.toml"
    path.write_text(
        'name = "my-gpu"\npeak_bf16_tflops = 494\nbandwidth_gbs = 1675\nmemory_gib = 40\nnum_sms = 132\nl2_mib = 50\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Products on a GPU that nobody knows: half as fast as an H100."""
    source = load_builtin("h100-sxm")
    rng = np.random.default_rng(0)
    dims = np.exp2(rng.integers(12, 26, (24, 3)) / 2).astype(np.int64)
    latency = 2 * source.predict_table("gemm", dims).median_ms
    path = tmp_path / "gemm.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["framework", "version", "device", "op_name", "kernel_source", "m", "n", "k", "latency"]
        )
        for (m, n, k), ms in zip(dims.tolist(), latency.tolist(), strict=True):
            writer.writerow(["vLLM", "9.9", "NVIDIA Unheard-of", "gemm", "x", m, n, k, ms])
    return path


def test_fit_from_another_device(hwsearch: Call, few: Path, ceilings: Path, tmp_path: Path) -> None:
    assert "--device-file" in hwsearch("fit", few, "--from", "h100-sxm", "-o", tmp_path / "m").complaint
    made = ("fit", few, "--from", "h100-sxm", "--device-file", ceilings, "-o", tmp_path / "m")
    found = hwsearch(*made, "--json").json
    _assert_documented(found, "fit --from")
    for took in found["transfer"].values():
        _assert_documented(took, "fit --from: each of transfer")
    assert found["transfer"]["gemm"]["rows"] == 24
    assert found["transfer"]["gemm"]["source_weight"] > 0
    assert found["transfer"]["moe"] == {"rows": 0, "source_weight": 1.0, "mape": None, "mape_alone": None}
    assert (found["device"], found["runtime"]) == ("my-gpu", "vLLM 9.9")

    predicted = hwsearch("predict", *DECODE, "--device", tmp_path / "m", "--json").json
    assert set(predicted["latency_ms_by_provenance"]) >= {"transferred", "transferred, unmeasured"}
    assert any("transferred from h100-sxm" in note for note in predicted["notes"])
    assert "fitted on all 24" in hwsearch("evaluate", tmp_path / "m", few, "--as-is").complaint


def test_carry_over_with_nothing_measured(hwsearch: Call, ceilings: Path, tmp_path: Path) -> None:
    assert "nothing to fit to" in hwsearch("fit", "--from", "h100-sxm", "-o", tmp_path / "m").complaint
    shown = hwsearch("fit", "--from", "h100-sxm", "--device-file", ceilings, "-o", tmp_path / "m").out
    assert "unmeasured" in shown
    predicted = hwsearch("predict", *DECODE, "--device", tmp_path / "m", "--json").json
    assert set(predicted["latency_ms_by_provenance"]) == {"transferred, unmeasured", "roofline"}
    assert "assumed" in predicted["runtime"]


def test_a_device_file_alone_is_a_roofline(hwsearch: Call, ceilings: Path, tmp_path: Path) -> None:
    predicted = hwsearch("predict", *DECODE, "--device", ceilings, "--json").json
    assert set(predicted["latency_ms_by_provenance"]) == {"roofline"}
    assert "roofline only" in predicted["runtime"]
    searched = hwsearch(
        "search", "--base", "Qwen3-1.7B", "--device", ceilings, "--quality", "qwen3-1.7b-sweep",
        "--workload", "decode:batch=1,context=4k", "-o", tmp_path / "run", "--generations", 3, "--json",
    ).json  # fmt: skip
    assert "roofline only" in searched["runtime"]
    ceilings.write_text("name = 3", encoding="utf-8")
    assert "lacks peak_bf16_tflops" in hwsearch("predict", *DECODE, "--device", ceilings).complaint
