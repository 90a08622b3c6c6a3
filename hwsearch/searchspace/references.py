"""Published hybrid architectures, by the dimensions in arXiv 2508.15884 (Jet-Nemotron)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from hwsearch.errors import DataError, unknown_name
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.bases import BASES, base_from_config, base_named
from hwsearch.searchspace.mixers import JetBlock, MixerSpec, SlidingWindowAttention
from hwsearch.searchspace.spec import read_json

__all__ = ["REFERENCES", "architecture_named"]


def _jet_nemotron(
    name: str, base: str, *, full: Iterable[int], sliding: Iterable[int], window: int, jet: JetBlock
) -> Architecture:
    """A JetBlock hybrid; layer numbers count from 1, as the paper prints them."""
    host = BASES[base]
    windowed = SlidingWindowAttention(window=window, **host.mixer.model_dump(exclude={"kind"}))
    mixers: list[MixerSpec] = [jet] * host.num_layers
    for number in full:
        mixers[number - 1] = host.mixer
    for number in sliding:
        mixers[number - 1] = windowed
    return Architecture(
        name=name, base=host, layers=tuple(LayerSpec(mixer=mixer, ffn=host.ffn) for mixer in mixers)
    )


REFERENCES: Mapping[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        _jet_nemotron(
            "jet-nemotron-2b",
            "Qwen2.5-1.5B",
            full=(15, 20),
            sliding=(21, 22),
            window=1152,
            jet=JetBlock(num_heads=12, head_k_dim=96, head_v_dim=256),
        ),
        _jet_nemotron(
            "jet-nemotron-4b",
            "Qwen2.5-3B",
            full=(18, 21, 33),
            sliding=(6, 17, 20, 22, 23, 26, 28),
            window=2048,
            jet=JetBlock(num_heads=16, head_k_dim=128, head_v_dim=256),
        ),
    )
}


def architecture_named(name: str) -> Architecture:
    """A reference architecture, a built-in base as it is, an architecture JSON, or a Hugging Face config.

    A Hugging Face config (the file, or a folder with a config.json) is that of a base model, or that of a hybrid model
    that `hwsearch build` made.
    Raises InputError for an unknown name and DataError for a file that holds none of these.
    """
    if name in REFERENCES:
        return REFERENCES[name]
    path = Path(name)
    if name in BASES:
        return Architecture.of_base(base_named(name))
    if not name or not path.exists():
        raise unknown_name("architecture (and no such file or run)", name, [*REFERENCES, *BASES])
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(
            f"{name} is a folder without a config.json, or no file: give an architecture JSON, or the folder or "
            "config.json of a checkpoint"
        )
    content = read_json(path)
    if isinstance(content, dict) and "model_type" in content:
        # A model that `hwsearch build` made carries its architecture in its config.
        if "architecture" in content:
            return Architecture.from_content(content["architecture"], source=name)
        return Architecture.of_base(base_from_config(path))
    return Architecture.from_content(content, source=str(path))
