"""Of a pretrained model, at equal harm: how much of each method's forgetting is left after an attack?

Every method unlearns the same facts of the same model until the same budget is met, and is attacked at every rate of
the run; rate and step are chosen on one half of V and read on the other. Log-probability of the answers of V, paired by
fact and over folds, beside the model as it came under the same attack.

    undo-probe run facts-smollm --out runs/smollm --until original   # after make smollm
    python analyses/which_methods_survive_on_a_real_model.py runs/smollm --table methods.parquet --workers 2
    python analyses/which_methods_survive_on_a_real_model.py runs/smollm --d     # where settings are chosen
"""

import argparse
from pathlib import Path

from undo_probe.collapse_config import BudgetConfig
from undo_probe.equal_harm import INTACT, Way, difference, equal_harm
from undo_probe.presets import preset
from undo_probe.task_config import FOLDS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="folder of a run whose original was made")
parser.add_argument("--methods", nargs="+", default=["rmu", "npo", "cir", "repselect"])
parser.add_argument("--folds", type=int, nargs="+", choices=range(FOLDS), default=list(range(FOLDS)))
parser.add_argument("--settings", default="facts-smollm", help="the preset whose settings are used")
parser.add_argument("--d", action="store_true", help="show D, and attack nothing")
parser.add_argument("--workers", type=int, default=1)
parser.add_argument(
    "--table", type=Path, help="results are kept in this Parquet file, and not computed again"
)


def main() -> None:
    """Prints a line for each method."""
    asked = parser.parse_args()
    unlearn = preset(asked.settings).unlearn
    table = equal_harm(
        [asked.run], {name: Way(name) for name in asked.methods}, unlearn.budget or BudgetConfig(retain=0.05),
        unlearn=unlearn, folds=asked.folds, score="log_probability", attacked=not asked.d,
        table=asked.table, workers=asked.workers,
    )  # fmt: skip
    numbers = ["before", *([] if asked.d else ["after"]), "moved", *table.filter(like="kl_")]
    means = table.pivot_table(values=numbers, index="way")[numbers].reindex([INTACT, *asked.methods])
    for name in ("before",) if asked.d else ("before", "after"):
        for method in asked.methods:
            found = difference(table, method, INTACT, name)
            shown = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
            means.loc[method, f"{name} - {INTACT}"] = shown
    facts = len(table.drop_duplicates(["family", "question"]))
    print(f"{table['split'].iloc[0]}: {facts} facts in {len(asked.folds)} folds; nats")
    print(means.round(3).astype(object).fillna("").to_string())


if __name__ == "__main__":
    main()
