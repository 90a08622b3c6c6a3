"""hwsearch predict: host profiles, the largest batch, comparisons, sweeps and their plots."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from tests.cli.test_cli_figures import _assert_documented

ON = ("predict", "--device", "h100-sxm", "--arch", "Qwen3-1.7B")
DECODE = ("--workload", "decode:batch=8,context=64k")


def test_both_hosts_print_the_documented_keys_and_their_name(hwsearch: Call) -> None:
    found = {host: hwsearch(*ON, *DECODE, "--host", host, "--json").json for host in ("engine", "hf-eager")}
    for host, content in found.items():
        _assert_documented(content, "predict")
        assert content["host"] == host
        for share in content["attribution"].values():
            _assert_documented(share, "predict: each of attribution")
        for layer in content["layers"]:
            _assert_documented(layer, "predict: each of layers")
        assert sum(s["latency_share"] for s in content["attribution"].values()) == pytest.approx(1)
        assert host in hwsearch(*ON, *DECODE, "--host", host).out
    assert found["hf-eager"]["latency_ms"] > 4 * found["engine"]["latency_ms"]
    assert found["hf-eager"]["attribution"]["cache_copy"]["bound"] == "memory"
    assert found["engine"]["host_ms"] == 0
    # 700 W for as many milliseconds
    assert found["engine"]["energy_j_analytic"] == pytest.approx(0.7 * found["engine"]["latency_ms"])


@pytest.mark.parametrize(
    "workload", ["decode:batch=max,context=64k", "prefill:batch=max,context=64k,chunk=2k"]
)
def test_the_largest_batch_is_filled_in_and_fits(hwsearch: Call, workload: str) -> None:
    found = hwsearch(*ON, "--workload", workload, "--json").json
    assert f"batch={found['max_batch']}," in found["workload"]
    assert found["memory_bytes"] <= 0.9 * 80 * 2**30


def test_a_comparison_holds_each_prediction_and_its_ratio_to_the_first(hwsearch: Call) -> None:
    arguments = (*ON, "--compare", "jet-nemotron-2b", "--workload", "decode:batch=max,context=64k")
    found = hwsearch(*arguments, "--json").json
    _assert_documented(found, "predict --compare")
    first, second = found["predictions"]
    _assert_documented(second, "predict")
    (ratio,) = found["ratios"]
    _assert_documented(ratio, "predict --compare: each of ratios")
    assert ratio["throughput_ratio"] == pytest.approx(
        second["throughput_tokens_per_s"] / first["throughput_tokens_per_s"]
    )
    assert ratio["throughput_ratio"] > 10
    assert "jet-nemotron-2b" in hwsearch(*arguments).out


def test_a_sweep_doubles_and_says_what_does_not_fit(hwsearch: Call) -> None:
    found = hwsearch(*ON, *DECODE, "--sweep", "context=4k..256k", "--json").json
    _assert_documented(found, "predict --sweep")
    assert found["values"] == [4096 * 2**i for i in range(7)]
    (series,) = found["series"]
    assert set(series) == {"architecture", "points"}
    for point in series["points"]:
        _assert_documented(point, "predict --sweep: each of points")
        assert point["fits"] == (point["max_batch"] >= 8)
    assert [point["fits"] for point in series["points"]] == [True] * 5 + [False] * 2
    latencies = [point["latency_ms"] for point in series["points"]]
    assert latencies == sorted(latencies)
    alone = hwsearch(*ON, "--workload", "decode:batch=8,context=4k", "--json").json
    assert latencies[0] == alone["latency_ms"]


def test_a_sweep_at_the_largest_batch_fills_every_point(hwsearch: Call) -> None:
    workload = ("--workload", "decode:batch=max,context=1k")
    found = hwsearch(*ON, *workload, "--sweep", "context=16k..64k", "--json").json
    for point in found["series"][0]["points"]:
        assert f"batch={point['max_batch']}," in point["workload"]
        assert point["fits"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--host", "vllm"), "unknown host profile 'vllm'"),
        (("--sweep", "context=4k"), "write for example context=4k..256k"),
        (("--sweep", "heads=1..2"), "write for example context=4k..256k"),
        (("--sweep", "batch=8..2"), "the low value must be at least 1"),
        (("--sweep", "batch=0..2"), "the low value must be at least 1"),
        (("--sweep", "batch=1..2", "--workload", "decode:batch=max,context=1k"), "contradict each other"),
        (
            ("--sweep", "context=1k..1m", "--workload", "prefill:batch=1,context=1k,chunk=64"),
            "more than 1024 passes",
        ),
        (("--plot", "x.png"), "--plot draws a sweep"),
        (("--compare", "Qwen3-1.8B"), "did you mean"),
        (("--workload", "decode:batch=max,context=1m"), "does not fit on h100-sxm"),
    ],
)
def test_wrong_options_say_what_to_write(hwsearch: Call, arguments: tuple[str, ...], told: str) -> None:
    assert told in hwsearch(*ON, *DECODE, *arguments).complaint


def test_only_predict_takes_the_largest_batch(hwsearch: Call, tmp_path: Path) -> None:
    outcome = hwsearch(
        "search", "--base", "Qwen3-1.7B", "--device", "h100-sxm", "--quality", "qwen3-1.7b-sweep",
        "--workload", "decode:batch=max,context=4k", "-o", tmp_path / "run",
    )  # fmt: skip
    assert "only hwsearch predict takes it" in outcome.complaint


def test_a_plot_without_matplotlib_names_the_extra(
    hwsearch: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = hwsearch(*ON, *DECODE, "--sweep", "batch=1..2", "--plot", tmp_path / "x.png")
    assert "hwsearch[report]" in outcome.complaint


def test_a_plot_is_written_or_refused_in_one_line(hwsearch: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the report extra is not installed")
    sweep = (*ON, *DECODE, "--compare", "jet-nemotron-2b", "--sweep", "context=4k..128k", "--plot")
    assert hwsearch(*sweep, tmp_path / "x.png").status == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "end the file in .png" in hwsearch(*sweep, tmp_path / "x.txt1").complaint
    assert "cannot write" in hwsearch(*sweep, tmp_path / "no" / "x.png").complaint


def test_several_devices_and_quantised_weights_are_named_and_labelled(hwsearch: Call) -> None:
    arguments = (*ON, *DECODE, "--tp", 4, "--weights", "int8")
    found = hwsearch(*arguments, "--json").json
    _assert_documented(found, "predict")
    assert (found["tp"], found["weights"]) == (4, "int8")
    assert found["latency_ms_by_provenance"]["analytic"] > found["latency_ms_by_operator"]["all_reduce"] > 0
    assert set(found["weight_bytes_by_dtype"]) == {"int8", "bfloat16"}
    assert sum(found["weight_bytes_by_dtype"].values()) == found["memory"]["weight_bytes"]
    assert sum(found["memory"].values()) == found["memory_bytes"]
    assert found["energy_j_analytic"] == pytest.approx(4 * 0.7 * found["latency_ms"])
    out = hwsearch(*arguments).out
    for said in ("on 4 h100-sxm", "int8 weights", "analytic", "all_reduce", "on each device"):
        assert said in out
    swept = hwsearch(*arguments, "--sweep", "batch=1..4", "--json").json
    _assert_documented(swept, "predict --sweep")
    assert swept["tp"] == 4
    compared = hwsearch(*arguments, "--compare", "Llama-3.1-8B", "--json").json
    _assert_documented(compared, "predict --compare")


def test_a_prefill_gives_the_time_to_first_token(hwsearch: Call) -> None:
    found = hwsearch(*ON, "--workload", "prefill:batch=1,context=8k,chunk=2k", "--json").json
    assert found["time_to_first_token_ms"] == found["latency_ms"]
    assert hwsearch(*ON, *DECODE, "--json").json["time_to_first_token_ms"] is None
    assert "time to first token" in hwsearch(*ON, "--workload", "prefill:batch=1,context=8k").out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--tp", 3), "use 2 or 4 or 8 or 16 devices"),
        (("--tp", 32), "does not divide over 32 devices: num_heads 16"),
    ],
)
def test_devices_that_do_not_divide_are_refused(
    hwsearch: Call, arguments: tuple[object, ...], told: str
) -> None:
    assert told in hwsearch(*ON, *DECODE, *arguments).complaint
