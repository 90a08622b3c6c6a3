"""What autotuners chose is found, whoever's they are."""

from __future__ import annotations

import sys
import types

import pytest

from hwsearch.profilers.tuning import tuned, tuned_since

pytest.importorskip("triton", reason="triton is not installed: there is nothing to tune")


def test_the_choice_of_an_autotuner_of_ones_own_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-linear-attention tunes through a class derived from Triton's, and names kernels alike in many modules."""
    from triton.runtime.autotuner import Autotuner, Config

    class Own(Autotuner):  # type: ignore[misc]
        pass

    kernels = {}
    for name in ("one", "other"):

        def kernel_of_both() -> None: ...

        kernel_of_both.__module__ = name
        kernels[name] = Own(kernel_of_both, [], [], [], None, None)
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    before = tuned()
    assert (before["one.kernel_of_both"], before["other.kernel_of_both"]) == (0, 0)
    kernels["one"].cache["a shape"] = Config({"BLOCK": 64}, num_warps=2)
    assert list(tuned_since(before)) == ["kernel_of_both"]
    assert "BLOCK: 64, num_warps: 2" in tuned_since(before)["kernel_of_both"]
    assert tuned_since(tuned()) == {}
