"""The once-for-all supernet: a frozen teacher with further mixers beside the attention of every layer.

Every architecture of a search space whose feed-forward networks are the teacher's is a path through it: per layer one
choice of mixer, behind the layer's own norm and before its own feed-forward network (arXiv 2508.15884, section 2).
Only the mixers that the teacher does not have are trained; embeddings, norms, feed-forward networks, LM head and the
teacher's attention are frozen and shared by all paths. A path that takes the teacher's attention everywhere is the
teacher, to the last bit, before and after any training.

The paper trains both paths of a layer. Then no path is the teacher any more, and the teacher has to be held apart from
it; `train_attention` does that, at the price of a second copy of every attention layer.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.errors import InputError
from hwsearch.models.checkpoint import Checkpoint
from hwsearch.models.configuration import HybridConfig
from hwsearch.models.convert import build_model, converted_mixer
from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.models.layer import HybridLayer
from hwsearch.models.mixers.base import Mixer
from hwsearch.searchspace.architecture import Architecture, LayerSpec
from hwsearch.searchspace.mixers import NoMixer
from hwsearch.searchspace.space import SearchSpace

__all__ = ["Genome", "Supernet", "TeacherPass", "hash_tensors"]

Genome = Sequence[int] | NDArray[np.int64]

_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class TeacherPass:
    """What the teacher computes for a batch, without gradients, (B, T, D) each.

    hidden: the residual stream before each layer and behind the last, layers + 1 of them. mixed: what the attention of
    each layer adds to it.
    """

    hidden: tuple[Tensor, ...]
    mixed: tuple[Tensor, ...]


class Supernet(nn.Module):
    """The teacher and, per layer, a mixer for each choice of the space that the teacher does not have.

    alternatives: per layer, choice -> mixer. A choice without an entry is the teacher's attention, or no mixer at all
    where the space says so.
    """

    def __init__(
        self, teacher: HybridForCausalLM, space: SearchSpace, alternatives: Sequence[Mapping[int, Mixer]]
    ) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()
        self.space = space
        self.alternatives = nn.ModuleList(
            nn.ModuleDict({str(choice): mixer for choice, mixer in sorted(layer.items())})
            for layer in alternatives
        )
        self.teacher_choice = _teacher_choice(space)
        self._empty = frozenset(
            i for i, choice in enumerate(space.choices) if isinstance(choice.mixer, NoMixer)
        )

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        space: SearchSpace,
        *,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        train_attention: bool = False,
    ) -> Supernet:
        """A supernet before training: the alternatives start as `hwsearch build` starts them.

        dtype: of all weights; the checkpoint's if None. Raises InputError for a space over another base, with other
        feed-forward networks, with layers that read others' caches, or without the teacher's attention; DataError where
        the checkpoint cannot be read.
        """
        base = checkpoint.base
        if space.base != base.replace(name=space.base.name):
            raise InputError(
                f"the space is over {space.base.name}, whose dimensions are not those of {checkpoint.folder}: "
                "build the space over this checkpoint"
            )
        widths = sorted({c.ffn.intermediate_size for c in space.choices if c.ffn != base.ffn})
        if widths:
            raise InputError(
                f"a supernet keeps the teacher's feed-forward networks of {base.ffn.intermediate_size}; the space has "
                f"others of {', '.join(map(str, widths))}: leave `ffn` out of the space"
            )
        if "shared_kv_attention" in space.kinds:
            raise InputError(
                "shared_kv_attention reads what another layer's choice left, which the paths of a supernet do not "
                "hand on: leave it out of the space"
            )
        teacher, _ = build_model(Architecture.of_base(space.base), checkpoint=checkpoint, dtype=dtype)
        own = _teacher_choice(space)
        alternatives = []
        for index, allowed in enumerate(space.allowed):
            mixers = {}
            for choice in allowed:
                spec = space.choices[choice].mixer
                if isinstance(spec, NoMixer) or (choice == own and not train_attention):
                    continue
                # By what it is and where, so that a mixer starts the same in every space that has it.
                started = _number(f"{seed} {index} {spec.model_dump_json()}")
                mixer = converted_mixer(spec, checkpoint=checkpoint, index=index, seed=started)
                mixers[choice] = mixer.to(teacher.dtype)
            alternatives.append(mixers)
        return cls(teacher, space, alternatives)

    @property
    def num_layers(self) -> int:
        return self.space.num_layers

    @property
    def teacher_genome(self) -> NDArray[np.int64]:
        """The genome (layers,) of the teacher. The rules of the space may forbid it; it can be run all the same."""
        return np.full(self.num_layers, self.teacher_choice, dtype=np.int64)

    @property
    def trained_attention(self) -> bool:
        """Whether the softmax path is a copy that trains; the teacher's genome is then not the teacher any more."""
        return any(str(self.teacher_choice) in layer for layer in self._mixers)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters of the alternatives by name, `layer.choice.name`; all others are frozen."""
        return dict(self.alternatives.named_parameters())

    @property
    def _mixers(self) -> list[nn.ModuleDict]:
        return [layer for layer in self.alternatives if isinstance(layer, nn.ModuleDict)]

    def alternatives_of(self, index: int) -> dict[int, Mixer]:
        """The trainable mixers of a layer, choice -> mixer."""
        found = self._mixers[index].items()
        return {int(choice): mixer for choice, mixer in found if isinstance(mixer, Mixer)}

    def is_teacher(self, index: int, choice: int) -> bool:
        """Whether a choice in a layer is the teacher's own, frozen attention."""
        return choice == self.teacher_choice and str(choice) not in self._mixers[index]

    def embed(self, input_ids_BT: Tensor) -> Tensor:
        """(B, T) tokens to (B, T, D)."""
        embedded: Tensor = self.teacher.model.embed_tokens(input_ids_BT)
        return embedded

    def mixer_input(self, index: int, hidden_BTD: Tensor) -> Tensor:
        """What the mixer of a layer reads: the residual stream behind the layer's norm."""
        normed: Tensor = self._layer(index).input_layernorm(hidden_BTD)  # type: ignore[misc]
        return normed

    def layer(
        self, index: int, choice: int | None, hidden_BTD: Tensor, *, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) to the same through one layer, and what its mixer added; None where it has none.

        choice: None for the teacher's attention.
        """
        layer = self._layer(index)
        mixed_BTD = None
        if choice is None or choice not in self._empty:
            mixer = self._mixer(index, choice)
            mixed_BTD, _ = mixer(self.mixer_input(index, hidden_BTD), mask_BT=mask_BT)
            hidden_BTD = hidden_BTD + mixed_BTD
        return hidden_BTD + layer.mlp(layer.post_attention_layernorm(hidden_BTD)), mixed_BTD

    def head(self, hidden_BTD: Tensor) -> Tensor:
        """Logits (..., V) from the residual stream behind the last layer (..., D)."""
        logits: Tensor = self.teacher.lm_head(self.teacher.model.norm(hidden_BTD))
        return logits

    @torch.no_grad()
    def teacher_pass(self, input_ids_BT: Tensor, *, mask_BT: Tensor | None = None) -> TeacherPass:
        """The teacher's residual stream and attention outputs."""
        hidden, mixed = [self.embed(input_ids_BT)], []
        for index in range(self.num_layers):
            after_BTD, mixed_BTD = self.layer(index, None, hidden[-1], mask_BT=mask_BT)
            assert mixed_BTD is not None
            hidden.append(after_BTD)
            mixed.append(mixed_BTD)
        return TeacherPass(tuple(hidden), tuple(mixed))

    def forward(self, input_ids_BT: Tensor, *, genome: Genome, mask_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the path of a genome (layers,).

        mask_BT: bool, False at tokens padded on the left; rows padded on the right need none, for every mixer is
        causal.
        """
        hidden_BTD = self.embed(input_ids_BT)
        for index, choice in enumerate(genome):
            hidden_BTD, _ = self.layer(index, int(choice), hidden_BTD, mask_BT=mask_BT)
        return self.head(hidden_BTD)

    def only(self, genome: Genome) -> Supernet:
        """A supernet of one path (layers,): the same teacher and numbers of choices, copies of the path's mixers."""
        mask = np.zeros((self.num_layers, len(self.space.choices)), dtype=bool)
        mask[np.arange(self.num_layers), np.asarray(genome)] = True
        kept = [
            {choice: copy.deepcopy(m) for choice, m in self.alternatives_of(i).items() if mask[i, choice]}
            for i in range(self.num_layers)
        ]
        return Supernet(self.teacher, self.space.only(mask), kept)

    def model_of(self, genome: Genome, *, name: str = "supernet path") -> HybridForCausalLM:
        """The path of a genome (layers,) as a model of its own, its weights copied, in evaluation mode."""
        architecture = self.space.decode(np.asarray(genome), name=name)
        config = HybridConfig.of(architecture)
        for token in _TOKENS:
            setattr(config, token, getattr(self.teacher.config, token))
        kept = {key: value for key, value in self.teacher.state_dict().items() if ".mixer." not in key}
        for index, choice in enumerate(map(int, genome)):
            prefix = f"model.layers.{index}."
            if choice in self._empty:
                del kept[f"{prefix}input_layernorm.weight"]
                continue
            own = self._mixer(index, choice).state_dict()
            kept |= {f"{prefix}mixer.{key}": value for key, value in own.items()}
        model, info = HybridForCausalLM.from_pretrained(
            None,
            config=config,
            state_dict={key: value.detach().cpu().clone() for key, value in kept.items()},
            dtype=self.teacher.dtype,
            output_loading_info=True,
        )
        wrong = [key for group in info.values() for key in group if key != "lm_head.weight"]
        assert not wrong, f"the path and the model differ in {wrong[:3]}"
        made: HybridForCausalLM = model.eval()
        return made

    def fingerprint(self) -> str:
        """SHA-256 over the choices and every weight, hexadecimal."""
        digest = hashlib.sha256()
        choices = [choice.model_dump_json() for choice in self.space.choices]
        digest.update(repr((choices, self.space.allowed)).encode())
        digest.update(hash_tensors(sorted(self.state_dict().items())).encode())
        return digest.hexdigest()

    def _layer(self, index: int) -> HybridLayer:
        layer = self.teacher.model.layers[index]
        assert isinstance(layer, HybridLayer)
        return layer

    def _mixer(self, index: int, choice: int | None) -> Mixer:
        if choice is None or self.is_teacher(index, choice):
            mixer = self._layer(index).mixer
            assert mixer is not None
            return mixer
        key = str(choice)
        if key not in self._mixers[index]:
            raise InputError(
                f"layer {index} of the supernet has no mixer for choice {choice}; it has "
                f"{', '.join(map(str, self.space.allowed[index]))}"
            )
        found = self._mixers[index][key]
        assert isinstance(found, Mixer)
        return found


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order given, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _teacher_choice(space: SearchSpace) -> int:
    own = LayerSpec(mixer=space.base.mixer, ffn=space.base.ffn)
    if own not in space.choices:
        raise InputError(
            f"the space has no {own.mixer.kind} of {space.base.name}'s own dimensions: a supernet needs it beside "
            "its alternatives; add full_attention to the mixers"
        )
    return space.choices.index(own)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
