"""Reading space files: YAML (with the extra `yaml`), TOML or JSON, and errors that name the place.

A mistake is reported with its path inside the file and, where the format keeps positions (YAML), its line.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hwsearch.errors import DataError, DependencyError, plainly, unknown_name
from hwsearch.searchspace.spacefile import MIXER_KINDS, SpaceSpec, fields_at

__all__ = ["SUFFIXES", "load_space"]

SUFFIXES = (".yaml", ".yml", ".toml", ".json")

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class _Content:
    """A file's data, and the line of each path inside it where the format tells."""

    data: Any
    lines: Mapping[Path_, int] = field(default_factory=dict)


def load_space(path: Path) -> SpaceSpec:
    """The space that a file describes.

    Raises DataError, naming path and line where they are known, for a file that cannot be read or does not fit;
    DependencyError for YAML without the extra.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: a space file ends in {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {plainly(error)}") from None
    content = _decode(text, path)
    if not isinstance(content.data, dict):
        raise DataError(f"{path} holds no keys: a space file needs at least `mixers`")
    try:
        return SpaceSpec.model_validate(content.data)
    except ValidationError as error:
        raise DataError(_report(error, content, path)) from None


def _decode(text: str, path: Path) -> _Content:
    if path.suffix in (".yaml", ".yml"):
        return _yaml(text, path)
    try:
        return _Content(tomllib.loads(text) if path.suffix == ".toml" else json.loads(text))
    except ValueError as error:
        raise DataError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from None


def _yaml(text: str, path: Path) -> _Content:
    try:
        import yaml
    except ModuleNotFoundError:
        raise DependencyError(
            "pyyaml", extra="yaml", purpose=f"reading {path} (TOML and JSON need nothing)"
        ) from None
    lines: dict[Path_, int] = {}

    def walk(node: Any, at: Path_) -> None:
        lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*at, str(key.value))
                if inner in lines:
                    raise DataError(f"{path}:{key.start_mark.line + 1}: {_dotted(inner)} is given twice")
                lines[inner] = key.start_mark.line + 1
                walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                walk(value, (*at, i))

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            walk(root, ())
        return _Content(yaml.safe_load(text), lines)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not valid YAML: {reason}") from None
    except RecursionError:
        raise DataError(f"{path} is nested too deeply, or an alias holds itself") from None


def _report(error: ValidationError, content: _Content, path: Path) -> str:
    """The first four mistakes, each with its line, path and what was expected."""
    found = error.errors(include_url=False)
    # An entry that could not be read also makes the list around it too short.
    locations = [item["loc"] for item in found]
    own = [
        item
        for item in found
        if not any(
            len(other) > len(item["loc"]) and other[: len(item["loc"])] == item["loc"] for other in locations
        )
    ]
    texts = []
    for item in own[:4]:
        missing = item["type"] == "missing"
        at = _inside(item["loc"][:-1] if missing else item["loc"], content.data)
        if missing:
            at += item["loc"][-1:]
        line = content.lines.get(at[:-1] if missing else at)
        reason = item["msg"].removeprefix("Value error, ")
        if missing:
            reason = "is missing"
        elif item["type"] == "extra_forbidden":
            reason = f"unknown key{_nearest(at, item['loc'])}"
        elif item["type"] == "union_tag_invalid":
            reason = str(unknown_name("mixer", item["ctx"]["tag"], MIXER_KINDS))
        elif item["type"] == "tuple_type":
            reason = f"{item['input']!r} is no list: write it in brackets"
        elif item["type"] == "union_tag_not_found":
            reason = "kind is missing"
        elif item["type"] in ("model_type", "model_attributes_type"):
            reason = (
                f"{item['input']!r} is no mapping; write keys and values, such as {{kind: full_attention}}"
            )
        texts.append((f"line {line}, " if line else "") + f"{_dotted(at) or 'top level'}: {reason}")
    more = f"; and {len(own) - 4} more" if len(own) > 4 else ""
    return f"{path} is not a valid space: {'; '.join(texts)}{more}"


def _inside(location: Sequence[str | int], data: Any) -> Path_:
    """The path of an error without the tags that name the member of a union."""
    path: list[str | int] = []
    for step in location:
        entries = data if isinstance(data, dict) else dict(enumerate(data)) if isinstance(data, list) else {}
        if step in entries:
            data = entries[step]
            path.append(step)
    return tuple(path)


def _nearest(at: Path_, location: Sequence[str | int]) -> str:
    """A known key like the unknown one, in words; nothing where none is near."""
    kind = (
        str(location[2]) if len(location) > 2 else None
    )  # behind the list and the index stands the union's tag
    known = fields_at(at, kind)
    near = difflib.get_close_matches(str(at[-1]), known, n=1)
    return f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def _dotted(path: Path_) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
