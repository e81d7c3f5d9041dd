"""Which measures see what is left of a capability? Scored where the truth is known in closed form.

In a Persian Rug, an autoencoder whose loss is known, features are weakened dose by dose in the encoder: how much of
them is left follows from the dose, and so does the loss of a relearning attack. Each measure of the suite is put on the
scale of survival (0: ablated, 1: the original). Beside bias, coverage and rank agreement: what it says of two models
that know all, the original with its hidden state turned (a twin) and with its outputs ablated (hidden).

    python analyses/which_measures_see_what_is_left.py --seeds 20
"""

import argparse

from undo_probe.persian_rug.calibration import MARGIN, calibrate, scores

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--n-s", type=int, default=256, help="features")
parser.add_argument("--r", type=float, default=0.25, help="dimensions over features")
parser.add_argument("--p", type=float, default=0.045, help="how often a feature is on")
parser.add_argument("--phi", type=float, default=0.1, help="share of the features whose dose is varied")
parser.add_argument("--seeds", type=int, default=10)


def main() -> None:
    """Prints the scores, survival by dose, and the answer in four lines."""
    asked = parser.parse_args()
    cells = calibrate(
        asked.n_s,
        asked.r,
        asked.p,
        phi=asked.phi,
        seeds=range(asked.seeds),
        progress=lambda done: print(done, flush=True),
    )
    found = scores(cells)
    print(
        f"\nn_s = {asked.n_s}, r = {asked.r:g}, p = {asked.p:g}, phi = {asked.phi:g}, {asked.seeds} seeds\n"
    )
    print(found.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    doses = cells[(cells["model"] == "dose") & (cells["scale"] == "survival")]
    print("\nsurvival by dose, mean over seeds")
    print(doses.pivot_table("value", "measure", "dose").to_string(float_format=lambda value: f"{value:.2f}"))
    print(
        doses.groupby("dose")[["true", "true_bits", "relearned"]]
        .first()
        .T.to_string(float_format=lambda v: f"{v:.4f}")
    )
    answer(found[found["scale"] == "survival"].set_index("measure"))


def answer(found) -> None:  # noqa: ANN001
    """Which ones are fooled by a basis, which by suppression, and which may be read as a share of what is left."""
    good = found[~found["basis_dependent"] & ((found["hidden"] - 1).abs() < MARGIN)]
    near = good[good["worst"] < MARGIN]
    print()
    for what, names in (
        ("fooled by a turned basis", found.index[found["basis_dependent"]]),
        ("fooled by ablated outputs", found.index[(found["hidden"] - 1).abs() >= MARGIN]),
        ("by neither", good.index),
        (f"of these within {MARGIN:g} of the truth at every dose", near.index),
    ):
        print(f"{what}: {'; '.join(names) or 'none'}")


if __name__ == "__main__":
    main()
