"""Training throughput of the loop on a HookedTransformer, beside its peers on the same batches.

Peers: the Hugging Face GPT-2 of the same shape in float32, and a plain loop over the library's own HookedTransformer
(no fused attention, norm or optimiser), in float32 and under bf16 autocast. Runs alternate; what counts are the ratios
of one run. Beside them, what bf16 can give on this processor: one product of the MLP in both precisions.

    python benchmarks/throughput.py --threads 1
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import GPT2Config, GPT2LMHeadModel

from undo_probe.config import FitConfig
from undo_probe.models import clone
from undo_probe.training import Context, fit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--layers", type=int, default=8)
parser.add_argument("--width", type=int, default=256)
parser.add_argument("--vocab", type=int, default=4096)
parser.add_argument("--rows", type=int, default=8)
parser.add_argument("--context", type=int, default=128)
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--threads", type=int, default=1)
Step = Callable[[], None]


def plain(asked: argparse.Namespace) -> HookedTransformer:
    """The library's own model with seeded weights."""
    shape = HookedTransformerConfig(
        n_layers=asked.layers, d_model=asked.width, n_heads=asked.width // 32, d_head=32, d_mlp=4 * asked.width,
        n_ctx=asked.context, d_vocab=asked.vocab, act_fn="gelu_new", normalization_type="LN", device="cpu", seed=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HookedTransformer(shape, move_to_device=False)


def hugging_face(asked: argparse.Namespace) -> GPT2LMHeadModel:
    """GPT-2 of the same shape, without dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=asked.vocab, n_positions=asked.context, n_embd=asked.width, n_layer=asked.layers,
            n_head=asked.width // 32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        )
    )  # fmt: skip


def loop(
    logits: Callable[[torch.Tensor], torch.Tensor], parameters, tokens, steps: int, autocast: bool
) -> float:
    """Seconds of a plain training loop."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    begin = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = next_token(logits(tokens), tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return time.perf_counter() - begin


def next_token(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of every token but the first."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def ours(model: HookedTransformer, tokens: torch.Tensor, asked: argparse.Namespace, precision: str) -> float:
    """Seconds of the project's loop: steps alone, without what it does once."""
    settings = FitConfig(steps=asked.steps, batch_size=asked.rows, learning_rate=1e-4, warmup=0)
    context = Context(precision=precision, threads=asked.threads)
    done = fit(model, settings, lambda m, step: next_token(m(tokens, return_type="logits"), tokens), context)
    return done.ledger.seconds


def products(asked: argparse.Namespace) -> float:
    """How much faster the MLP's product is in bf16 than in float32: below 1 where the processor is slower at it."""
    states, weight = (
        torch.randn(asked.rows * asked.context, asked.width),
        torch.randn(asked.width, 4 * asked.width),
    )
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(20 * asked.repeats):
        for dtype, found in seconds.items():
            left, right = states.to(dtype), weight.to(dtype)
            begin = time.perf_counter()
            torch.mm(left, right)
            found.append(time.perf_counter() - begin)
    return statistics.median(seconds[torch.float32]) / statistics.median(seconds[torch.bfloat16])


def main() -> None:
    """Alternates the loops and prints medians and ratios."""
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    tokens = torch.randint(
        asked.vocab, (asked.rows, asked.context), generator=torch.Generator().manual_seed(0)
    )
    library, peer = plain(asked), hugging_face(asked)
    own = clone(library)
    ways = {
        "loop, float32": lambda: ours(own, tokens, asked, "no"),
        "Hugging Face GPT-2, float32": lambda: loop(
            lambda t: peer(t).logits, peer.parameters(), tokens, asked.steps, False
        ),
        "loop, bf16 autocast": lambda: ours(own, tokens, asked, "bf16"),
        "plain HookedTransformer loop, bf16 autocast": lambda: loop(
            lambda t: library(t, return_type="logits"), library.parameters(), tokens, asked.steps, True
        ),
        "plain HookedTransformer loop, float32": lambda: loop(
            lambda t: library(t, return_type="logits"), library.parameters(), tokens, asked.steps, False
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(asked.repeats + 1):
        for name, way in ways.items():
            found = way()
            if repeat:  # the first round warms up
                seconds[name].append(found)
    count = asked.rows * asked.context * asked.steps
    rate = {name: count / statistics.median(values) for name, values in seconds.items()}
    for name, value in rate.items():
        print(f"{name:46}{value:9.0f} tokens/s")
    names = list(rate)
    for one, other in ((0, 1), (2, 4), (2, 3), (0, 4), (3, 4)):
        print(f"{names[one]} / {names[other]}: {rate[names[one]] / rate[names[other]]:.2f}")
    print(f"a matrix product alone, bf16 / float32: {products(asked):.2f}")


if __name__ == "__main__":
    main()
