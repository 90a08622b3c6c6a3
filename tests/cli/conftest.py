"""Running the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from hwsearch.cli.main import run


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.status == 0, self.err
        content: dict[str, Any] = json.loads(self.out)
        return content

    @property
    def complaint(self) -> str:
        """The one line a failed command prints; checks that there is no traceback and nothing on stdout."""
        assert self.status != 0
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


Call = Callable[..., Outcome]


@pytest.fixture
def hwsearch(capfd: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: object) -> Outcome:
        status = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call
