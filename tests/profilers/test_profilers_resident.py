"""Memory that is freed stays with a measuring process, and its peak is read as if it had been given back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hwsearch.profilers.resident import keep_freed_memory, peak_resident

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not Path("/proc/self/clear_refs").exists(), reason="asks Linux"
)

_MEBIBYTE = 1 << 20

# Blocks of sizes that glibc hands back at once (above 32 MiB), after every call of a model that frees smaller ones.
_FAULTS = """
import resource
import torch
from hwsearch.profilers.resident import keep_freed_memory

KEEP and keep_freed_memory()
with torch.inference_mode():
    for call in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(12 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults_of_a_late_call(keep: bool) -> int:
    program = _FAULTS.replace("KEEP", str(keep))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    return int(done.stdout)


def test_a_call_that_frees_much_finds_its_pages_again() -> None:
    pages = 48 * _MEBIBYTE // (1 << 16)  # at most: pages may be larger than 4 KiB
    assert _faults_of_a_late_call(keep=False) >= pages
    assert _faults_of_a_late_call(keep=True) < pages // 10


def test_memory_used_again_counts_towards_the_peak() -> None:
    keep_freed_memory()
    torch.zeros(16 << 20)
    with peak_resident() as grown:
        torch.zeros(16 << 20)
    assert grown
    assert 60 * _MEBIBYTE <= grown[0] <= 80 * _MEBIBYTE
