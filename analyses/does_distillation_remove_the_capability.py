"""Does distillation remove the capability, or hide it better? The paper's main claim, over several seeds.

Runs a preset once a seed (what is done already is loaded), then prints, with seeds as the unit: accuracy
before the attack, what the attack brings back, what probes read, and the pre-registered contrasts.

    python analyses/does_distillation_remove_the_capability.py --seeds 11 12 13 14 15 16 --out runs/seeds
    python analyses/does_distillation_remove_the_capability.py --preset facts-tiny noise.alphas=[0.4,0.6,0.8]
"""

import argparse
from pathlib import Path

import undo_probe as up
from undo_probe import intervals
from undo_probe.replicates import by_seed, contrast, replicate
from undo_probe.tasks import build_task

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("overrides", nargs="*", help="settings of the preset, section.key=value")
parser.add_argument("--preset", default="tiny")
parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15, 16])
parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
MARGIN = 0.05


def main() -> None:
    """Runs, then prints every table and contrast."""
    asked = parser.parse_args()
    config = up.preset(asked.preset, *asked.overrides)
    target = build_task(config.task, 0).probe_targets[0]
    readings = replicate(config, asked.seeds, asked.out)
    last = f"blocks.{config.model.n_layers - 1}.hook_resid_post"
    bits = f"measure == 'probe_bits' and task_split == 'forget' and subset == '{target}' and layer == "
    retained = f"measure == 'probe_accuracy' and task_split == 'retain' and subset == '{target}'"
    reached = f"measure == 'relearned' and subset == 'step {max(config.attack.eval_steps)}'"
    shown = {
        "accuracy on V before the attack": "measure == 'accuracy' and subset == 'V'",
        "retain accuracy (held-out rows)": "measure == 'accuracy' and subset == 'all'",
        "accuracy on V that the attack reaches (cumulative maximum, cross-fitted)": reached,
        "the same, retain accuracy kept": "measure == 'relearned_utility'",
        f"{target} on forget rows, conditional bits, inner layer": f"{bits}inner",
        f"{target} on forget rows, conditional bits, last layer": f"{bits}'{last}'",
        f"{target} on retain rows, probe accuracy, last layer": f"{retained} and layer == '{last}'",
    }
    for title, query in shown.items():
        frame = by_seed(readings, query)
        print(f"\n{title} (mean and 95 % t interval over {len(frame)} seeds)")
        for arm in frame.columns:
            found = intervals.t_interval(frame[arm].to_numpy(dtype=float))
            print(f"  {arm:28} {found.value:6.3f}  [{found.low:6.3f}, {found.high:6.3f}]")

    frame = by_seed(readings, reached)
    students = [f"distilled-{config.unlearn.method}-{alpha:g}" for alpha in config.noise.alphas]
    chain = ["original", f"unlearned-{config.unlearn.method}", students[len(students) // 2 - 1], students[-1]]
    print("\npre-registered contrasts of what the attack reaches")
    for high, low in zip(chain, chain[1:], strict=False):
        print(f"  {contrast(frame, high, low)}")
    if len(frame) < 2:
        return
    trend = intervals.page_trend(-frame[students].to_numpy(dtype=float))
    print(f"  falling along alpha: Page's trend test, p {trend.p_value:.2g}, n = {trend.n} seeds")
    gap = (frame[students[-1]] - frame["oracle_matched"]).to_numpy(dtype=float)
    equal = intervals.tost(gap, margin=MARGIN, draws=0)
    word = "equivalent" if equal.equivalent else f"not shown; equivalent within {equal.smallest_margin:.3f}"
    print(f"  {students[-1]} against oracle_matched: {equal.difference:.3f}, TOST {MARGIN}: {word}")


if __name__ == "__main__":
    main()
