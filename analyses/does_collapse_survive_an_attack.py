"""At equal harm, is less of what CIR took away brought back than of what the same loss took without collapse?

Every arm unlearns the same original until the same budget is met: without collapse, with that of inputs, of output
gradients, of both, and of as many random directions. Each is attacked at every rate of the run; rate and step are
chosen on one half of V and read on the other. P(answer) on V stands beside the intact model's under the same attack;
intervals are over people, and over runs Student's. Choose settings with --d, which shows D and attacks nothing.

    python analyses/does_collapse_survive_an_attack.py runs/a runs/b --retain 0.1 --set step_norm=0.5
    python analyses/does_collapse_survive_an_attack.py runs/a --d --k 4 8 16 24 32 48 --set 'loss="maxent"'
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from undo_probe.attacks.relearn import attack_table
from undo_probe.collapse_config import BudgetConfig, CIRConfig
from undo_probe.evaluation import answer_log_probability
from undo_probe.intervals import paired_difference, t_interval
from undo_probe.models import HookedTransformer
from undo_probe.pipeline import load_run
from undo_probe.stages.unlearn.cir import cir
from undo_probe.tasks import TokenSet
from undo_probe.training import Context

SIDES: dict[str, dict[str, Any]] = {
    "none": {"k_act": 0, "k_grad": 0}, "act": {"k_grad": 0}, "grad": {"k_act": 0}, "both": {},
    "random": {"basis": "random"},
}  # fmt: skip
PAIRS = (("act", "none"), ("grad", "none"), ("both", "none"), ("random", "none"), ("both", "act"))
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", type=Path, nargs="+", help="folders of runs whose original was trained")
parser.add_argument("--retain", type=float, default=0.1, help="the budget on retain, in nats a token")
parser.add_argument("--set", nargs="*", default=[], help="settings of unlearn.cir: name=value, in JSON")
parser.add_argument("--k", type=int, nargs="*", default=[], help="directions on both sides, for the arms")
parser.add_argument("--d", action="store_true", help="show D, and attack nothing")


def main() -> None:
    """Prints a line for each arm of each run, and what arms differ by."""
    asked = parser.parse_args()
    own = {name: json.loads(value) for name, _, value in (each.partition("=") for each in asked.set)}
    arms = {f"k={k}": {"k_act": k, "k_grad": k} for k in asked.k} or SIDES
    differences: dict[tuple[str, str], list[float]] = {}
    for folder in asked.runs:
        run = load_run(folder)
        original, after = run.model("original"), {}
        rows = run.task.rows("forget_D" if asked.d else "forget_V")
        for name, changed in {"intact": {}, **arms}.items():
            settings = CIRConfig(**{**own, **changed}, budget=BudgetConfig(retain=asked.retain))
            done = None if name == "intact" else cir(original, run.task, settings, Context(run.config.seed))
            model = original if done is None else done.model
            line = f"{folder.name:10}{name:8}before {probability(model, rows).mean():.3f}"
            if not asked.d:
                table = attack_table(model, run.task, run.config.attack, run.config.seed, score=probability)
                after[name] = table.cumulative_max()[-1]
                line += f"  after {after[name].mean():.3f} (rate {table.best_rate():g})"
            moved = "" if done is None else f"  moved {done.extra['budget']['moved']:5.2f}  {done.stopped}"
            print(line + moved, flush=True)
        for pair in PAIRS if after and arms is SIDES else ():
            found = paired_difference(after[pair[0]], after[pair[1]], rows.families)
            differences.setdefault(pair, []).append(found.value)
            print(f"  after, {' - '.join(pair):14}{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
    for pair, values in differences.items() if len(asked.runs) > 1 else ():
        over = t_interval(values)
        print(
            f"over {over.n} runs, {' - '.join(pair):14}{over.value:+.3f} [{over.low:+.3f}, {over.high:+.3f}]"
        )


def probability(model: HookedTransformer, rows: TokenSet) -> np.ndarray:
    """Of each row's answer."""
    return np.exp(answer_log_probability(model, rows))


if __name__ == "__main__":
    main()
