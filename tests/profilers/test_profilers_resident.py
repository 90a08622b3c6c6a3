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

# Blocks that are together more than glibc keeps of its own accord after one of them was freed.
_FAULTS = """
import resource
import torch
from hwsearch.profilers.resident import keep_freed_memory

keep_freed_memory()
with torch.inference_mode():
    torch.zeros(1 << 20)
    for call in range(60):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        together = [torch.zeros(1 << 20) for _ in range(4)]
        del together
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_call_that_frees_much_finds_its_pages_again() -> None:
    done = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, check=True, text=True)
    pages = 16 * _MEBIBYTE // (1 << 12)
    assert int(done.stdout) < pages // 10


def test_memory_used_again_counts_towards_the_peak() -> None:
    keep_freed_memory()
    torch.zeros(6 << 20)
    with peak_resident() as grown:
        torch.zeros(6 << 20)
    assert grown
    assert 22 * _MEBIBYTE <= grown[0] <= 30 * _MEBIBYTE
