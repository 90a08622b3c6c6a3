"""Reading AIConfigurator tables: the mapping, the traps, and whatever can be wrong with a file."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hwsearch.costmodel.devices import device_named, device_reported_as
from hwsearch.costmodel.importers import import_aiconfigurator
from hwsearch.errors import DataError, InputError
from hwsearch.operators import operator

Row = dict[str, object]


def _gemm(**changes: object) -> Row:
    row: Row = {
        "framework": "VLLM",
        "version": "0.24.0",
        "device": "NVIDIA H100 80GB HBM3",
        "op_name": "gemm",
        "kernel_source": "linear",
        "gemm_dtype": "bfloat16",
        "m": 8,
        "n": 64,
        "k": 32,
        "latency": 0.01,
    }
    return row | changes


def _attention(op: str, **changes: object) -> Row:
    row: Row = {
        "framework": "VLLM",
        "version": "0.24.0",
        "device": "NVIDIA H100 80GB HBM3",
        "op_name": op,
        "kernel_source": "fa3",
        "batch_size": 2,
        "isl": 128 if op.startswith("context") else 1,
        "step": 0 if op.startswith("context") else 127,
        "num_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "window_size": 0,
        "attn_dtype": "bfloat16",
        "latency": 0.02,
    }
    return row | changes


def _gdn(kernel: str, phase: str, **changes: object) -> Row:
    row: Row = {
        "framework": "vLLM",
        "version": "0.24.0",
        "device": "NVIDIA H100 80GB HBM3",
        "op_name": "gdn",
        "kernel_source": kernel,
        "phase": phase,
        "batch_size": 2,
        "seq_len": 256 if phase == "context" else 1,
        "d_conv": 4,
        "num_k_heads": 4,
        "head_k_dim": 128,
        "num_v_heads": 8,
        "head_v_dim": 128,
        "model_name": "a",
        "d_model": 1024,
        "latency": 0.03,
    }
    return row | changes


def _write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_maps_every_table_to_operators(tmp_path: Path) -> None:
    _write(tmp_path / "gemm.csv", [_gemm()])
    _write(tmp_path / "ctx.csv", [_attention("context_attention")])
    _write(tmp_path / "gen.csv", [_attention("generation_attention")])
    _write(
        tmp_path / "gdn.csv",
        [
            _gdn("causal_conv1d_fn", "context"),
            _gdn("causal_conv1d_update", "generation"),
            _gdn("chunk_gated_delta_rule_flashinfer", "context"),
            _gdn("fused_recurrent_gated_delta_rule", "generation"),
        ],
    )
    imported = import_aiconfigurator(tmp_path)
    heads = {"num_k_heads": 4, "num_v_heads": 8, "head_k_dim": 128, "head_v_dim": 128}
    attention = {"batch": 2, "num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "window": 0}
    assert {m.operator for m in imported.measurements()} == {
        operator("gemm", m=8, n=64, k=32),
        operator("context_attention", seq_len=128, past_len=0, **attention),
        operator("generation_attention", kv_len=128, **attention),
        operator("short_conv_prefill", batch=2, seq_len=256, channels=2048, width=4),
        operator("short_conv_decode", batch=2, channels=2048, width=4),
        operator("delta_rule_prefill", batch=2, seq_len=256, **heads),
        operator("delta_rule_decode", batch=2, **heads),
    }
    assert imported.runtime == "vLLM 0.24.0"
    assert imported.left_out == {}


def test_replicates_become_samples_of_one_measurement(tmp_path: Path) -> None:
    rows = [
        _gdn("causal_conv1d_fn", "context", model_name=n, latency=v) for n, v in (("a", 0.010), ("b", 0.014))
    ]
    imported = import_aiconfigurator(_write(tmp_path / "gdn.csv", rows))
    (measurement,) = imported.measurements()
    assert sorted(measurement.samples_ms) == [0.010, 0.014]
    assert imported.tables["short_conv_prefill"].latency_ms.tolist() == [0.012]
    assert imported.merged == {"repeats that agree within 50%, merged by their median": 1}


def test_a_window_as_long_as_the_sequence_is_no_window(tmp_path: Path) -> None:
    rows = [_attention("context_attention", window_size=w) for w in (0, 128, 4096, 100)]
    table = import_aiconfigurator(_write(tmp_path / "t.csv", rows)).tables["context_attention"]
    assert table.dims[:, -1].tolist() == [0, 100]


def test_moe_width_is_divided_by_tensor_parallelism(tmp_path: Path) -> None:
    row = {k: v for k, v in _gemm(op_name="moe", moe_dtype="bfloat16").items() if k not in "mnk"}
    del row["gemm_dtype"]
    row |= {
        "num_tokens": 4,
        "hidden_size": 64,
        "inter_size": 96,
        "topk": 2,
        "num_experts": 8,
        "moe_tp_size": 4,
    }
    table = import_aiconfigurator(_write(tmp_path / "t.csv", [row])).tables["moe"]
    assert table.dims.tolist() == [[4, 64, 24, 2, 8]]


def test_rows_left_out_are_counted_with_their_reason(tmp_path: Path) -> None:
    rows = [
        *(_attention("context_attention", batch_size=b) for b in range(1, 21)),
        _attention("context_attention", head_dim=512),
        _attention("context_attention", latency="nan"),
        _attention("context_attention", latency=""),
        _attention("context_attention", latency=-1),
        _attention("context_attention", isl=0),
        _attention("context_attention", num_heads="many"),
        _attention("context_attention", attn_dtype="fp8"),
    ]
    imported = import_aiconfigurator(_write(tmp_path / "t.csv", rows))
    assert imported.left_out == {
        "t.csv: head_dim 512 runs another kernel": 1,
        "t.csv: latency is missing or not a number": 2,
        "t.csv: latency is not positive": 1,
        "t.csv: isl is not a whole number of at least 1": 1,
        "t.csv: num_heads is not a whole number of at least 1": 1,
        "t.csv: attn_dtype is not bfloat16": 1,
    }
    assert len(imported.tables["context_attention"]) == 20


def test_the_runtime_with_fewer_rows_is_left_out_aloud(tmp_path: Path) -> None:
    _write(tmp_path / "a.csv", [_gemm(m=1), _gemm(m=2)])
    _write(tmp_path / "b.csv", [_gemm(m=3, framework="SGLang", version="0.5.14")])
    imported = import_aiconfigurator(tmp_path)
    assert imported.left_out == {"measured with SGLang 0.5.14, the rows used with VLLM 0.24.0": 1}
    assert imported.tables["gemm"].dims[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([_gemm(), _gemm(device="NVIDIA H200")], "mixes the devices"),
        ([_gemm(), _gemm(version="0.19.0")], "mixes the versions"),
        ([_gemm(surprise=1)], "unknown column"),
        ([{k: v for k, v in _gemm().items() if k != "n"}], r"lacks the column\(s\) n"),
        ([{k: v for k, v in _gemm().items() if k != "latency"}], r"lacks the column\(s\) latency of a gemm"),
        ([{"a": 1, "b": 2}], "no column op_name: not an AIConfigurator table"),
        ([_gemm(op_name="allreduce")], "not modelled"),
        ([_gemm(latency="nan")], "1 of 1 rows are bad"),
        ([_gemm(gemm_dtype="fp8")], "no usable row"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, rows: list[Row], said: str) -> None:
    with pytest.raises(DataError, match=said):
        import_aiconfigurator(_write(tmp_path / "t.csv", rows))


def test_devices_are_not_mixed_across_files(tmp_path: Path) -> None:
    _write(tmp_path / "a.csv", [_gemm()])
    _write(tmp_path / "b.csv", [_gemm(device="NVIDIA H200")])
    with pytest.raises(DataError, match="mixes tables of NVIDIA H100 80GB HBM3, NVIDIA H200"):
        import_aiconfigurator(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"m,n,k\n1,2\n", "2 cells"),
        ("t.csv", b"\xff\xfe\x00", "not a csv table"),
        ("t.parquet", b"PAR1 cut off", "damaged or not parquet"),
        ("t.json", b"{}", "neither .parquet nor .csv"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        import_aiconfigurator(tmp_path / name)


def test_empty_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.parquet or \.csv"):
        import_aiconfigurator(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        import_aiconfigurator(tmp_path / "absent.parquet")


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    for name in ("t.csv", "t.parquet"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(DataError, match="git lfs pull"):
            import_aiconfigurator(tmp_path / name)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",".join(_gemm()) + "\n")
    with pytest.raises(DataError, match="has no rows"):
        import_aiconfigurator(tmp_path / "t.csv")


def test_directories_are_read_as_aiconfigurator_lays_them_out(tmp_path: Path) -> None:
    """operator/backend/version/*.parquet and, earlier, backend/version/*_perf.txt."""
    old = tmp_path / "trtllm" / "1.0.0"
    new = tmp_path / "gemm" / "vllm" / "0.24.0"
    old.mkdir(parents=True)
    new.mkdir(parents=True)
    attention = _attention("context_attention", framework="TRTLLM", version="1.0.0", attn_dtype="float16")
    del attention["window_size"], attention["kernel_source"]
    _write(old / "context_attention_perf.txt", [attention, attention | {"attn_dtype": "fp8"}])
    _write(old / "nccl_perf.txt", [_gemm(op_name="all_gather", framework="TRTLLM", version="1.0.0")])
    (old / "SHARED_LAYER_REUSE.txt").write_text("not a table")
    _write(old / "wideep_perf.txt", [{"op": "dispatch", "transmit_us": 3.0}])
    _write(new / "gemm_perf.csv", [_gemm(m=m) for m in range(1, 5)])

    imported = import_aiconfigurator(tmp_path)
    assert (imported.runtime, set(imported.tables)) == ("VLLM 0.24.0", {"gemm"})
    assert imported.left_out == {
        "nccl_perf.txt: op_name 'all_gather' is not modelled": 1,
        "wideep_perf.txt: no column op_name": 1,
        "measured with TRTLLM 1.0.0, the rows used with VLLM 0.24.0": 2,
    }
    for asked in ("TRTLLM", "trtllm 1.0.0"):
        other = import_aiconfigurator(tmp_path, runtime=asked)
        assert (other.runtime, other.dtype) == ("TRTLLM 1.0.0", "float16")
        assert other.tables["context_attention"].dims[:, -1].tolist() == [0]
        assert other.left_out["context_attention_perf.txt: attn_dtype is not float16"] == 1
    with pytest.raises(InputError, match=r"it has TRTLLM 1\.0\.0, VLLM 0\.24\.0"):
        import_aiconfigurator(tmp_path, runtime="SGLang")


def test_idle_windows_that_run_another_kernel_are_left_out(tmp_path: Path) -> None:
    """Where a window that reaches past the sequence costs the same it is no window, else it is left out."""
    rows = [
        _attention("context_attention", batch_size=b, window_size=w, latency=0.02 * b)
        for b in range(1, 9)
        for w in (0, 4096)
    ]
    same = import_aiconfigurator(_write(tmp_path / "same.csv", rows))
    assert (len(same.tables["context_attention"]), same.left_out) == (8, {})
    other = [row | ({"latency": 0.1} if row["window_size"] else {}) for row in rows]
    apart = import_aiconfigurator(_write(tmp_path / "apart.csv", other))
    assert apart.left_out == {"apart.csv: a window past the sequence ran another kernel than no window": 8}
    assert apart.tables["context_attention"].latency_ms.tolist() == [
        pytest.approx(0.02 * b) for b in range(1, 9)
    ]


def test_every_gpu_of_aiconfigurator_has_ceilings() -> None:
    """Its system files, by the name of their data directory."""
    for name in (
        *(
            "a100-sxm",
            "b200-sxm",
            "b300-sxm",
            "b60",
            "gb10",
            "gb200",
            "gb300",
            "h100-sxm",
            "h20-sxm",
            "h20-3e",
        ),
        *("h200-sxm", "h800-sxm", "l40s", "rtx-5090", "rtx-pro-6000"),
    ):
        spec = device_named(name)
        assert device_reported_as(spec.device_name) == spec


@pytest.mark.shared
def test_reads_the_real_tables(shared_data: Path) -> None:
    imported = import_aiconfigurator(shared_data / "data" / "h100_sxm")
    assert imported.runtime == "vLLM 0.24.0"
    assert set(imported.tables) == {
        "gemm",
        "context_attention",
        "generation_attention",
        "delta_rule_prefill",
        "delta_rule_decode",
        "short_conv_prefill",
        "short_conv_decode",
        "moe",
    }
    assert sum(imported.left_out.values()) == 529 + 423 + 3533
    sampled = sum(len(m.samples_ms) for m in imported.measurements())
    assert sampled + sum(imported.left_out.values()) == imported.rows


@pytest.mark.shared
def test_what_is_wrong_with_the_real_tables_is_said(shared_data: Path) -> None:
    """A convolution of the A100's tables takes the same time for any number of channels, four times too little."""
    a100 = import_aiconfigurator(shared_data / "data" / "a100_sxm")
    assert a100.left_out == {"gdn.parquet: faster than 1.3 x the roofline of a100-sxm": 248}
    l40s = import_aiconfigurator(shared_data / "data" / "l40s")
    assert l40s.left_out == {
        f"{kind}_attention.parquet: a window past the sequence ran another kernel than no window": rows
        for kind, rows in (("context", 4930), ("generation", 7930))
    }
