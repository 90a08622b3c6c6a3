"""Energy from power limits: labelled analytic, known for every device a cost model ships for, else not given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwsearch.costmodel.builtin_models import builtin_models, load_builtin
from hwsearch.costmodel.devices import completed, device_named
from hwsearch.costmodel.energy import energy_j


def test_every_shipped_model_has_a_power_limit_and_a_link() -> None:
    """Neither is fitted, so that models saved before they were known have them too."""
    for name in builtin_models():
        device = load_builtin(name).device
        assert device.power_w == device_named(name).power_w
        assert device.link_bandwidth == device_named(name).link_bandwidth


def test_energy_is_power_times_time_of_every_device() -> None:
    h100 = device_named("h100-sxm")
    assert energy_j(h100, latency_ms=2000.0) == pytest.approx(1400.0)
    assert energy_j(h100, latency_ms=2000.0, devices=4) == pytest.approx(5600.0)
    assert energy_j(replace(h100, power_w=None), latency_ms=1.0) is None


def test_what_a_device_file_states_is_kept() -> None:
    own = replace(device_named("h100-sxm"), power_w=350.0, link_bandwidth=None)
    assert completed(own).power_w == 350.0
    assert completed(own).link_bandwidth == 450e9
    stranger = replace(own, device_name="a stranger", power_w=None)
    assert completed(stranger) == stranger
