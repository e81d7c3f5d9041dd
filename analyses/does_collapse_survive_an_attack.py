"""At equal harm, is less of what CIR took away brought back than of what the same loss took without collapse?

Every arm unlearns the same original until the same budget is met and is attacked; over five folds every person of T
and V is once in V (`undo_probe.equal_harm`). What is compared is P(answer) on V after the attack, beside the intact
model's under the same attack. Groups of arms: ``sides`` (collapse of nothing, inputs, output gradients, both, and of
as many random directions), ``matched`` (random directions until the weights moved as far as with both; no collapse
until the answers of D are as lost as with both), ``bands`` (updates held to some components), ``refresh`` (directions
found once), ``k`` (how many directions). Intervals are over people in a run, and over runs Student's.

    python analyses/does_collapse_survive_an_attack.py runs/a runs/b runs/c --groups sides matched --table arms.parquet
    python analyses/does_collapse_survive_an_attack.py runs/a --groups k --folds 0 --d
"""

import argparse
from pathlib import Path

from undo_probe.collapse_config import BudgetConfig
from undo_probe.equal_harm import INTACT, Way, difference, equal_harm
from undo_probe.intervals import t_interval
from undo_probe.presets import preset
from undo_probe.task_config import FOLDS

NONE, NEVER = {"k_act": 0, "k_grad": 0}, 10**6
BANDS, COUNTS = ((0, 4), (4, 16), (16, 32), (32, 64), (64, 256)), (0, 1, 4, 8, 16, 24, 32, 48)
BOTH = {"both": Way("cir")}
GROUPS = {
    "sides": {
        "none": Way("cir", NONE), "act": Way("cir", {"k_grad": 0}), "grad": Way("cir", {"k_act": 0}), **BOTH,
        "random": Way("cir", {"basis": "random"}),
    },
    "matched": {
        **BOTH, "random, as far": Way("cir", {"basis": "random", "steps": 400}, by="moved", like="both"),
        "none, as lost": Way("cir", {**NONE, "steps": 400}, by="forgotten", like="both"),
    },
    "bands": {f"band {first} to {end}": Way("cir", {"band": (first, end)}) for first, end in BANDS},
    "refresh": {**BOTH, "found once": Way("cir", {"refresh": NEVER})},
    "k": {f"k={k}": Way("cir", {"k_act": k, "k_grad": k}) for k in COUNTS},
}  # fmt: skip
PAIRS = (
    ("act", "none"), ("grad", "none"), ("both", "none"), ("both", "act"), ("random", "none"), ("both", "random"),
    ("both", "random, as far"), ("both", "none, as lost"), ("found once", "both"),
)  # fmt: skip
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", type=Path, nargs="+", help="folders of runs whose original was trained")
parser.add_argument("--groups", nargs="+", choices=GROUPS, default=["sides"])
parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), default=list(range(FOLDS)))
parser.add_argument("--retain", type=float, default=0.1, help="the budget on retain, in nats a token")
parser.add_argument("--settings", default="facts-tiny", help="the preset whose settings of CIR are used")
parser.add_argument("--d", action="store_true", help="show D, and attack nothing: where settings are chosen")
parser.add_argument("--workers", type=int, default=1)
parser.add_argument(
    "--table", type=Path, help="results are kept in this Parquet file, and not computed again"
)


def main() -> None:
    """Prints every arm's mean, and what arms differ by."""
    asked = parser.parse_args()
    ways = {name: way for group in asked.groups for name, way in GROUPS[group].items()}
    table = equal_harm(
        asked.runs, ways, BudgetConfig(retain=asked.retain), unlearn=preset(asked.settings).unlearn,
        folds=asked.folds, attacked=not asked.d, table=asked.table, workers=asked.workers,
    )  # fmt: skip
    numbers = ["before", *([] if asked.d else ["after"]), "moved", *table.filter(like="kl_")]
    means = table.pivot_table(values=numbers, index="way")[numbers]
    facts, people = (len(table.drop_duplicates(["run", *by])) for by in (["family", "question"], ["family"]))
    print(f"{table['split'].iloc[0]}: {facts} facts of {people} people in {len(asked.runs)} runs")
    print(means.reindex([INTACT, *ways]).round(3).to_string())
    value = "before" if asked.d else "after"
    for one, other in (pair for pair in PAIRS if set(pair) <= set(ways)):
        found = [difference(part, one, other, value) for _, part in table.groupby("run")]
        line = "  ".join(f"{each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}]" for each in found)
        if len(found) > 1:
            over = t_interval([each.value for each in found])
            line += f"; over {over.n} runs {over.value:+.3f} [{over.low:+.3f}, {over.high:+.3f}]"
        print(f"{value}, {one} - {other}: {line}")


if __name__ == "__main__":
    main()
