"""Is a language model's stream a rug, pairs, or neither? A learned dictionary of a hook point, beside nulls.

For each hook point: unit atoms against the Welch floor (excess 1 is a tight frame), over how many dimensions they
spread, how many others an atom hears, their phase, and the kurtosis of the measured interference; then random atoms and
a tight frame of the same shape with the same codes, and the atoms with each code shuffled over rows. Learned atoms are
what one method finds, and features of a language model are neither independent nor equally frequent: this is geometry.

    python analyses/which_regime_is_a_stream_in.py smollm --point blocks.14.hook_resid_post
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor

import undo_probe as up
from undo_probe.persian_rug.bridge import regime, stream_regime
from undo_probe.sources import find_source, huggingface_tokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="smollm", help="what up.load_model reads; it has a tokenizer")
parser.add_argument("--point", nargs="+", default=["blocks.14.hook_resid_post"])
parser.add_argument(
    "--text", help="a file of text; by default the manual of the Python language that Python carries"
)
parser.add_argument("--over", type=float, default=1.5, help="atoms over dimensions")
parser.add_argument("--most", type=int, default=6000, help="states")
parser.add_argument("--penalty", type=float, default=0.2)
parser.add_argument("--passes", type=int, default=3)
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
LENGTH, SINKS = (
    128,
    4,
)  # tokens of a row; its first ones attract attention and have another size than all others


def main() -> None:
    """Prints a table for every hook point and seed, and one for the decoders of the MLPs, which need no dictionary."""
    asked = parser.parse_args()
    model = up.load_model(asked.model)
    rows = tokens(asked.model, asked.text, asked.most)
    settings = {"over": asked.over, "most": asked.most, "penalty": asked.penalty, "passes": asked.passes}
    kept = list(range(SINKS, LENGTH))
    for point in asked.point:
        for seed in asked.seeds:
            found, made = stream_regime(model, rows, point, positions=kept, seed=seed, **settings)
            print(
                f"\n{point}, seed {seed}: {found.atoms} atoms in {found.width} dimensions, {made.dead} dead"
            )
            print(
                f"explain {made.explained:.3f} of {made.rows} held-out states; rate {found.rate:.4f}; a rug of this"
            )
            print(f"width would hold {found.held:.0f} such features" if found.held else "width holds none")
            print(found.table().to_string(index=False, float_format="%.3f"))
    for block in {0, model.cfg.n_layers // 2, model.cfg.n_layers - 1}:
        decoder = model.blocks[block].mlp.W_out.detach()
        print(f"\nrows of W_out of the MLP of block {block}: {tuple(decoder.shape)}")
        print(regime(decoder).table().to_string(index=False, float_format="%.3f"))


def tokens(model: str, path: str | None, states: int) -> Tensor:
    """Rows of text, as many as the states need and half as many more."""
    text = Path(path).read_text(encoding="utf-8") if path else "\n\n".join(topics.values())
    tokenizer = huggingface_tokenizer(find_source(model))
    ids = torch.tensor(tokenizer(text[: 12 * states], add_special_tokens=False)["input_ids"])
    rows = min(len(ids) // LENGTH, -(-3 * states // (2 * (LENGTH - SINKS))))
    return ids[: rows * LENGTH].view(rows, LENGTH)


if __name__ == "__main__":
    main()
