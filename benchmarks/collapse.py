"""Collapse: components of streamed vectors against ``torch.pca_lowrank``, and a collapsed update against a plain one.

    python benchmarks/collapse.py

One thread, forms in turn, medians of processor time: only ratios are meant to carry over.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from undo_probe import collapse, linalg
from undo_probe.config import ModelConfig
from undo_probe.models import HookedTransformer, build

SHAPES = ((4096, 512), (8192, 1024), (4096, 2048))
COMPONENTS, TIMES = 24, 5


def vectors(rows: int, width: int) -> Tensor:
    """Gaussian vectors whose i-th principal variance is 1 / i: components that lie close together."""
    draw = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
    return (torch.randn(rows, width, generator=draw) / torch.arange(1, width + 1).sqrt()) @ turn


def streamed(rows: Tensor) -> Tensor:
    """The leading components of vectors that come in batches."""
    seen = linalg.StreamedPCA(rows.shape[1], dtype=torch.float32)
    for batch in rows.split(1024):
        seen.update(batch)
    return seen.components(COMPONENTS).basis


def sketched(rows: Tensor) -> Tensor:
    """The same by the randomised method that the reference code of CIR uses, with its settings."""
    return torch.pca_lowrank(rows, q=COMPONENTS, niter=16)[2]


def medians(forms: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median processor seconds of each form, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(TIMES):
        for name, form in forms.items():
            begun = time.process_time()
            form()
            seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(found) for name, found in seconds.items()}


def components() -> None:
    """Time and error of both methods."""
    for count, width in SHAPES:
        rows = vectors(count, width)
        centred = (rows - rows.mean(0)).double()
        exact = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :COMPONENTS]
        off = [
            float(linalg.principal_angles(form(rows).double(), exact).max().sin())
            for form in (streamed, sketched)
        ]
        found = medians({"streamed": lambda: streamed(rows), "sketched": lambda: sketched(rows)})  # noqa: B023
        ratio = found["streamed"] / found["sketched"]
        print(
            f"{count} x {width}: {ratio:.2f} of pca_lowrank's time; off by {off[0]:.1e}, it by {off[1]:.1e}"
        )


def update() -> None:
    """A step's gradient with its shared directions removed, against the same step without."""
    model = build(ModelConfig(n_layers=4, d_model=256, n_heads=4, d_mlp=1024), 1024, 64, seed=0)
    tokens = torch.randint(0, 1024, (32, 64), generator=torch.Generator().manual_seed(0))
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}

    def loss(model: HookedTransformer, tokens: Tensor) -> Tensor:
        logits = model(tokens, return_type="logits")
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def plain() -> dict[str, Tensor]:
        return dict(zip(named, torch.autograd.grad(loss(model, tokens), list(named.values())), strict=True))

    kept = torch.ones_like(tokens, dtype=torch.bool)
    bases = collapse.collapse_bases(model, [(tokens, kept)], loss, COMPONENTS, COMPONENTS)
    found = medians({"plain": plain, "collapsed": lambda: collapse.collapse_gradients(plain(), bases)})
    print(f"a collapsed update takes {found['collapsed'] / found['plain']:.2f} of a plain one")


if __name__ == "__main__":
    torch.set_num_threads(1)
    components()
    update()
