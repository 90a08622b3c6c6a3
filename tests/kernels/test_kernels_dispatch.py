"""Which backend runs, and that finding out costs a step nothing."""

from __future__ import annotations

import importlib.util

import pytest

from hwsearch import kernels


def test_what_is_installed_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packages were searched for in every layer of every decode step, for what is absent in every folder."""
    asked: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", asked.append)
    kernels._installed.cache_clear()
    both = {"fla": None, "triton": None, "torch": None}
    for _ in range(3):
        assert kernels.resolve("step", backend="auto", device_type="cuda", implementations=both) == "torch"
    assert asked == ["triton", "fla"]
    kernels._installed.cache_clear()
