"""Does a student take over what its teacher hides? In a world where what a hidden state holds is known exactly.

The teacher is a Persian Rug whose forget outputs are ablated. Students imitate it, from noised weights or random ones,
or are trained on the true features but for the forgotten ones (the oracle of data filtering), or never see those at
all. All of them forget alike; R^2 is what is left of the features in their hidden states, exactly and by a probe.

    python analyses/does_imitation_pass_on_what_was_hidden.py --seeds 3
"""

import argparse
from typing import Any

from undo_probe.persian_rug.distillation import ALPHAS, distillation_table, over_seeds
from undo_probe.persian_rug.training import RugConfig, RugFit

CLEAN = 0.01
"""A student that was never taught the features must have an upper limit of R^2 below this."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--n-s", type=int, default=256, help="features")
parser.add_argument("--r", type=float, default=0.25, help="dimensions over features")
parser.add_argument("--p", type=float, default=0.045, help="how often a feature is on")
parser.add_argument("--phi", type=float, default=0.1, help="share of the features to forget")
parser.add_argument("--alpha", type=float, nargs="*", default=ALPHAS, help="noise of the noised students")
parser.add_argument("--steps", type=int, default=1500)
parser.add_argument("--seeds", type=int, default=3)


def main() -> None:
    """Prints means with Student's 95 % intervals over seeds, and whether the two bars are met."""
    asked = parser.parse_args()
    config = RugConfig(n_s=asked.n_s, r=asked.r, p=asked.p, fit=RugFit(steps=asked.steps))
    table = distillation_table(config, phi=asked.phi, alphas=asked.alpha, seeds=range(asked.seeds))
    found: Any = over_seeds(table)
    limits = zip(found["value"], found["low"], found["high"], strict=True)
    found["text"] = [f"{value:.3g} [{low:.3g}, {high:.3g}]" for value, low, high in limits]
    wide = found.pivot(index="student", columns="quantity", values="text")
    print(f"n_s = {asked.n_s}, r = {asked.r:g}, p = {asked.p:g}, phi = {asked.phi:g}, {asked.seeds} seeds\n")
    print(wide.loc[table["student"].unique(), found["quantity"].unique()].to_string())
    exact = found[found["quantity"] == "r2_forget"].set_index("student")
    kept = exact["value"]["exact imitation"]
    print(
        f"\nexact imitation keeps R^2 = {kept:.4f} of features that are never output; r is {config.n_d / config.n_s:g}"
    )
    for student in ("random, clean targets", "teacher, clean targets", "random, never shown"):
        high = exact["high"][student]
        print(
            f"{student}: R^2 at most {high:.2g}; the bar of {CLEAN} is {'met' if high <= CLEAN else 'not met'}"
        )


if __name__ == "__main__":
    main()
