"""A path of a supernet as a model that is trained further: its weights, where they come from, and a recipe.

The recipe holds the two stages of training after a search (arXiv 2508.15884): first the mixers alone, everything else
frozen as in the supernet, then the whole model. Learning rate, batch and length of the first are those of the
supernet's paths. The second takes a tenth of that rate, our choice: there the weights of the checkpoint move too. How
many tokens each takes is the user's decision.
"""

from __future__ import annotations

from typing import Any

import torch

from hwsearch.models.convert import LayerOrigin
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.searchspace.architecture import Architecture
from hwsearch.surrogate.supernet_folder import SupernetFolder

__all__ = ["path_model", "training_recipe"]

_SECOND_STAGE = 0.1


def path_model(
    folder: SupernetFolder, architecture: Architecture, *, dtype: torch.dtype | None = None
) -> tuple[HybridForCausalLM, tuple[LayerOrigin, ...]]:
    """The model of an architecture with the mixers of a supernet, and the origin of each layer's parameters.

    dtype: the supernet's if None. Raises InputError where the supernet lacks a layer of the architecture.
    """
    genome = folder.genome_of(architecture)
    supernet = folder.supernet()
    model = supernet.model_of(genome, name=architecture.name)
    origins = []
    for index, choice in enumerate(map(int, genome)):
        prefix = f"model.layers.{index}."
        names = [name.removeprefix(prefix) for name in model.state_dict() if name.startswith(prefix)]
        ours = choice in supernet.alternatives_of(index)
        trained = tuple(name for name in names if ours and name.startswith("mixer."))
        inherited = tuple(name for name in names if name not in trained)
        kind = architecture.layers[index].mixer.kind
        origins.append(
            LayerOrigin(index=index, mixer=kind, inherited=inherited, mapped=(), new=(), trained=trained)
        )
    return model if dtype is None else model.to(dtype), tuple(origins)


def training_recipe(folder: SupernetFolder, architecture: Architecture) -> dict[str, Any]:
    """What examples/finetune.py reads: stages of training, as JSON values."""
    settings = folder.settings
    recipe = settings.recipe
    common = {
        "batch": settings.batch * recipe.accumulate,
        "length": settings.length,
        "warmup": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "clip": recipe.clip,
    }
    return {
        "version": 1,
        "architecture": architecture.name,
        "teacher": str(folder.checkpoint.folder),
        "supernet": str(folder.folder),
        "stages": [
            {"train": "mixers", "learning_rate": recipe.b.learning_rate, **common},
            {"train": "all", "learning_rate": _SECOND_STAGE * recipe.b.learning_rate, **common},
        ],
    }
