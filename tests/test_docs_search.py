"""The examples of the pages on spaces and studies do what the pages say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from hwsearch.searchspace.bases import BASES
from hwsearch.searchspace.spaceloader import load_space

DOCS = Path(__file__).parents[1] / "docs"


def _block(page: str, language: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8").split(f"```{language}\n")[1].split("```")[0]


def test_the_example_space_can_be_searched(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(_block("spaces.md", "yaml"))
    space = load_space(path).build(BASES["Qwen2.5-1.5B"])
    drawn = space.sample(20, rng=np.random.default_rng(0))
    assert space.valid(drawn).all()


def test_the_example_objective_finds_its_optimum(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(_block("studies.md", "python"))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[2", "2", "2", "2]", "[0.]"]
    assert len([line for line in script.read_text().splitlines() if line.strip()]) < 30
