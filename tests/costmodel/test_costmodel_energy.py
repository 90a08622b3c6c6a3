"""Energy from power limits: labelled analytic, known for every device a cost model ships for, else not given."""

from __future__ import annotations

import pytest

from hwsearch.costmodel.builtin_models import builtin_models
from hwsearch.costmodel.devices import DEVICES
from hwsearch.costmodel.energy import POWER_LIMIT_W, energy_j


def test_every_shipped_model_has_a_power_limit() -> None:
    assert set(builtin_models()) <= set(POWER_LIMIT_W) <= set(DEVICES)


def test_energy_is_power_times_time() -> None:
    assert energy_j("h100-sxm", latency_ms=2000.0) == pytest.approx(1400.0)
    assert energy_j("a-device-of-the-user", latency_ms=1.0) is None
