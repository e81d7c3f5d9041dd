"""Harvesting to disk beside its peers: time, peak memory, and writing speed, on a model of SmolLM2's shape.

Random weights: only the shape matters here. Beside `up.harvest` run the bare forward pass stopped at the same layer,
`run_with_cache` of everything and, where it is installed, nnsight on the same model and points. They alternate; what
counts are the ratios of one run, in CPU seconds (a busy machine changes wall time, shown too, far more).

    python benchmarks/harvest.py
    python benchmarks/harvest.py --layers 6 --width 128 --vocab 1000 --rows 500   # in a minute
"""

import argparse
import functools
import importlib.util
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

import undo_probe as up
from undo_probe.activation_store import write_shard
from undo_probe.activations import stream_points

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--layers", type=int, default=30)
parser.add_argument("--width", type=int, default=576)
parser.add_argument("--vocab", type=int, default=49152)
parser.add_argument("--rows", type=int, default=2000)
parser.add_argument("--context", type=int, default=32)
parser.add_argument("--points", type=int, default=5)
parser.add_argument(
    "--deepest", type=int, help="the last block with a point, counted from 1; by default the last"
)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--shard-mb", type=float, default=64)
parser.add_argument(
    "--memory-of", type=int, help="only say by how much harvesting so many rows raises the peak"
)


def build(asked: argparse.Namespace) -> HookedTransformer:
    """SmolLM2's architecture at the width and depth asked for, seeded."""
    heads = max(1, asked.width // 64)
    shape = HookedTransformerConfig(
        n_layers=asked.layers, d_model=asked.width, n_heads=heads, d_head=asked.width // heads,
        d_mlp=asked.width * 8 // 3, n_ctx=asked.context, d_vocab=asked.vocab, act_fn="silu", gated_mlp=True,
        normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=asked.width // heads,
        n_key_value_heads=heads // 3 if heads % 3 == 0 else None, device="cpu", seed=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HookedTransformer(shape, move_to_device=False)


def with_nnsight(model: HookedTransformer, tokens: torch.Tensor, names: list[str], batch: int) -> None:
    """The same points through nnsight, batch by batch, dropped as they come."""
    import nnsight  # pyright: ignore[reportMissingImports]

    wrapped = nnsight.NNsight(model)
    stop = int(names[-1].split(".")[1]) + 1
    points = [wrapped.blocks[int(name.split(".")[1])].hook_resid_post for name in names]
    with torch.no_grad():
        for start in range(0, len(tokens), batch):
            rows = tokens[start : start + batch]
            with wrapped.trace(rows, return_type=None, stop_at_layer=stop):
                found = nnsight.save([point.output for point in points])
            assert found[-1].shape[:2] == rows.shape


def ways(
    asked: argparse.Namespace, model: HookedTransformer, tokens: torch.Tensor, names: list[str], folder: Path
) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the first is what the others are measured against."""
    stop = int(names[-1].split(".")[1]) + 1
    batches = tokens.split(asked.batch)

    @torch.no_grad()
    def bare() -> None:
        for rows in batches:
            model(rows, return_type=None, stop_at_layer=stop)

    @torch.no_grad()
    def cached() -> None:
        for rows in batches:
            model.run_with_cache(rows)

    def harvested() -> None:
        up.harvest(model, tokens, names, folder, batch_size=asked.batch, shard_mb=asked.shard_mb, quiet=True)

    found: dict[str, Callable[[], object]] = {
        "bare forward to the same layer": bare,
        "streamed, kept nowhere": lambda: stream_points(model, tokens, names, lambda *_: None, asked.batch),
        "harvest": harvested,
        "run_with_cache of everything": cached,
    }
    if importlib.util.find_spec("nnsight"):
        found["nnsight"] = functools.partial(with_nnsight, model, tokens, names, asked.batch)
    else:
        print("nnsight is not installed (pip install nnsight): it is left out")
    return found


def compare(asked: argparse.Namespace, folder: Path) -> None:
    """Alternates the ways and prints their CPU and wall time over the bare pass's."""
    model, tokens, names = setting(asked)
    cpu: dict[str, list[float]] = {}
    wall: dict[str, list[float]] = {}
    timed = ways(asked, model, tokens, names, folder)
    for repeat in range(asked.repeats + 1):
        for name, way in timed.items():
            begin = time.process_time(), time.perf_counter()
            way()
            if repeat:  # the first round warms up
                cpu.setdefault(name, []).append(time.process_time() - begin[0])
                wall.setdefault(name, []).append(time.perf_counter() - begin[1])
            shutil.rmtree(folder, ignore_errors=True)
    first = next(iter(cpu))
    print(f"{first}: {statistics.median(cpu[first]):.1f} CPU s, {statistics.median(wall[first]):.1f} s")
    for name in list(cpu)[1:]:
        ratios = [
            statistics.median(a / b for a, b in zip(taken[name], taken[first], strict=True))
            for taken in (cpu, wall)
        ]
        print(f"{name}: {ratios[0]:.2f} of its CPU time, {ratios[1]:.2f} of its wall time")


def setting(asked: argparse.Namespace) -> tuple[HookedTransformer, torch.Tensor, list[str]]:
    """Model, tokens and the hook points, spread evenly up to the deepest block asked for."""
    torch.set_num_threads(asked.threads)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(asked.vocab, (asked.rows, asked.context), generator=draw)
    deepest = asked.deepest or asked.layers
    blocks = sorted({round((i + 1) * deepest / asked.points) - 1 for i in range(asked.points)})
    return build(asked), tokens, [f"blocks.{block}.hook_resid_post" for block in blocks]


def memory(asked: argparse.Namespace, folder: Path) -> None:
    """Print the mebibytes by which a harvest raises the process's peak above what a few rows take.

    ``ru_maxrss`` is the peak since the process began: the model is built first, and a batch's forward pass run.
    """
    model, tokens, names = setting(asked)
    stream_points(model, tokens[: asked.batch], names, lambda *_: None, asked.batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = tokens[: asked.memory_of]
    up.harvest(model, rows, names, folder, batch_size=asked.batch, shard_mb=asked.shard_mb, quiet=True)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def writing(asked: argparse.Namespace, folder: Path) -> None:
    """Megabytes a second into a shard, hashed and flushed, beside numpy.save with and without a flush."""
    values = np.random.default_rng(0).standard_normal(
        (asked.points, int(asked.shard_mb * 10**6) // 4 // asked.points // asked.width, asked.width)
    )
    states = torch.from_numpy(values).float()
    shard = {f"blocks.{i}.hook_resid_post": part for i, part in enumerate(states)}

    def flushed(path: Path) -> None:
        np.save(path, states.numpy())
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def kept(path: Path) -> None:
        path.mkdir()
        write_shard(path, "key", 0, shard)

    kinds = {"shard": kept, "save": lambda path: np.save(path, states.numpy()), "flushed": flushed}
    speed: dict[str, list[float]] = {name: [] for name in kinds}
    for repeat in range(10 * asked.repeats + 1):
        for name, write in kinds.items():
            folder.mkdir()  # a new file each time: one written over is written slower or quicker
            begin = time.perf_counter()
            write(folder / "new.npy")
            if repeat:
                speed[name].append(states.nbytes / 10**6 / (time.perf_counter() - begin))
            shutil.rmtree(folder)
    shards, plain, safe = (statistics.median(found) for found in speed.values())
    print(
        f"writing, hashed and flushed: {shards:.0f} MB/s; {shards / safe:.2f} of numpy.save with its file flushed "
        f"to the disk, {shards / plain:.2f} of numpy.save into the system's memory"
    )


def main() -> None:
    """Compares time, then memory in processes of their own, then writing."""
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "s"
        if asked.memory_of:
            memory(asked, folder)
            return
        for rows in (asked.rows // 4, asked.rows):
            words = [sys.executable, __file__, *sys.argv[1:], "--memory-of", str(rows)]
            grown = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
            print(f"harvesting {rows} rows raises peak memory by {grown:.0f} MiB")
        writing(asked, Path(temporary) / "w")
        compare(asked, folder)


if __name__ == "__main__":
    main()
