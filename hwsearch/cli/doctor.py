"""hwsearch doctor: what this machine is, and what would make measurements on it untrustworthy."""

from __future__ import annotations

from typing import Any

import click

from hwsearch.cli.output import console, emit_json, json_option, size, table, working
from hwsearch.profilers.doctor import diagnose

__all__ = ["command"]


@click.command("doctor")
@click.option("--device", default="cpu", show_default=True, help="cpu, or a CUDA device such as cuda:0.")
@json_option
def command(*, device: str, as_json: bool) -> None:
    """Device, driver, clocks, versions, load, and what to mend before measuring.

    Exits with 1 where measuring is impossible.
    """
    with working("looking at the machine"):
        found = diagnose(device)
    impossible = any(finding.severity == "error" for finding in found.findings)
    if as_json:
        emit_json(
            {
                "device": found.device,
                "healthy": found.healthy,
                "findings": [{"severity": f.severity, "text": f.text} for f in found.findings],
                "facts": found.facts,
            }
        )
        click.get_current_context().exit(int(impossible))
    shown = table(device, "fact", "value", left=2)
    for name, value in found.facts.items():
        shown.add_row(name.replace("_", " "), _said(name, value))
    to = console()
    to.print(shown)
    for finding in found.findings:
        to.print(f"{finding.severity}: {finding.text}", markup=False, soft_wrap=True)
    if found.healthy:
        to.print("nothing found that would make measurements untrustworthy")
    click.get_current_context().exit(int(impossible))


def _said(name: str, value: Any) -> str:
    if value is None or value == "":
        return "not told by the system"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "no"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes"):
        return size(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
