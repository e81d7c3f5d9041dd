"""A teacher's most likely answers, kept on disk: students who see the same batches share one forward pass."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe import losses
from undo_probe.config import DistillConfig
from undo_probe.errors import UndoProbeError
from undo_probe.files import atomic_folder, digest, read_json, write_json
from undo_probe.models import HookedTransformer, content_hash, load_tensors, save_tensors
from undo_probe.tasks import Task
from undo_probe.training import Context

CHUNK = 50
"""Micro-steps in a file."""

TopK = tuple[Float[Tensor, "answer k"], Int[Tensor, "answer k"]]


class TopKTeacher:
    """The ``k`` most likely tokens at every answer token of a batch, with their log-probabilities.

    With ``context.cache`` they are kept there, under the hash of the teacher and of what decides the batches. The
    numbers do not depend on whether they were found there: they are computed batch by batch in any case.
    """

    def __init__(
        self, teacher: HookedTransformer, task: Task, mixture: str, settings: DistillConfig, context: Context
    ) -> None:
        """Nothing is computed yet; ``settings.top_k`` must be set."""
        self.teacher, self.task, self.mixture, self.context = teacher, task, mixture, context
        self.k, self.size = min(settings.top_k or 0, teacher.cfg.d_vocab), settings.batch_size
        what = {
            "version": 2,
            "teacher": content_hash(teacher),
            "task": task.fingerprint,
            "batches": [mixture, self.size, context.seed],
            "k": self.k,
            "precision": context.precision,
        }
        self.folder: Path | None = None if context.cache is None else context.cache / digest(what)
        self.held: dict[int, TopK] = {}

    def __call__(self, step: int) -> TopK:
        """Log-probabilities and tokens of one micro-step's answer tokens, likeliest first."""
        if self.folder is None:
            return self._ask(step)
        if step not in self.held:
            self.held = self._chunk(self.folder, step // CHUNK)
        log_p, tokens = self.held[step]
        return log_p.to(self.context.device), tokens.to(self.context.device).long()

    def _ask(self, step: int) -> TopK:
        batch = self.task.batch(self.mixture, self.size, self.context.seed, step)
        with torch.no_grad():
            logits = self.teacher(batch.tokens[:, :-1].to(self.context.device), return_type="logits")
            chosen = losses.answer_logits(logits, batch.answer_mask.to(self.context.device))
            values, tokens = chosen.float().log_softmax(dim=-1).topk(self.k, dim=-1)
        return values, tokens

    def _chunk(self, folder: Path, number: int) -> dict[int, TopK]:
        place = folder / f"{number:06d}"
        found = _read(place)
        steps = range(number * CHUNK, (number + 1) * CHUNK)
        if found is None:
            asked = {step: self._ask(step) for step in steps}
            found = {f"log_p.{step}": log_p for step, (log_p, _) in asked.items()}
            found |= {f"tokens.{step}": tokens.int() for step, (_, tokens) in asked.items()}
            _write(place, found)
        return {step: (found[f"log_p.{step}"], found[f"tokens.{step}"]) for step in steps}


def _write(place: Path, tensors: dict[str, Tensor]) -> None:
    # another student's process may have been quicker: its file is the same, and stays
    with atomic_folder(place, keep_existing=True) as target:
        write_json(
            target / "content.json", {"content": save_tensors(tensors, target / "answers.safetensors")}
        )


def _read(place: Path) -> dict[str, Tensor] | None:
    """The tensors of a chunk; None, and nothing left there, where they are missing or damaged."""
    from shutil import rmtree

    try:
        return load_tensors(place / "answers.safetensors", read_json(place / "content.json")["content"])
    except (UndoProbeError, KeyError, TypeError):
        rmtree(place, ignore_errors=True)
        return None
