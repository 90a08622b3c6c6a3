"""Imports point downward only, and the light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hwsearch"

# From the bottom up. A part may import parts of lower layers and itself, never a sibling or a higher one.
LAYERS: list[set[str]] = [
    {"errors"},
    {"operators"},
    {"records"},
    {"searchspace"},
    {"genome_gp"},
    {"kernels"},
    {"models"},
    {"profilers", "costmodel", "surrogate", "search"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
]
HEAVY = ("torch", "sklearn", "transformers", "pandas", "matplotlib")


def _part(module: str) -> str | None:
    """The part of the package that a dotted module name belongs to; None outside hwsearch."""
    names = module.split(".")
    return names[1] if names[0] == "hwsearch" and len(names) > 1 else None


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "hwsearch" else {module}
    return found


def _level(part: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert not {m for m in _imports(path) if _part(m)}
        return
    for module in _imports(path):
        other = _part(module)
        if other is not None and other not in (own, "__version__"):
            assert _level(other) < _level(own), f"{path.name} ({own}) imports {module}"


def _loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "from hwsearch.cli.main import run; run(['--help'])",
        "from hwsearch.cli.main import run; run(['predict', '--arch', 'Qwen3-1.7B', '--device', 'h100-sxm', "
        "'--workload', 'decode:batch=1,context=1k'])",
        "import hwsearch.pipeline.demand, hwsearch.pipeline.models, hwsearch.pipeline.search_task",
        "import hwsearch.profilers.store, hwsearch.profilers.plan",
    ],
)
def test_light_commands_import_nothing_heavy(code: str) -> None:
    assert _loaded_after(code) == set()
