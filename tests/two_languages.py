"""A toy corpus of two made-up languages that share no word: a user's folder of text for tests."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from undo_probe.task_config import LanguageConfig, TextSource

ENGLISH = "the cat dog tree house sees finds likes small old red green with near under and".split()
KOREAN = "고양이 나무 집 바다 사람 하늘 본다 찾는다 좋아한다 작은 오래된 붉은 푸른 그리고 아래 옆에".split()
TASK = {
    "vocab": 300,
    "n_ctx": 24,
    "min_characters": 20,
    "near_duplicates": None,
    "forget_shares": (0.5, 0.2, 0.2, 0.1),
    "retain_held_out": 0.15,
    "eval_rows": 24,
}


def sentences(words: Sequence[str], count: int, draw: np.random.Generator) -> str:
    """Text in which each word allows only three others after it: there is something to learn."""
    found, last = [], int(draw.integers(len(words)))
    for _ in range(count):
        last = (3 * last + int(draw.integers(3)) + 1) % len(words)
        found.append(words[last])
    return " ".join(found)


def texts(words: Sequence[str], documents: int, length: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [f"{number} {sentences(words, length, draw)}" for number in range(documents)]


def write(folder: Path, documents: int = 40, length: int = 80) -> Path:
    """``english`` as .txt files, ``korean`` as one .jsonl file."""
    (folder / "english").mkdir(parents=True)
    (folder / "korean").mkdir()
    for number, text in enumerate(texts(ENGLISH, documents, length, 1)):
        (folder / "english" / f"{number}.txt").write_text(text, encoding="utf-8")
    lines = [
        json.dumps({"text": text, "id": n}) for n, text in enumerate(texts(KOREAN, documents, length, 2))
    ]
    (folder / "korean" / "all.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def config(folder: Path, **changes: object) -> LanguageConfig:
    """The task on a folder, its cache beside it."""
    settings = {"text": str(folder), "cache": str(folder.parent / "cache"), **TASK, **changes}
    return LanguageConfig.model_validate(settings)


def source(language: str = "English", **changes: object) -> TextSource:
    return TextSource.model_validate({"language": language, **changes})
