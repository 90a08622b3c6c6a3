"""Entry point of the `hwsearch` command."""

from __future__ import annotations

import sys

from hwsearch.cli.main import run

__all__ = ["main"]


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
