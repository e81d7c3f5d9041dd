"""Do distance and lens say more of a student than of its twin, which knows everything? Over seeds, at every alpha.

Reads finished runs with score.also=["lens"], one a seed. At the probed layer, with Student's interval and a sign-flip
test over seeds: how much further the student's states lie than its twin's, how much less like the original's (CKA), and
how many bits a token fewer the lens reads, through the original's decoder as it is and after a map fitted on retain
states. Beside each, what an original of another seed shows, which knows everything too.

    python analyses/do_distance_and_lens_exceed_the_twins.py runs/seeds
"""

import argparse
from pathlib import Path

from undo_probe.replicates import by_seed, contrast, read_runs

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders that hold one a seed")
MEASURES = {
    "distance": ("measure == 'relative_distance' and subset == '='", True),
    "CKA": ("measure == 'cka' and subset == '='", False),
    "lens, the original's": ("measure == 'lens_log_probability' and subset == \"original's\"", False),
    "lens, mapped": ("measure == 'lens_log_probability' and subset == 'mapped'", False),
}
"""Name to the readings, and whether they grow with what changed."""


def main() -> None:
    """Prints, for each measure, another seed's original and every student beside its twin."""
    _, readings = read_runs(parser.parse_args().runs)
    for name, (query, grows) in MEASURES.items():
        table = by_seed(readings, f"{query} and task_split == 'forget' and layer == inner")
        seconds = [f"{arm} {table[arm].mean():.3f}" for arm in ("original", "original-b") if arm in table]
        print(f"\n{name}, forget rows, means over {len(table)} seeds: {', '.join(seconds)}")
        for twin in [arm for arm in table if arm.startswith("distilled") and arm.endswith("-twin")]:
            student = twin.removesuffix("-twin")
            means = f"{table[student].mean():.3f} against {table[twin].mean():.3f}"
            pair = (student, twin) if grows else (twin, student)
            print(f"  {means}; {contrast(table, *pair)}")


if __name__ == "__main__":
    main()
