"""hwsearch schema: the published JSON Schemas of the files that users write."""

from __future__ import annotations

import click

from hwsearch.cli.output import emit_json
from hwsearch.searchspace.architecture import architecture_schema
from hwsearch.searchspace.spacefile import space_schema

__all__ = ["command"]


@click.command("schema")
@click.argument("of", type=click.Choice(["architecture", "space"]), default="architecture")
def command(*, of: str) -> None:
    """Print the JSON Schema (2020-12) of architecture JSON or of search-space files, each version 1.

    Editors check a file against it: for YAML, put `# yaml-language-server: $schema=space.schema.json` on top.
    """
    emit_json(space_schema() if of == "space" else architecture_schema())
