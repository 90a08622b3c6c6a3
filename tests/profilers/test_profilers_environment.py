"""What is recorded of a machine, and its measured ceilings."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from hwsearch.errors import DependencyError, InputError
from hwsearch.profilers.environment import (
    available_bytes,
    cache_bytes,
    default_dtype,
    environment,
    memory_bytes,
    others_seconds,
    torch_device,
)
from hwsearch.profilers.probe import probe_device

_CPU = torch.device("cpu")
_BUSY = "import time\nwhile time.process_time() < {seconds}: pass"


def test_environment_names_the_software_and_is_stable() -> None:
    here = environment(_CPU)
    version = torch.__version__.partition("+")[0]
    assert here.runtime == f"torch {version}, {torch.get_num_threads()} threads"
    assert here.device_name
    assert set(here.versions) == {"python", "torch", "hwsearch"}
    assert here == environment(_CPU)


def test_memory_and_caches_are_plausible() -> None:
    assert 1 << 28 < available_bytes(_CPU) <= memory_bytes(_CPU)
    cache = cache_bytes(_CPU)
    assert cache is None or 1 << 14 < cache < 1 << 33


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
def test_time_of_other_processes_is_counted() -> None:
    before = others_seconds()
    subprocess.run([sys.executable, "-c", _BUSY.format(seconds=0.5)], check=True)
    between = others_seconds()
    assert before is not None
    assert between is not None
    assert between - before > 0.4


def test_devices_by_name() -> None:
    assert torch_device("cpu") == _CPU
    assert default_dtype("cpu") == "float32"
    assert default_dtype("cuda") == "bfloat16"
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        torch_device("tpu")
    with pytest.raises(InputError, match=r"device cuda:99: torch .* sees"):
        torch_device("cuda:99")


def test_probe_measures_ceilings() -> None:
    spec = probe_device(_CPU, dtype="float32", name="here")
    assert (spec.name, spec.dtype, spec.num_sms) == ("here", "float32", torch.get_num_threads())
    assert spec.source.startswith("measured by hwsearch")
    assert spec.kind == "cpu"
    assert spec.device_name == environment(_CPU).device_name
    # The slowest and fastest machines this could run on.
    assert 1e9 < spec.peak_flops < 1e14
    assert 1e8 < spec.bandwidth < 1e13


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without_torch(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    with pytest.raises(DependencyError, match=r"profiling needs torch.*hwsearch\[torch\]"):
        torch_device("cpu")
