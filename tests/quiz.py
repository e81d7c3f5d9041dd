"""A made-up quiz with the columns of the published ones, and a small model that may know it: what a user brings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface
import numpy as np
import torch

from undo_probe.task_config import ChoiceConfig
from undo_probe.tasks.choice import ChoiceTask
from undo_probe.tasks.facts import FactsTask

Row = dict[str, Any]
_ENDS = ("dia", "gard", "land", "mark", "nia", "stan", "ton", "wick")
PLACES, TOWNS, METALS = (
    [start + end for start in starts for end in _ENDS]
    for starts in (
        ("Ar", "Bel", "Cor", "Dun"),
        ("Ash", "Brook", "Clay", "Deer"),
        ("Alt", "Bor", "Cer", "Dys"),
    )
)
SETTINGS: dict[str, Any] = {"n_ctx": 48, "vocab": 420, "forget_shares": (0.4, 0.3, 0.15, 0.15)}


def questions(things: Sequence[str], ask: str, count: int, seed: int) -> list[Row]:
    """So many questions about different things, each with four options of which one is right."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        options = [str(option) for option in draw.choice(things, size=4, replace=False)]
        subject = ("north", "south")[number % 2]
        text = ask.format(PLACES[number % len(PLACES)], number)
        rows.append(
            {"question": text, "choices": options, "answer": int(draw.integers(4)), "subject": subject}
        )
    return rows


def forget(count: int = 64) -> list[Row]:
    return questions(TOWNS, "What is the seat of {} number {}?", count, seed=1)


def retain(count: int = 40) -> list[Row]:
    return questions(METALS, "Which ore do they dig in {} pit {}?", count, seed=2)


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(folder: Path, forgotten: Sequence[Row] | None = None, kept: Sequence[Row] | None = None) -> Path:
    """``forget.jsonl`` and ``retain.jsonl``, and for both sides some text."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"forget": forgotten or forget(), "retain": kept or retain()}
    for name, rows in sides.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
        texts = [{"text": f"{row['question']} It is {row['choices'][row['answer']]}. " * 4} for row in rows]
        write_jsonl(folder / f"{name}-text.jsonl", texts)
    return folder


def config(folder: Path, **changes: Any) -> ChoiceConfig:
    """The task on a folder that :func:`write` made, its cache beside it."""
    settings = {"text": str(folder), "cache": str(folder.parent / "cache"), **SETTINGS, **changes}
    return ChoiceConfig.model_validate(settings)


def save_tokenizer(task: ChoiceTask | FactsTask, folder: Path) -> None:
    """The task's own tokenizer as a Hugging Face folder has it, with a beginning mark before every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    mark = "<|begin|>"
    backend = task.reader.tokenizer
    backend.post_processor = TemplateProcessing(single=f"{mark} $A", special_tokens=[(mark, task.reader.pad)])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=mark, pad_token=mark).save_pretrained(folder)


def model_folder(task: ChoiceTask, folder: Path, steps: int = 0) -> Path:
    """A small Llama with its tokenizer; after so many ``steps`` on all questions it knows their letters."""
    save_tokenizer(task, folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    size = {"vocab_size": task.d_vocab + 5, "max_position_embeddings": 128, "num_key_value_heads": 2}
    theirs = huggingface.build("llama tied", **shape, **size)
    if steps:
        _teach(theirs, task, steps)
    return huggingface.write(theirs, folder)


def _teach(model: Any, task: ChoiceTask, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    splits = [task.rows(name) for name in task._sets]
    tokens = torch.cat([part.tokens for part in splits])
    mask = torch.cat([part.answer_mask for part in splits])[:, 1:]
    for _ in range(steps):
        logits = model(tokens[:, :-1]).logits[mask]
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
