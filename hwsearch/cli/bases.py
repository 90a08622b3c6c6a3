"""hwsearch bases: base models and reference architectures by their dimensions."""

from __future__ import annotations

import click

from hwsearch.cli.output import console, emit_json, json_option, size, table
from hwsearch.searchspace.architecture import Architecture
from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.references import REFERENCES

__all__ = ["command"]

_CONTEXT = 65536


@click.command("bases")
@json_option
def command(*, as_json: bool) -> None:
    """Base models that a search can start from, and published hybrids to compare with."""
    architectures = [Architecture.of_base(base) for base in BASES.values()] + list(REFERENCES.values())
    if as_json:
        emit_json({"bases": [_row(a) for a in architectures]})
        return
    shown = table(
        "Base models and reference architectures (bf16; cache of one sequence at 64K tokens)",
        "name",
        "mixers",
        "layers",
        "hidden",
        "parameters",
        "cache",
        left=2,
    )
    for a in architectures:
        shown.add_row(
            a.name,
            ", ".join(f"{count} {kind}" for kind, count in a.count().items()),
            str(a.base.num_layers),
            str(a.base.hidden_size),
            f"{a.parameters / 1e9:.3f} B",
            size(a.cache_bytes(_CONTEXT)),
        )
    console().print(shown)


def _row(a: Architecture) -> dict[str, object]:
    return {
        "name": a.name,
        "base": a.base.name,
        "family": a.base.family,
        "num_layers": a.base.num_layers,
        "hidden_size": a.base.hidden_size,
        "mixers": dict(a.count()),
        "parameters": a.parameters,
        "cache_bytes_per_sequence_64k": a.cache_bytes(_CONTEXT),
        "conv_state_bytes_per_sequence": a.conv_state_bytes(),
    }
