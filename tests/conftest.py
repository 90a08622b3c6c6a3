"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

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
