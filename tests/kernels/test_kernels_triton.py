"""This package's Triton kernels: on the GPU where there is one, in Triton's interpreter where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: its kernels are not tested")

ROOT = Path(__file__).parents[2]


def test_kernels_agree_with_their_references() -> None:
    # A process of its own: the interpreter is chosen when triton is first imported.
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton_checks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all agree" in done.stdout
