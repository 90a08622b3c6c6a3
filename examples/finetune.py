"""Fine-tune a model that `hwsearch build` made on text, with transformers' Trainer, save it, and score it.

    hwsearch build arch.json --supernet supernet/ -o model/
    python examples/finetune.py model/ corpus.jsonl -o trained/ --train mixers --tasks tasks.jsonl

Needs pip install 'hwsearch[train]', and 'hwsearch[eval]' for --tasks. --train mixers keeps everything but the token
mixers frozen, as the first stage of training after a search does; --train all is the second. The folder's
training_recipe.json, where there is one, gives the defaults of a stage. With --lora only low-rank adapters of the
mixers' projections are trained; they are merged into the weights before saving, so that the folder loads like any
other. --tasks takes a task file of hwsearch and has lm-eval score the trained model on it, offline.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

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


def read_text(path: Path, tokenizer: Any) -> list[int]:
    """The tokens of a text file, or of the "text" of each line of a jsonl file, with the end-of-text token behind."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return list(tokenizer(content)["input_ids"])
    texts = [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [token for ids in tokenizer(texts)["input_ids"] for token in (*ids, *end)]


def recipe_of(folder: Path, stage: str) -> dict[str, Any]:
    """What training_recipe.json says of a stage; empty without one."""
    path = folder / "training_recipe.json"
    stages = json.loads(path.read_text(encoding="utf-8"))["stages"] if path.is_file() else []
    return next((found for found in stages if found["train"] == stage), {})


def freeze_all_but_mixers(model: torch.nn.Module) -> None:
    """Leave the parameters of the token mixers trainable, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".mixer." in name)


def lm_eval_tasks(path: Path, folder: Path) -> list[dict[str, Any]]:
    """lm-eval's configs of the tasks of a task file; their items are written to `folder`."""
    items: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            items.setdefault(json.loads(line)["task"], []).append(json.loads(line))
    configs = []
    for name, rows in items.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        choice = "choices" in rows[0]
        config: dict[str, Any] = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "output_type": "multiple_choice" if choice else "loglikelihood",
            "doc_to_text": "{{question}}" if choice else "{{prompt}}",
            "doc_to_target": "{{answer}}" if choice else "{{completion}}",
            "target_delimiter": " " if choice else "",
            "metric_list": [{"metric": "acc"}],
        }
        configs.append(config | ({"doc_to_choice": "{{choices}}"} if choice else {}))
    return configs


def lm_eval_scores(model: Any, tokenizer: Any, tasks: Path) -> dict[str, float]:
    """Accuracy of the model on each task of a task file, by lm-eval."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        done = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
            tasks=lm_eval_tasks(tasks, Path(folder)),
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
    return {name.removeprefix("local_"): found["acc,none"] for name, found in done["results"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--length", type=int, help="tokens per block; default: the recipe's, or 1024")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, help="default: the recipe's, or 1")
    parser.add_argument("--learning-rate", type=float, help="default: the recipe's, or 1e-4")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--train", choices=["mixers", "all"], default="all", help="what is not frozen")
    what.add_argument("--lora", action="store_true", help="train low-rank adapters of the mixers only")
    parser.add_argument("--tasks", type=Path, help="task file to score the trained model on with lm-eval")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    if options.tasks and importlib.util.find_spec("lm_eval") is None:
        raise SystemExit("--tasks needs lm-eval, which is not installed: pip install 'hwsearch[eval]'")
    recipe = recipe_of(options.model, options.train)
    length = options.length or recipe.get("length", 1024)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    if options.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(r=16, target_modules=MIXER_PROJECTIONS, task_type="CAUSAL_LM")
        )
    elif options.train == "mixers":
        freeze_all_but_mixers(model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch or recipe.get("batch", 1),
            learning_rate=options.learning_rate or recipe.get("learning_rate", 1e-4),
            warmup_steps=round(recipe.get("warmup", 0.0) * options.steps),
            weight_decay=recipe.get("weight_decay", 0.0),
            activation_checkpointing=not options.lora,
            lr_scheduler_type="cosine",
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            seed=options.seed,
        ),
        train_dataset=Blocks(read_text(options.text, tokenizer), length=length),
    )
    trainer.train()
    trained = model.merge_and_unload() if options.lora else model
    trained.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    if options.tasks:
        scores = lm_eval_scores(trained.eval(), tokenizer, options.tasks)
        print(json.dumps({"accuracy": scores}))


if __name__ == "__main__":
    main()
