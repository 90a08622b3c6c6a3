"""Reading Vidur's profiles: which kernel becomes which operator, shards, and what is wrong with a file."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.importers import import_tables, import_vidur
from hwsearch.errors import DataError
from hwsearch.operators import operator

Row = dict[str, object]

_MLP = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
_SMALL = ("input_layernorm", "post_attention_layernorm", "attn_rope", "mlp_act", "add", "emb")


def _mlp(**changes: object) -> Row:
    row: Row = {f"time_stats.{name}.median": 0.5 for name in _MLP}
    row |= {f"time_stats.{name}.median": 0.05 for name in _SMALL}
    row |= {"n_head": 32, "n_kv_head": 8, "n_embd": 4096, "n_expanded_embd": 14336, "vocab_size": 128256}
    return row | {
        "use_gated_mlp": True,
        "num_tokens": 1024,
        "num_tensor_parallel_workers": 2,
        **changes,
    }


def _attention(*, prefill: bool, **changes: object) -> Row:
    row: Row = {
        "time_stats.attn_prefill.median": 0.4 if prefill else "",
        "time_stats.attn_decode.median": "" if prefill else 0.05,
        "n_embd": 4096,
        "n_q_head": 32,
        "n_kv_head": 8,
        "block_size": 16,
        "num_tensor_parallel_workers": 2,
        "batch_size": 1 if prefill else 16,
        "prefill_chunk_size": 512 if prefill else 0,
        "kv_cache_size": 1024,
        "is_prefill": prefill,
        "attention_backend": "AttentionBackend.FLASHINFER",
    }
    return row | changes


def _write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "compute" / "a100" / "meta-llama" / "Meta-Llama-3-8B"
    _write(home / "mlp.csv", [_mlp()])
    _write(home / "attention.csv", [_attention(prefill=True), _attention(prefill=False)])
    return tmp_path / "compute"


def test_kernels_become_operators_of_one_worker(folder: Path) -> None:
    imported = import_tables(folder)
    heads = {"num_heads": 16, "num_kv_heads": 4, "head_dim": 128, "window": 0}
    assert {m.operator for m in imported.measurements()} == {
        operator("gemm", m=1024, n=(32 + 16) * 128 // 2, k=4096),
        operator("gemm", m=1024, n=4096, k=2048),
        operator("gemm", m=1024, n=14336, k=4096),
        operator("gemm", m=1024, n=4096, k=7168),
        operator("elementwise", rows=1024, width=4096, reads=1, writes=1),
        operator("elementwise", rows=1024, width=20 * 128, reads=1, writes=1),
        operator("elementwise", rows=1024, width=7168, reads=2, writes=1),
        operator("elementwise", rows=1024, width=4096, reads=2, writes=1),
        operator("context_attention", batch=1, seq_len=512, past_len=1024, **heads),
        operator("generation_attention", batch=16, kv_len=1025, **heads),
    }
    assert imported.device_name == device_named("a100-sxm").device_name
    assert (imported.dtype, imported.left_out) == ("float16", {})
    assert "Vidur" in imported.runtime
    assert "vidur" in imported.source


def test_shares_that_do_not_divide_and_bad_times_are_counted(tmp_path: Path) -> None:
    rows = [_mlp(num_tokens=n) for n in range(1, 17)]
    rows += [_mlp(n_kv_head=1), _mlp(**{"time_stats.attn_pre_proj.median": 0.0})]
    imported = import_vidur(_write(tmp_path / "h100" / "mlp.csv", rows))
    assert imported.left_out["mlp.csv attn_pre_proj: n_kv_head is not divisible by the workers"] == 1
    assert imported.left_out["mlp.csv attn_pre_proj: latency is not positive"] == 1


def test_a_model_without_a_second_norm_has_no_rows_of_it(tmp_path: Path) -> None:
    name = "time_stats.post_attention_layernorm.median"
    for row in (_mlp(**{name: ""}), {k: v for k, v in _mlp().items() if k != name}):
        imported = import_vidur(_write(tmp_path / "a40" / "mlp.csv", [row]))
        assert "post_attention_layernorm" not in {m.kernel for m in imported.measurements()}


def test_the_gpu_is_named_by_the_path_or_by_the_caller(tmp_path: Path, folder: Path) -> None:
    path = _write(tmp_path / "mlp.csv", [_mlp()])
    with pytest.raises(DataError, match="say which it is with --device"):
        import_vidur(path)
    assert import_vidur(path, device=device_named("h200-sxm")).device_name == "NVIDIA H200"
    _write(folder / "h100" / "x" / "mlp.csv", [_mlp()])
    with pytest.raises(DataError, match="mixes profiles of a100-sxm, h100-sxm"):
        import_vidur(folder)


def test_foreign_and_incomplete_files_are_refused(tmp_path: Path) -> None:
    home = tmp_path / "a100"
    with pytest.raises(DataError, match="does not exist"):
        import_vidur(home / "mlp.csv")
    short = {k: v for k, v in _mlp().items() if k != "n_embd"}
    with pytest.raises(DataError, match=r"lacks the column\(s\) n_embd of an mlp profile"):
        import_vidur(_write(home / "mlp.csv", [short]))
    with pytest.raises(DataError, match="rows are bad"):
        import_vidur(_write(home / "mlp.csv", [_mlp(num_tokens=-4)]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no mlp\.csv"):
        import_vidur(tmp_path / "empty")
