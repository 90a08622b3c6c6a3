"""Reading Hugging Face checkpoint folders of Qwen2, Qwen3 and Llama models: config.json and safetensors.

Tensors are read one at a time, from one file or from shards, so that a conversion holds the model once. Pickled weights
are refused: loading them runs code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hwsearch.errors import DataError, plainly
from hwsearch.searchspace.bases import Base, base_from_config

__all__ = ["TOKENIZER_FILES", "Checkpoint"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


class Checkpoint:
    """A checkpoint folder. Nothing is read before it is asked for; every reading error is a DataError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def base(self) -> Base:
        """The base model that config.json describes."""
        if not (self.folder / "config.json").is_file():
            raise DataError(f"{self.folder} has no config.json: name the folder of a Hugging Face checkpoint")
        if self.config.get("quantization_config"):
            raise DataError(f"{self.folder} holds quantised weights; name an unquantised checkpoint")
        return base_from_config(self.folder / "config.json")

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json as it is."""
        return _read_json(self.folder / "config.json")

    @property
    def token_ids(self) -> dict[str, Any]:
        """The special tokens that config.json names."""
        return {name: self.config[name] for name in _TOKENS if self.config.get(name) is not None}

    @property
    def extra_files(self) -> tuple[Path, ...]:
        """Files of the tokenizer and of generation that a model made from this one needs too."""
        return tuple(self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file())

    @cached_property
    def names(self) -> Mapping[str, Path]:
        """Tensor name -> the file that holds it."""
        index, single = self.folder / _INDEX, self.folder / _SINGLE
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise DataError(f"{index} has no weight_map")
            missing = sorted({file for file in weight_map.values() if not (self.folder / file).is_file()})
            if missing:
                raise DataError(
                    f"{index} names {', '.join(missing[:3])}, which is not there: download it again"
                )
            return {name: self.folder / file for name, file in weight_map.items()}
        if single.is_file():
            return dict.fromkeys(self._open(single).keys(), single)
        pickled = "; pickled weights are not read, save it again as safetensors" if self._pickled() else ""
        raise DataError(f"{self.folder} has neither {_SINGLE} nor {_INDEX}{pickled}")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, read off the embedding."""
        return self.tensor("model.embed_tokens.weight").dtype

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name in the files."""
        if name not in self.names:
            raise DataError(
                f"{self.folder} lacks the tensor {name}, which a {self.base.family} model of {self.base.num_layers} "
                "layers has; the config.json and the weights do not belong together"
            )
        file = self.names[name]
        if file not in self._files:
            self._files[file] = self._open(file)
        tensor: Tensor = self._files[file].get_tensor(name)
        return tensor

    @cached_property
    def _files(self) -> dict[Path, Any]:
        return {}

    def _open(self, file: Path) -> Any:
        try:
            return safe_open(str(file), framework="pt")
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"cannot read {file} as safetensors: {plainly(error)}; download it again"
            ) from None

    def _pickled(self) -> bool:
        return any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt"))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as JSON: {plainly(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a JSON object")
    return content
