"""Real text that every machine with Python has: the documentation and the docstrings of the Python installation.

The help topics of `pydoc` (sections of the language reference) and the docstrings in the standard library's sources, in
the order of their names. The text is the Python Software Foundation's, under its licence; it is read where it is
installed and not shipped with this package. Another Python version has another text.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

__all__ = ["python_documentation"]

_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "__pycache__",
}
_SHORTEST = 80  # characters of a docstring worth keeping


def python_documentation() -> Iterator[str]:
    """One text per topic, and one per module: its docstrings that no earlier module has."""
    from pydoc_data.topics import topics

    for _, text in sorted(topics.items()):
        yield text.strip()
    seen: set[str] = set()
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        if _LEFT_OUT.isdisjoint(path.relative_to(library).parts):
            found = [text for text in _docstrings(path) if text not in seen]
            seen.update(found)
            if found:
                yield "\n\n".join(found)


def _docstrings(path: Path) -> list[str]:
    """The docstrings of a source file in their order; none where the file is no Python of this version."""
    try:
        with tokenize.open(path) as file:
            tree = ast.parse(file.read())
    except (SyntaxError, UnicodeDecodeError):
        return []
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    found = [
        (getattr(node, "lineno", 0), inspect.cleandoc(text))
        for node in nodes
        if (text := ast.get_docstring(node, clean=False))
    ]
    return [text for _, text in sorted(found) if len(text) >= _SHORTEST]
