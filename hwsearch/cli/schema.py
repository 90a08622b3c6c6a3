"""hwsearch schema: the published JSON Schema of architecture files."""

from __future__ import annotations

import click

from hwsearch.cli.output import emit_json
from hwsearch.searchspace.architecture import architecture_schema

__all__ = ["command"]


@click.command("schema")
def command() -> None:
    """Print the JSON Schema (2020-12) of architecture JSON, version 1."""
    emit_json(architecture_schema())
