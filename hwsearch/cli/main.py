"""The command group: loads a command's module only when it is called, and turns errors into one line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from hwsearch import __version__
from hwsearch.errors import HwsearchError, plainly

__all__ = ["cli", "run"]

_COMMANDS = {
    "bases": "Base models and reference architectures.",
    "devices": "Devices and the cost models that ship with the package.",
    "predict": "Predict latency, memory and throughput of an architecture.",
    "profile": "Measure operators on this machine.",
    "fit": "Fit a cost model to measurements.",
    "evaluate": "Errors of a cost model on measurements it was not fitted on.",
    "import": "Import measurements of other tools.",
    "store": "Join measurement stores, or write one as a table.",
    "doctor": "What this machine is, and what would make measurements untrustworthy.",
    "bench": "Measure a whole architecture beside its prediction.",
    "search": "Find architectures that meet budgets.",
    "mixture": "Propose a mixture of data sources from many small runs.",
    "postnas": "From a checkpoint and budgets to a hybrid architecture with weights.",
    "supernet": "Train mixers beside the frozen attention of a checkpoint.",
    "importance": "What each layer's full attention is worth, under a supernet.",
    "proxy": "Train candidates for a short while from a supernet, and rank them.",
    "build": "Make a Hugging Face model of an architecture, from a checkpoint or random.",
    "teacher": "A tiny pretrained model to try everything on; one ships with the package.",
    "study": "What a run has found so far: front, convergence, plots, tables.",
    "export": "Write an architecture of a search as JSON.",
    "spaces": "Search spaces that ship with the package, and their sizes.",
    "schema": "Print the JSON Schema of architecture or space files.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = "import_" if cmd_name == "import" else cmd_name
        module = importlib.import_module(f"hwsearch.cli.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="hwsearch")
def cli() -> None:
    """Hardware-aware cost models and architecture search for hybrid language models."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit status. Errors of the user print one line and no traceback."""
    try:
        status = cli.main(args=list(arguments), prog_name="hwsearch", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader (head, less) is gone; keep Python from failing again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (HwsearchError, OSError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        click.echo(f"error: {where}{plainly(error)}", err=True)
        return 1
    return status if isinstance(status, int) else 0
