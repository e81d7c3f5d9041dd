"""Where in the residual stream does distillation act?

Reads a finished run. For every alpha and layer, on held-out forget and retain questions at the last prompt token: how
much nearer to the original the student lies than the noised model it was made from (share of the original's norm), and
how many bits a token the noised model gains on the student's states after that block: repair shows on retain.

    python analyses/where_in_the_stream_does_distillation_act.py runs/demo
"""

import argparse
from pathlib import Path

import numpy as np

import undo_probe as up
from undo_probe import intervals
from undo_probe.activations import residual_streams
from undo_probe.figures.look import layer_label
from undo_probe.measures.depth import drops
from undo_probe.measures.drift import row_distances
from undo_probe.measures.patching import places
from undo_probe.measures.stitches import answer_positions, asked_rows
from undo_probe.models import HookedTransformer
from undo_probe.records import Arm
from undo_probe.store import Run
from undo_probe.tasks import TokenSet

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="the folder of a finished run")


def main() -> None:
    """Prints a block of lines for every pair of noised model and student, twins included."""
    run = up.load_run(parser.parse_args().run)
    pairs = {(arm.method, arm.alpha, arm.variant): arm for arm in run.arms if arm.stage == "noised"}
    print(
        "distance to the original, noised -> distilled: change; bits a token gained by the student's states"
    )
    for arm in run.arms:
        start = pairs.get((arm.method, arm.alpha, arm.variant))
        if arm.stage == "distilled" and start is not None:
            show(run, start, arm)


def show(run: Run, start: Arm, arm: Arm) -> None:
    """The lines of one student, layer by layer, forget beside retain."""
    models = run.model("original"), run.load(start), run.load(arm)
    columns = [lines(*models, asked_rows(run.task, split)) for split in ("forget", "retain")]
    print(f"\n{arm.label} (95 % intervals over families)\n  {'':16}{'forget':56}retain")
    for layer in columns[0]:
        print(f"  {layer_label(layer):16}" + "".join(f"{column[layer]:56}" for column in columns))


def lines(
    original: HookedTransformer, noised: HookedTransformer, student: HookedTransformer, rows: TokenSet
) -> dict[str, str]:
    """Layer to its line: how far before and after, the change, and the gain by patching."""
    streams = [
        residual_streams(model, rows.tokens, rows.read_position) for model in (original, noised, student)
    ]
    blocks = places(noised, "resid_post", answer_positions(rows), together=True)
    gains = dict(zip([place.hook for place in blocks], -drops(noised, student, rows, blocks), strict=True))
    found = {}
    for layer, reference in streams[0].items():
        far = [row_distances(states[layer][:, 0], reference[:, 0])[1][2] for states in streams[1:]]
        gain = interval(gains[layer], rows) if layer in gains else ""
        found[layer] = (
            f"{far[0].mean():.2f} -> {far[1].mean():.2f}: {interval(far[1] - far[0], rows)}  {gain}"
        )
    return found


def interval(values: np.ndarray, rows: TokenSet) -> str:
    """The mean with its interval over families."""
    found = intervals.mean_interval(values, rows.families, draws=999)
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


if __name__ == "__main__":
    main()
