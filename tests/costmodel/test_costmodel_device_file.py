"""A user's own device file: read, used as a roofline that says so, and refused with one message when wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwsearch.costmodel.device_file import read_device
from hwsearch.costmodel.devices import device_named
from hwsearch.costmodel.model import ROOFLINE
from hwsearch.errors import DataError
from hwsearch.operators import operator
from hwsearch.pipeline.models import cost_model_named

GOOD: dict[str, object] = {
    "name": "my-gpu",
    "peak_bf16_tflops": 989,
    "bandwidth_gbs": 3350,
    "memory_gib": 80,
    "num_sms": 132,
    "l2_mib": 50,
}


def _write(folder: Path, content: object) -> Path:
    path = folder / "gpu.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_json_and_toml_state_the_same(tmp_path: Path) -> None:
    toml = tmp_path / "gpu.toml"
    toml.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in GOOD.items()), encoding="utf-8")
    from_json = read_device(_write(tmp_path, GOOD))
    from_toml = read_device(toml)
    h100 = device_named("h100-sxm")
    for spec in (from_json, from_toml):
        for name in ("peak_flops", "bandwidth", "memory_bytes", "num_sms", "l2_bytes", "dtype"):
            assert getattr(spec, name) == getattr(h100, name)
        assert (spec.name, spec.device_name) == ("my-gpu", "my-gpu")


def test_a_device_file_is_a_roofline_that_says_so(tmp_path: Path) -> None:
    model = cost_model_named(str(_write(tmp_path, GOOD)))
    assert "roofline" in model.runtime
    answer = model.predict([operator("gemm", m=64, n=1024, k=1024)])
    assert answer.provenance.tolist() == [ROOFLINE]
    assert "roofline of my-gpu" in answer.notes[0]
    np.testing.assert_allclose(answer.high_ms / answer.median_ms, 2.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peak_bf16_tflops": 989e12}, "check the unit"),
        ({"bandwidth_gbs": 3.35e12}, "check the unit"),
        ({"memory_gib": 0}, "check the unit"),
        ({"num_sms": 131.5}, "whole number"),
        ({"l2_mib": "50"}, "must be a number, got '50'"),
        ({"l2_mib": True}, "must be a number"),
        ({"name": ""}, "name must be text"),
        ({"bandwith_gbs": 3350}, "has unknown bandwith_gbs"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_device(_write(tmp_path, GOOD | change))


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null"])
def test_what_is_no_device_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="a device file states name"):
        read_device(path)


def test_missing_figures_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks num_sms, l2_mib"):
        read_device(_write(tmp_path, {k: v for k, v in GOOD.items() if k not in {"num_sms", "l2_mib"}}))
