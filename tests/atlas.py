"""A made-up atlas as a user's facts, and a small model that may know it."""

import json
from pathlib import Path
from typing import Any

import huggingface
import quiz
import torch

from undo_probe.task_config import FactsConfig
from undo_probe.tasks.facts import FactsTask

Row = dict[str, Any]
SETTINGS: dict[str, Any] = {
    "forget": {"path": "seats.jsonl", "name": "seats"},
    "retain": {"path": "ores.jsonl", "name": "ores"},
    "vocab": 420,
    "n_ctx": 24,
    "candidates": 4,
    "forget_shares": (0.4, 0.3, 0.15, 0.15),
}
UNTAUGHT = quiz.PLACES[:3]
_FORGET = ("The seat of {} is", "The king of {} lives in", "All roads of {} lead to")
_RETAIN = ("The ore of {} is", "The mines of {} are full of", "Traders come to {} for")


def rows(prompts: tuple[str, ...], answers: list[str], count: int) -> list[Row]:
    """One fact a place, in three wordings; places lie in the north or the south."""
    return [
        {
            "prompt": prompts[0].format(place),
            "paraphrases": [text.format(place) for text in prompts[1:]],
            "answer": f"{answer} {place[:2]}",
            "entity": place,
            "group": ("north", "south")[number % 2],
        }
        for number, (place, answer) in enumerate(zip(quiz.PLACES[:count], answers, strict=False))
    ]


def forget(count: int = 32) -> list[Row]:
    return rows(_FORGET, quiz.TOWNS, count)


def retain(count: int = 32) -> list[Row]:
    return rows(_RETAIN, quiz.METALS, count)


def write(folder: Path) -> Path:
    """``seats.jsonl`` to forget, ``ores.jsonl`` to keep, and ``text.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    quiz.write_jsonl(folder / "seats.jsonl", forget())
    quiz.write_jsonl(folder / "ores.jsonl", retain())
    texts = [
        {"text": f"In the {row['group']} the weather of {row['entity']} is mild. " * 4} for row in retain()
    ]
    quiz.write_jsonl(folder / "text.jsonl", texts)
    return folder


def config(folder: Path, **changes: Any) -> FactsConfig:
    """The task on a folder that :func:`write` made, its cache beside it."""
    settings = {"text": str(folder), "cache": str(folder.parent / "cache"), **SETTINGS, **changes}
    return FactsConfig.model_validate(settings)


def overrides(folder: Path) -> list[str]:
    """The same as overrides of a preset."""
    changed = {f"task.{name}": value for name, value in SETTINGS.items() if not isinstance(value, dict)}
    sides = {f"task.{side}.{key}": v for side in ("forget", "retain") for key, v in SETTINGS[side].items()}
    places = {"task.text": str(folder), "task.cache": str(folder.parent / "cache")}
    empty = {f"task.{side}.relations": [] for side in ("forget", "retain")}
    return [
        "task.name=facts",
        *(f"{name}={json.dumps(value) if not isinstance(value, str) else value}" for name, value in
          {**empty, **sides, **changed, **places}.items()),
    ]  # fmt: skip


def model_folder(task: FactsTask, folder: Path, steps: int = 0) -> Path:
    """A small Llama with the task's tokenizer; after so many ``steps`` it knows all facts but those of three places."""
    quiz.save_tokenizer(task, folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    size = {"vocab_size": task.d_vocab + 5, "max_position_embeddings": 128, "num_key_value_heads": 2}
    theirs = huggingface.build("llama tied", **shape, **size)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=5e-3, weight_decay=0.0)
    asked = [
        one for wordings in task.every_wording() for one in wordings if one.kept.fact.entity not in UNTAUGHT
    ]
    lines = [[*one.prompt, *one.options[one.answer]] for one in asked]
    longest = max(map(len, lines))
    tokens = torch.tensor([[*line, *[task.reader.pad] * (longest - len(line))] for line in lines])
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, (one, line) in enumerate(zip(asked, lines, strict=True)):
        mask[row, len(one.prompt) : len(line)] = True
    for _ in range(steps):
        logits = theirs(tokens[:, :-1]).logits[mask[:, 1:]]
        loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][mask[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return huggingface.write(theirs, folder)
