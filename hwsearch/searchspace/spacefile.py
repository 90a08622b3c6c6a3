"""A search space as a user writes it, in YAML, TOML or JSON: mixers with grids, feed-forward widths, and rules.

    mixers:
      - kind: full_attention                  # as in the base; any field may be given, one value or a list
        num_kv_heads: [2, 4, 8]
      - {kind: jet_block, num_heads: [8, 12], head_k_dim: [96, 128], state_size: 294912}
      - kind: none
    limits:
      - {of: full_attention, at_most: 4}
      - {of: full_attention, at_least: 1, every: 8}
    forbidden: [[none, none]]

Lists span a grid. `state_size` keeps heads x head_k_dim x head_v_dim, and so the recurrent cache, fixed: points off it
are dropped, and head_v_dim follows from it where it is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, Union, get_args

from pydantic import BeforeValidator, Field, ValidationError, create_model, model_validator

from hwsearch.errors import InputError, unknown_name
from hwsearch.searchspace.architecture import LayerSpec
from hwsearch.searchspace.bases import Base
from hwsearch.searchspace.constraints import CountLimit, Pattern
from hwsearch.searchspace.mixers import FullAttention, Mixer, MixerSpec, SharedKVAttention
from hwsearch.searchspace.space import SearchSpace
from hwsearch.searchspace.spec import PositiveInt, Spec, problems

__all__ = [
    "MIXER_KINDS",
    "FFNWidths",
    "HeldStateGrid",
    "LayerRule",
    "Limit",
    "MixerGrid",
    "SpaceSpec",
    "fields_at",
    "space_schema",
]

_MIXERS: Mapping[str, type[Mixer]] = {
    get_args(cls.model_fields["kind"].annotation)[0]: cls for cls in get_args(get_args(MixerSpec)[0])
}
MIXER_KINDS = tuple(_MIXERS)
_FROM_BASE = frozenset(FullAttention.model_fields) - {"kind"}
_HEADS = ("num_v_heads", "num_heads")  # whichever a recurrent mixer has decides the size of its state
_STEP = 64  # feed-forward widths given as a share are rounded to a multiple of this


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


class MixerGrid(Spec):
    """One kind of mixer; each of its fields is a tuple of the values it may take, None where left out."""

    kind: str

    def mixers(self, base: Base) -> list[Mixer]:
        """All points of the grid, in the order of the file. Raises InputError for points that cannot be built."""
        mixer = _MIXERS[self.kind]
        given: dict[str, Sequence[Any]] = {
            name: values
            for name in mixer.model_fields
            if name != "kind" and (values := getattr(self, name)) is not None
        }
        found = []
        for point in itertools.product(*given.values()):
            fields = dict(zip(given, point, strict=True))
            if not self._completed(fields):
                continue
            if mixer.model_fields.keys() >= _FROM_BASE:
                fields = {**base.mixer.model_dump(include=set(_FROM_BASE)), **fields}
            try:
                found.append(mixer.model_validate({"kind": self.kind, **fields}))
            except ValidationError as error:
                raise InputError(
                    f"the grid of {self.kind} has the point {fields}, which cannot be: {problems(error)}; "
                    "list the points that can as entries of their own"
                ) from None
        return found

    def _completed(self, fields: dict[str, Any]) -> bool:
        """Whether a point is wanted; fills in what follows from the others."""
        return True

    @model_validator(mode="before")
    @classmethod
    def _no_state_to_hold(cls, given: Any) -> Any:
        if isinstance(given, dict) and "state_size" in given and "state_size" not in cls.model_fields:
            raise ValueError(
                f"{given.get('kind')} has no recurrent state of heads x head_k_dim x head_v_dim, "
                "and so no state_size to keep"
            )
        return given


class HeldStateGrid(MixerGrid):
    """Of a mixer whose state is heads x head_k_dim x head_v_dim, which state_size keeps fixed."""

    state_size: PositiveInt | None = None

    def mixers(self, base: Base) -> list[Mixer]:
        """As of any grid; InputError where no point has that state."""
        found = super().mixers(base)
        if not found:
            raise InputError(f"the grid of {self.kind} has no point with a state_size of {self.state_size}")
        return found

    def _completed(self, fields: dict[str, Any]) -> bool:
        if self.state_size is None:
            return True
        heads = next(fields[name] for name in _HEADS if name in fields)
        values, rest = divmod(self.state_size, heads * fields["head_k_dim"])
        return rest == 0 and bool(fields.setdefault("head_v_dim", values) == values)

    @model_validator(mode="after")
    def _dimensions(self) -> Self:
        if self.state_size is None and getattr(self, "head_v_dim", None) is None:
            raise ValueError("head_v_dim is missing: give it, or a state_size from which it follows")
        return self


def _grid_of(kind: str, cls: type[Mixer]) -> type[MixerGrid]:
    """The grid model of a kind of mixer: its own fields, each with one value or several."""
    fields: dict[str, Any] = {"kind": (Literal[kind], ...)}
    softmax = cls.model_fields.keys() >= _FROM_BASE
    for name, info in cls.model_fields.items():
        if name == "kind":
            continue
        values: Any = GenericAlias(tuple, (info.rebuild_annotation(), ...))
        several: Any = Annotated[values, BeforeValidator(_listed), Field(min_length=1)]
        optional = not info.is_required() or (softmax and name in _FROM_BASE) or name == "head_v_dim"
        fields[name] = (several | None, None) if optional else (several, ...)
    grid: type[MixerGrid] = HeldStateGrid if "head_v_dim" in cls.model_fields else MixerGrid
    made: type[MixerGrid] = create_model(f"{cls.__name__}Grid", __base__=grid, **fields)
    return made


_GRIDS = {kind: _grid_of(kind, cls) for kind, cls in _MIXERS.items()}
if TYPE_CHECKING:
    _AnyGrid: TypeAlias = MixerGrid
else:
    _AnyGrid = Annotated[Union[tuple(_GRIDS.values())], Field(discriminator="kind")]  # noqa: UP007


class FFNWidths(Spec):
    """Widths of the feed-forward network: sizes, or shares of the base's, rounded to a multiple of 64."""

    intermediate_size: Annotated[tuple[PositiveInt, ...], BeforeValidator(_listed)] = ()
    share: Annotated[tuple[Annotated[float, Field(gt=0, le=8)], ...], BeforeValidator(_listed)] = ()

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.intermediate_size) == bool(self.share):
            raise ValueError("give either intermediate_size or share")
        return self

    def widths(self, base: Base) -> list[int]:
        full = base.ffn.intermediate_size
        shares = [full if s == 1 else max(round(s * full / _STEP), 1) * _STEP for s in self.share]
        return list(dict.fromkeys([*self.intermediate_size, *shares]))


class Limit(Spec):
    """How many layers may use a kind or group: of the whole model, or of each block of `every` layers."""

    of: str
    at_least: Annotated[int, Field(ge=0, strict=True)] = 0
    at_most: Annotated[int, Field(ge=0, strict=True)] | None = None
    every: PositiveInt | None = None


class LayerRule(Spec):
    """The layers `at` (from 0; negative numbers count from the end) may take only these kinds or groups."""

    at: tuple[Annotated[int, Field(strict=True)], ...] = Field(min_length=1)
    allow: tuple[str, ...] = Field(min_length=1)


class SpaceSpec(Spec):
    """A search space for any base. See the module for the form, and `SearchSpace` for what the rules mean."""

    schema_version: Literal[1] = 1
    description: str = ""
    mixers: tuple[_AnyGrid, ...] = Field(min_length=1)
    ffn: FFNWidths | None = None
    groups: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    ties: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    forbidden: tuple[tuple[str, str], ...] = ()
    orders: tuple[tuple[str, str], ...] = ()
    needs: tuple[tuple[str, str], ...] = ()
    layers: tuple[LayerRule, ...] = ()

    def build(self, base: Base) -> SearchSpace:
        """The space over a base. Raises InputError where a rule names what is not there or cannot be met."""
        mixers = [mixer for grid in self.mixers for mixer in grid.mixers(base)]
        for i, mixer in enumerate(mixers):
            if mixer in mixers[:i]:
                raise InputError(f"the mixers repeat {mixer.model_dump()}: leave one of the two out")
        ffns = [base.ffn]
        if self.ffn:
            ffns = [base.ffn.replace(intermediate_size=width) for width in self.ffn.widths(base)]
        choices = tuple(LayerSpec(mixer=mixer, ffn=ffn) for mixer in mixers for ffn in ffns)
        kinds = [choice.mixer.kind for choice in choices]
        self._check_names(kinds)
        for mixer in mixers:
            if isinstance(mixer, SharedKVAttention) and not any(mixer.reads(other) for other in mixers):
                raise InputError(f"shared_kv_attention has nothing to read: add {mixer.wanted} to the mixers")
        allowed = [set(range(len(choices))) for _ in range(base.num_layers)]
        for number, rule in enumerate(self.layers):
            names = {member for name in rule.allow for member in self.groups.get(name, (name,))}
            for layer in rule.at:
                if not -base.num_layers <= layer < base.num_layers:
                    raise InputError(
                        f"layers[{number}].at: {layer} is not a layer of {base.name}, which has {base.num_layers}"
                    )
                allowed[layer] &= {i for i, kind in enumerate(kinds) if kind in names}
        whole = [limit for limit in self.limits if limit.every is None]
        if len({limit.of for limit in whole}) < len(whole):
            raise InputError("limits: a kind or group has two limits on the whole model: write them as one")
        return SearchSpace(
            base=base,
            choices=choices,
            allowed=tuple(tuple(sorted(options)) for options in allowed),
            groups=self.groups,
            ties=self.ties,
            limits={limit.of: _bounds(limit) for limit in whole},
            patterns=tuple(
                Pattern(kind=limit.of, every=limit.every, limit=_bounds(limit))
                for limit in self.limits
                if limit.every is not None
            ),
            forbidden=frozenset(self.forbidden),
            orders=self.orders,
            needs=self.needs,
        )

    def to_content(self) -> dict[str, Any]:
        """The JSON values of a file that describes this space; grids of one value are written as the value."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        content["mixers"] = [
            {
                key: value[0] if isinstance(value, list) and len(value) == 1 else value
                for key, value in grid.items()
            }
            for grid in content["mixers"]
        ]
        return content

    def _check_names(self, kinds: Sequence[str]) -> None:
        """Every rule must name a kind of the space or a group of such."""
        for name, members in self.groups.items():
            if name in _MIXERS:
                raise InputError(f"groups.{name}: this is the name of a mixer; call the group something else")
            _known(f"groups.{name}", members, kinds)
        known = [*dict.fromkeys(kinds), *self.groups]
        _known("ties", self.ties, known)
        for number, limit in enumerate(self.limits):
            _known(f"limits[{number}].of", [limit.of], known)
        for number, pair in enumerate(self.forbidden):
            _known(f"forbidden[{number}]", pair, known)
        for number, pair in enumerate(self.orders):
            _known(f"orders[{number}]", pair, known)
        for number, pair in enumerate(self.needs):
            _known(f"needs[{number}]", pair, known)
        for number, rule in enumerate(self.layers):
            _known(f"layers[{number}].allow", rule.allow, known)


def fields_at(path: Sequence[str | int], kind: str | None) -> list[str]:
    """The keys that a space file may have beside the one at `path`; kind: of the mixer that `path` is in."""
    parts: Mapping[str | int, type[Spec]] = {"ffn": FFNWidths, "limits": Limit, "layers": LayerRule}
    if len(path) > 1 and path[0] == "mixers":
        return list(_GRIDS[kind].model_fields) if kind in _GRIDS else []
    return list(parts.get(path[0], SpaceSpec).model_fields if len(path) > 1 else SpaceSpec.model_fields)


def _known(path: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown_name(f"mixer or group in {path}", name, known)


def _bounds(limit: Limit) -> CountLimit:
    return CountLimit(at_least=limit.at_least, at_most=limit.at_most)


def space_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a space file, version 1, for editors."""
    schema = SpaceSpec.model_json_schema(mode="validation")
    names = {FFNWidths.__name__, *(cls.__name__ for cls in _GRIDS.values())}
    for name in names & schema["$defs"].keys():
        properties = schema["$defs"][name]["properties"]
        for key, value in properties.items():
            properties[key] = _one_or_several(value)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hwsearch search space, version 1",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def _one_or_several(schema: dict[str, Any]) -> dict[str, Any]:
    """What takes an array also takes one value of it."""
    forms = schema.get("anyOf", [schema])
    arrays = [form for form in forms if form.get("type") == "array"]
    if not arrays:
        return schema
    return {
        "anyOf": [
            arrays[0]["items"],
            {k: v for k, v in arrays[0].items() if k in ("type", "items", "minItems")},
        ]
    }
