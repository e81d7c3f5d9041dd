"""The attack sweep of one stage: warm worker processes of one thread, beside one process that runs the rates in turn.

The paper's ten rates on a model of `tiny`'s shape with the same batches and evaluations. Runs follow one another; what
counts are the ratios of one run, on an idle machine.

    python benchmarks/attack_sweep.py --steps 1200
"""

import argparse
import time

from undo_probe.attacks.one_model import attack_once
from undo_probe.config import AttackConfig
from undo_probe.jobs import Job, run_jobs, values_of
from undo_probe.models import build
from undo_probe.presets import preset
from undo_probe.tasks import build_task
from undo_probe.training import Context

RATES = (1e-6, 4e-6, 7e-6, 1e-5, 5e-5, 7e-5, 1e-4, 4e-4, 7e-4, 1e-3)
LOOKS = (0, 1, 2, 5, 10, 25, 50, 100, 200)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=1200)
parser.add_argument("--workers", type=int, default=2)


def one_rate(rate: float, steps: int, threads: int) -> float:
    """An attack at one rate; the retain accuracy at its end, so that the ways can be seen to agree."""
    config = preset("tiny")
    task = build_task(config.task, 0)
    model = build(config.model, task.d_vocab, task.n_ctx, 0)
    looks = (*(step for step in LOOKS if step < steps), steps)
    settings = AttackConfig(learning_rates=(rate,), steps=steps, eval_steps=looks)
    _, correct = attack_once(model, task, settings, rate, Context(threads=threads))
    return float(correct["retain"][-1].mean())


def sweep(steps: int, workers: int, threads: int) -> tuple[float, list[float]]:
    """Seconds of wall time, and what every rate ended at."""
    jobs = [Job(f"rate {rate:g}", one_rate, (rate, steps, threads)) for rate in RATES]
    begin = time.perf_counter()
    found = values_of(run_jobs(jobs, workers, threads=threads))
    return time.perf_counter() - begin, found


def main() -> None:
    """Warms everything up, then times the three ways and prints their ratios."""
    asked = parser.parse_args()
    for workers in (1, asked.workers):
        sweep(2, workers, 1)
    together, ends = sweep(asked.steps, asked.workers, 1)
    in_turn, same = sweep(asked.steps, 1, 1)
    two_threads, _ = sweep(asked.steps, 1, 2)
    print(f"{len(RATES)} rates, {asked.steps} steps each; one process in turn takes {in_turn:.0f} s")
    print(f"{asked.workers} workers / one process, one thread: {together / in_turn:.2f}")
    print(f"{asked.workers} workers / one process, two threads: {together / two_threads:.2f}")
    print(f"the same results: {ends == same}")


if __name__ == "__main__":
    main()
