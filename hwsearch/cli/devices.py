"""hwsearch devices: built-in devices and the cost models fitted for them."""

from __future__ import annotations

from dataclasses import asdict

import click

from hwsearch.cli.evaluate import errors_table
from hwsearch.cli.output import console, emit_json, json_option, size, table
from hwsearch.costmodel.builtin_models import builtin_models, load_builtin
from hwsearch.costmodel.devices import DEVICES
from hwsearch.costmodel.model import CostModel

__all__ = ["command"]


@click.command("devices")
@click.option(
    "--detail", is_flag=True, help="Also the errors of each cost model on rows it was not fitted on."
)
@json_option
def command(*, detail: bool, as_json: bool) -> None:
    """Devices known by their datasheets, and the fitted cost models that ship with the package."""
    models = {name: load_builtin(name) for name in builtin_models()}
    if as_json:
        emit_json(
            {
                "devices": [
                    {
                        "name": spec.name,
                        "device_name": spec.device_name,
                        "peak_flops": spec.peak_flops,
                        "bandwidth_bytes_per_s": spec.bandwidth,
                        "memory_bytes": spec.memory_bytes,
                        "num_sms": spec.num_sms,
                        "l2_bytes": spec.l2_bytes,
                        "power_w": spec.power_w,
                        "link_bandwidth_bytes_per_s": spec.link_bandwidth,
                        "dtype": spec.dtype,
                        "source": spec.source,
                        "cost_model": _model_json(models.get(spec.name)),
                    }
                    for spec in DEVICES.values()
                ]
            }
        )
        return
    shown = table(
        "Devices (ceilings from datasheets)",
        "name",
        "GPU",
        "cost model",
        "TFLOP/s",
        "GB/s",
        "memory",
        "SMs",
        left=3,
    )
    for spec in DEVICES.values():
        model = models.get(spec.name)
        shown.add_row(
            spec.name,
            spec.device_name,
            f"fitted, {model.runtime}, {model.dtype}" if model else "none ships: profile and fit",
            f"{spec.peak_flops / 1e12:.0f}",
            f"{spec.bandwidth / 1e9:.0f}",
            size(spec.memory_bytes),
            str(spec.num_sms),
        )
    console().print(shown)
    for name, model in models.items():
        console().print(f"{name} is fitted from {model.source}", markup=False, soft_wrap=True)
        if detail:
            title = (
                f"{name}, errors in percent: the recipe fitted on 80% of the rows, judged on the other 20%"
            )
            console().print(errors_table(title, model.held_out))


def _model_json(model: CostModel | None) -> dict[str, object] | None:
    if model is None:
        return None
    return {
        "runtime": model.runtime,
        "dtype": model.dtype,
        "source": model.source,
        "operators": sorted(model.families),
        "held_out": {kind: asdict(errors) for kind, errors in model.held_out.items()},
    }
