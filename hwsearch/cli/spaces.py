"""hwsearch spaces: the search spaces that ship with the package, or one of them as a file to start from."""

from __future__ import annotations

import click

from hwsearch.cli.output import console, emit_json, json_option, table
from hwsearch.errors import unknown_name
from hwsearch.searchspace.bases import base_named
from hwsearch.searchspace.presets import PRESETS, space_named

__all__ = ["command"]


@click.command("spaces")
@click.argument("name", required=False)
@click.option("--base", default="Qwen2.5-1.5B", show_default=True, help="The base whose layers are counted.")
@json_option
def command(*, name: str | None, base: str, as_json: bool) -> None:
    """List the search spaces and how many architectures each holds.

    With NAME, print that space as JSON: saved as a .json or .yaml file and changed, `search --space FILE` takes it.
    """
    chosen = base_named(base)
    if name is not None:
        if name not in PRESETS:
            raise unknown_name("search space", name, PRESETS)
        emit_json(PRESETS[name].spec(chosen).to_content())
        return
    spaces = {known: space_named(known, chosen) for known in PRESETS}
    if as_json:
        emit_json(
            {
                "base": chosen.name,
                "spaces": [
                    {
                        "name": known,
                        "summary": PRESETS[known].summary,
                        "choices": len(space.choices),
                        "size": str(space.size),
                    }
                    for known, space in spaces.items()
                ],
            }
        )
        return
    title = f"Search spaces over {chosen.name}, {chosen.num_layers} layers"
    shown = table(title, "name", "what", "choices", "size", left=2)
    for known, space in spaces.items():
        shown.add_row(known, PRESETS[known].summary, str(len(space.choices)), f"{space.size:.3g}")
    console().print(shown)
