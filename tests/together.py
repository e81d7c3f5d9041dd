"""What test_ranks.py trains in one process and, as a script under ``accelerate launch``, in two.

``python together.py FOLDER`` writes, for each case, the loss of every step and the weights (first process), and the
hash of the weights that each process ended with.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny

from undo_probe import ranks
from undo_probe.config import (
    DistillConfig,
    FitConfig,
    MaxEntConfig,
    NPOConfig,
    RepNoiseConfig,
    RMUConfig,
    SAMConfig,
)
from undo_probe.models import HookedTransformer, content_hash, save_tensors, weights
from undo_probe.stages import StageResult, unlearn
from undo_probe.stages import distill as distilling
from undo_probe.stages.pretrain import pretrain
from undo_probe.training import Context

SEED = 3
# an odd number of rows, so that shares differ in rows and in answer tokens
QUICK: dict[str, Any] = {"steps": 5, "batch_size": 7, "learning_rate": 2e-3, "warmup": 2, "eval_every": 2}
TAUGHT = DistillConfig(**QUICK, stop="never")


def double(seed: int) -> HookedTransformer:
    """In double precision only a wrong formula can make a difference of 1e-9."""
    return tiny.model(seed).double()


def pretrained(context: Context) -> StageResult:
    fit = FitConfig(**QUICK, accumulate=2)
    return pretrain(tiny.task(), tiny.SHAPE, fit, "pretrain", context)


def distilled(context: Context, settings: DistillConfig = TAUGHT) -> StageResult:
    return distilling.distill(double(5), double(6), tiny.task(), settings, context)


def chunked(context: Context) -> StageResult:
    before, distilling.CHUNKED_FROM = distilling.CHUNKED_FROM, 1
    try:
        return distilled(context)
    finally:
        distilling.CHUNKED_FROM = before


def stopped(context: Context) -> StageResult:
    """A stop rule that holds at once: both models know nothing."""
    return distilled(context, DistillConfig(**QUICK, tolerance=0.5))


def unlearned(method: str, settings: Any) -> Callable[[Context], StageResult]:
    return lambda context: unlearn.METHODS[method](double(5), tiny.task(), settings, context)


CASES: dict[str, Callable[[Context], StageResult]] = {
    "pretrain": pretrained,
    "distill": distilled,
    "distill chunked": chunked,
    "distill stopped": stopped,
    "distill streams": lambda context: distilled(context, TAUGHT.model_copy(update={"activations": 1.0})),
    "distill top_k": lambda context: distilled(context, TAUGHT.model_copy(update={"top_k": 3})),
    "maxent": unlearned("maxent", MaxEntConfig(**QUICK)),
    "sam": unlearned("sam", SAMConfig(**QUICK, accumulate=2)),
    "npo": unlearned("npo", NPOConfig(**QUICK)),
    "rmu": unlearned("rmu", RMUConfig(**QUICK)),
    "repnoise": unlearned("repnoise", RepNoiseConfig(**QUICK)),
}


class Stopped(BaseException):
    """Ends training in the middle, in every process."""


def told(case: str, context: Context) -> tuple[StageResult, list[float]]:
    """The case's result, and the loss of every step."""
    losses: list[float] = []

    def report(step: int, total: int | None = None, **numbers: float) -> None:
        losses.append(numbers["loss"])

    return CASES[case](replace(context, report=report)), losses


def resumed(folder: Path) -> StageResult:
    """Pretraining that was stopped after its third step and goes on from what was kept."""

    def stop(step: int, total: int | None = None, **numbers: float) -> None:
        if step == 4:
            raise Stopped

    context = Context(SEED, folder=folder, save_seconds=0)
    try:
        CASES["pretrain"](replace(context, report=stop))
    except Stopped:
        assert [path.name for path in folder.iterdir()] == ["step-000000003"]
        ranks.agree(None)
    return CASES["pretrain"](context)


def main(folder: Path) -> None:
    hashes: dict[str, str] = {}
    for case in CASES:
        done, losses = told(case, Context(SEED))
        hashes[case] = content_hash(done.model)
        if ranks.is_main():
            save_tensors(weights(done.model), folder / f"{case}.safetensors")
            record = {
                "losses": losses,
                "rows": done.rows,
                "stopped": done.stopped,
                "flops": done.ledger.flops,
                "hash": hashes[case],
            }
            (folder / f"{case}.json").write_text(json.dumps(record))
    hashes["resumed"] = content_hash(resumed(folder / "work").model)
    (folder / f"hashes-{ranks.rank()}-of-{ranks.size()}.json").write_text(json.dumps(hashes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
