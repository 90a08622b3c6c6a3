"""Fine-tune a model that `hwsearch build` made on a text file, with transformers' Trainer, and save it.

    hwsearch build arch.json --from path/to/checkpoint -o model/
    python examples/finetune.py model/ corpus.txt -o trained/ --lora

Needs pip install 'hwsearch[train]'. With --lora only low-rank adapters of the mixers' projections are trained; they are
merged into the weights before saving, so that the folder loads like any other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import hwsearch.models.hybrid  # noqa: F401  (registers the model class)

MIXER_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """A tokenised text in blocks of equal length; what is left at the end is dropped."""

    def __init__(self, ids: list[int], *, length: int) -> None:
        if len(ids) < length:
            raise SystemExit(
                f"the text has {len(ids)} tokens, fewer than one block: pass --length {len(ids)}"
            )
        count = len(ids) // length
        self.blocks = torch.tensor(ids[: count * length]).reshape(count, length)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--length", type=int, default=1024, help="tokens per block")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters of the mixers only")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    if options.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(r=16, target_modules=MIXER_PROJECTIONS, task_type="CAUSAL_LM")
        )
    ids = tokenizer(options.text.read_text(encoding="utf-8"))["input_ids"]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=options.learning_rate,
            activation_checkpointing=not options.lora,
            lr_scheduler_type="cosine",
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            seed=options.seed,
        ),
        train_dataset=Blocks(ids, length=options.length),
    )
    trainer.train()
    trained = model.merge_and_unload() if options.lora else model
    trained.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
