"""Two edited copies of a real model beside it: what compare's opening words say of each, and what each part costs.

    python benchmarks/compare.py --out FOLDER

One copy is made to lose a relation (NPO), the other only trained on what is kept, for as many steps; the second then
stands as the twin of the first. Times are processor seconds of all threads, so that a busy machine does not count: on
an idle one with two cores the clock shows at least half of them. What several parts share is counted where it is first
needed.
"""

import argparse
import cProfile
import pstats
import resource
import time
from pathlib import Path
from typing import Any

import torch

import undo_probe as up
from undo_probe import losses
from undo_probe.comparison import parts, pictures, result
from undo_probe.config import FitConfig
from undo_probe.models import HookedTransformer, clone
from undo_probe.tasks import Task, asked_task
from undo_probe.training import Context, fit, step_cost

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm", help="a folder or hub id, or smollm after `make smollm`")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--rows", type=int, default=256)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--out", type=Path, required=True, help="a folder for the known set and the two pages")
BATCH, RATE = 8, 5e-5


def facts(place: str, file: Path) -> tuple[HookedTransformer, Task]:
    """The model, and what it knows of European facts (to forget) and of element symbols (to keep)."""
    settings = ["task.name=facts", f"original.source={place}", 'task.forget.groups=["Europe"]']
    settings.append('task.retain.relations=["symbol"]')
    every = up.build_task(asked_task(up.preset("tiny", *settings)), seed=0)
    model = up.load_model(place, n_ctx=every.n_ctx)
    if not file.is_file():
        print(up.known(model, every, file).to_string(index=False))
    return model, up.build_task(asked_task(up.preset("tiny", *settings, f"task.known={file}")), seed=0)


def trained(model: HookedTransformer, task: Task, steps: int) -> HookedTransformer:
    """A copy that goes on with what is kept, and nothing else."""

    def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
        batch = task.batch("retain", BATCH, 0, step)
        return losses.next_token(
            model(batch.tokens[:, :-1], return_type="logits"), batch.tokens, batch.answer_mask
        )

    settings = FitConfig(
        steps=steps, warmup=0, schedule="constant", eval_every=steps, batch_size=BATCH, learning_rate=RATE
    )
    cost = step_cost(model, settings.batch_size, task.n_ctx, passes=3)
    return fit(clone(model), settings, loss, Context(0), cost=cost).model


def seconds(profile: cProfile.Profile) -> dict[str, float]:
    """Processor seconds in each part, whoever called it: the compared pair, or a twin."""
    watched: dict[str, Any] = {
        **parts.BASE,
        **parts.PARTS,
        "points": pictures.joint_points,
        "tokens": pictures.token_rows,
        "page": result.Comparison.write,
    }
    spent = {
        (Path(file).name, line): cumulative
        for (file, line, _), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items()  # pyright: ignore
    }
    codes = {name: function.__code__ for name, function in watched.items()}
    return {
        name: spent.get((Path(code.co_filename).name, code.co_firstlineno), 0.0)
        for name, code in codes.items()
    }


def main() -> None:
    """Edits, compares, prints."""
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    model, task = facts(asked.model, asked.out / "known.json")
    forgot = up.unlearn(model, task, "npo", steps=asked.steps, batch_size=BATCH, learning_rate=RATE)
    kept = trained(model, task, asked.steps)
    for name, edited, twin in (("forgot a relation", forgot, kept), ("trained on", kept, None)):
        profile = cProfile.Profile(time.process_time)
        begun, clock = time.process_time(), time.perf_counter()
        with profile:
            made = up.compare(model, edited, task, twin=twin, names=("original", name), max_rows=asked.rows)
            page = made.write(asked.out / f"{name.replace(' ', '-')}.html")
        total = time.process_time() - begun
        print(f"\n{name} ({page.name})\n{made.words.headline}")
        print(
            f"rows {made.facts['rows']}; {total:.0f} processor seconds, {time.perf_counter() - clock:.0f} by the clock"
        )
        for part, spent in seconds(profile).items():
            print(f"  {part:12} {spent:7.1f}")
        profile.dump_stats(asked.out / f"{page.stem}.prof")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
