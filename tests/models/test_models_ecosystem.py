"""What users do with a model: transformers' Trainer, PEFT, torch.compile, lm-eval, each on a tiny hybrid on the CPU."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM

from hwsearch.models.hybrid import HybridForCausalLM
from hwsearch.searchspace.mixers import MixerSpec, NoMixer
from tests.models import tiny

STACK: tuple[MixerSpec, ...] = (*tiny.LINEAR[:1], tiny.FULL, *tiny.LINEAR[1:2], NoMixer(), tiny.WINDOW)


class Repeats(Dataset[dict[str, list[int]]]):
    """Sequences of different lengths that repeat one of a few patterns: learned within some tens of steps."""

    def __init__(self, count: int) -> None:
        self.rows = [[(3 + i % 3) * (1 + j % 2) for j in range(12 + i % 5)] for i in range(count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Padded on the right, as collators of language models do it."""
    longest = max(len(row["input_ids"]) for row in rows)
    pads = [[0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": torch.tensor([r["input_ids"] + pad for r, pad in zip(rows, pads, strict=True)]),
        "labels": torch.tensor([r["labels"] + [-100] * len(pad) for r, pad in zip(rows, pads, strict=True)]),
        "attention_mask": torch.tensor(
            [[1] * len(r["labels"]) + pad for r, pad in zip(rows, pads, strict=True)]
        ),
    }


def train(model: torch.nn.Module, folder: Path, *, checkpointing: bool) -> float:
    """The loss of the evaluation after a short training."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="Trainer needs accelerate: pip install 'hwsearch[train]'")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=30,
        per_device_train_batch_size=8,
        learning_rate=2e-2,
        activation_checkpointing=checkpointing,
        save_steps=30,
        logging_steps=10,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    data = Repeats(64)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, data_collator=collate
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after: float = trainer.evaluate()["eval_loss"]
    assert after < before / 3
    return after


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_trainer_learns_saves_and_loads(tmp_path: Path, checkpointing: bool) -> None:
    model = tiny.model(*STACK)
    train(model, tmp_path, checkpointing=checkpointing)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-30")
    ids = tiny.tokens(1, 9)
    assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model.eval(), ids))
    assert (tmp_path / "checkpoint-30" / "modeling_hwsearch.py").is_file()


def test_peft_trains_adapters_of_every_mixer_and_merges_them(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'hwsearch[train]'")
    model = tiny.model(*STACK)
    plain = copy.deepcopy(model)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    train(adapted, tmp_path / "run", checkpointing=False)
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    ids = tiny.tokens(1, 9)
    expected = tiny.logits(adapted.eval(), ids)
    assert tiny.largest_difference(tiny.logits(again, ids), expected) < 1e-5
    assert again.generate(input_ids=ids, max_new_tokens=3).shape == (1, 12)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, HybridForCausalLM)
    assert tiny.largest_difference(tiny.logits(merged, ids), expected) < 1e-4


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_example_trains_a_built_folder(tmp_path: Path, lora: bool) -> None:
    pytest.importorskip("peft", reason="needs peft: pip install 'hwsearch[train]'")
    model, text, out = tmp_path / "model", tmp_path / "text.txt", tmp_path / "out"
    before = tiny.model(*STACK)
    before.save_pretrained(model)
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(model)
    text.write_text(tokenizer.decode([3, 6] * 400))
    script = Path(__file__).parents[2] / "examples" / "finetune.py"
    command = [script, model, text, "-o", out, "--length", "16", "--steps", "20", "--batch", "4"]
    done = subprocess.run(
        [sys.executable, *map(str, command), "--learning-rate", "0.02", *(["--lora"] if lora else [])],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(script.parents[1])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trained = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([[3, 6] * 8])
    with torch.no_grad():
        losses = [float(m(ids, labels=ids).loss) for m in (before, trained)]
    assert losses[1] < losses[0] / 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler (g++)")
def test_torch_compile_of_the_forward_gives_the_same_logits() -> None:
    model = tiny.model(*STACK[:2])
    ids = tiny.tokens(2, 40)
    expected = tiny.logits(model, ids, use_cache=False)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert tiny.largest_difference(tiny.logits(compiled, ids, use_cache=False), expected) < 1e-4


def test_lm_eval_scores_a_local_task(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'hwsearch[eval]'")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = tiny.model(*STACK)
    train(model, tmp_path / "run", checkpointing=False)
    tokenizer = tiny.tokenizer()
    questions = [
        {
            "question": tokenizer.decode([3 + i, 6 + 2 * i] * 4 + [3 + i]),
            "choices": [3, 6, 9, 12],
            "answer": i,
        }
        for i in range(3)
    ]
    for row in questions:
        row["choices"] = [tokenizer.decode([6 + 2 * i]) for i in range(3)]
    (tmp_path / "task.jsonl").write_text("\n".join(json.dumps(row) for row in questions * 4))
    task = {
        "task": "repeats",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "task.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    scored = simple_evaluate(
        model=HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=4, device="cpu"),
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    assert scored["results"]["repeats"]["acc,none"] == 1.0
