"""Cost models by name, from measured rows, and carried over from another device's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hwsearch.costmodel.builtin_models import builtin_models, load_builtin
from hwsearch.costmodel.device_file import is_device_file, read_device
from hwsearch.costmodel.devices import DEVICES
from hwsearch.costmodel.evaluate import evaluate
from hwsearch.costmodel.model import CostModel
from hwsearch.costmodel.transfer import Gate, transfer_model
from hwsearch.errors import InputError, unknown_name
from hwsearch.pipeline.rows import Rows
from hwsearch.records import DeviceSpec

__all__ = ["carry_model", "cost_model_named", "fit_rows", "transfer_rows"]


def cost_model_named(name: str) -> CostModel:
    """A cost model that ships with the package, the one saved at a path, or the roofline of a device file.

    Raises InputError for an unknown name and DataError for a folder that holds no whole model.
    """
    if name in builtin_models():
        return load_builtin(name)
    if is_device_file(Path(name)):
        device = read_device(Path(name))
        return CostModel(
            device=device,
            runtime="roofline only, nothing measured",
            dtype=device.dtype,
            source=f"no measurement: the ceilings of {device.source}",
            seed=0,
            families={},
        )
    if Path(name).exists():
        return CostModel.load(Path(name))
    if name in DEVICES:
        raise InputError(
            f"no fitted cost model ships for {name}; these do: {', '.join(builtin_models())}. "
            "Measure the device (hwsearch profile), fit (hwsearch fit) and pass the folder that it writes"
        )
    raise unknown_name("cost model (and no such path)", name, builtin_models())


def fit_rows(rows: Rows, *, seed: int) -> CostModel:
    """A cost model of what was measured. Raises DataError where a kind has too few rows."""
    return CostModel.fit(
        rows.tables, device=rows.device, runtime=rows.runtime, dtype=rows.dtype, source=rows.source, seed=seed
    )


def transfer_rows(rows: Rows, *, source: CostModel, seed: int) -> tuple[CostModel, dict[str, Gate]]:
    """A cost model of few rows that starts from another device's or runtime's, with its cross-validated errors.

    Also what cross-validation said of each kind that both have. Raises DataError where a kind has too few rows.
    """
    if rows.dtype != source.dtype:
        raise InputError(f"the rows were measured in {rows.dtype}, the source model is for {source.dtype}")
    model, gates = transfer_model(
        source, rows.tables, device=rows.device, runtime=rows.runtime, measured=rows.source, seed=seed
    )
    strange = {kind: table for kind, table in rows.tables.items() if kind not in source.families}
    if strange:
        judged = evaluate(model, strange, as_is=False, seed=seed).operators
        model = replace(model, held_out={**model.held_out, **judged})
    return model, gates


def carry_model(source: CostModel, *, device: DeviceSpec) -> CostModel:
    """The source's cost model under the ceilings of a device that nothing was measured on."""
    return transfer_model(
        source, {}, device=device, runtime=f"{source.runtime} assumed", measured="nothing measured", seed=0
    )[0]
