"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports numpy or torch: workers that each take every core wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real measurements; tests that use it are skipped, with the reason, where it is absent."""
    root = Path(os.environ.get("HWSEARCH_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(
            f"real measurements not found at {root}: set HWSEARCH_SHARED to the folder that holds data/"
        )
    return root
