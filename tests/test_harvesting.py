import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import torch
from torch import Tensor

from undo_probe.activation_store import ActivationStore
from undo_probe.activations import harvest_points, residual_names
from undo_probe.errors import UndoProbeError
from undo_probe.harvesting import harvest, plan_harvest
from undo_probe.interventions import intervene
from undo_probe.models import HookedTransformer

REPO = Path(__file__).parents[1]
POST = residual_names(tiny.model())[1:]


def many(rows: int = 40, n_pos: int = 9) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(tiny.task().d_vocab, (rows, n_pos), generator=draw)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")
    }


@pytest.mark.parametrize("batch_size", [64, 7])
def test_what_is_read_back_is_what_the_memory_harvest_gives_bit_for_bit(
    tmp_path: Path, batch_size: int
) -> None:
    model, tokens = tiny.model(), many()
    # 5 rows a shard at these two points
    store = harvest(
        model, tokens, "resid_post", tmp_path / "s", batch_size=batch_size, shard_mb=0.006, quiet=True
    )
    assert store.layout.shards > 5
    held = harvest_points(model, tokens, POST, batch_size=store.layout.batch_rows)
    assert store.points == tuple(POST)
    for name in POST:
        assert torch.equal(store.read(name), held[name].flatten(0, 1))
    assert tiny.hook_count(model) == 0


def test_positions_are_all_the_last_the_answer_numbers_or_a_mask(tmp_path: Path) -> None:
    model, rows = tiny.model(), tiny.task().rows("forget_T")
    rows = rows.select(torch.arange(6).numpy())
    mask = torch.rand(rows.tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    mask[2] = False  # a row of which nothing is kept
    everything = harvest_points(model, rows.tokens, POST)
    numbers = torch.zeros_like(mask)
    numbers[:, [1, -1]] = True
    last = torch.zeros_like(mask)
    last[:, rows.read_position] = True
    asked = {"all": mask | True, "last": last, "answer": rows.answer_mask}
    for i, (positions, kept) in enumerate([*asked.items(), ([-1, 1], numbers), (mask, mask)]):
        store = harvest(model, rows, POST, tmp_path / str(i), positions=positions, shard_mb=0.005, quiet=True)
        assert torch.equal(store.kept, kept)
        assert torch.equal(store.read(POST[1]), everything[POST[1]][kept])
    plain = harvest(model, rows.tokens, POST, tmp_path / "plain", positions="last", quiet=True)
    assert torch.equal(plain.read(0), everything[POST[0]][:, -1])


def test_names_are_endings_or_whole_and_the_model_stops_at_the_last_block_needed(tmp_path: Path) -> None:
    model, ran = tiny.model(n_layers=3), []
    handle = model.get_submodule("blocks.2").register_forward_hook(lambda *_: ran.append(2))
    store = harvest(
        model,
        many(3),
        ["attn.hook_z", "blocks.0.hook_mlp_out"],
        tmp_path / "a",
        variant="watched",
        quiet=True,
    )
    assert ran
    assert set(store.points) == {*(f"blocks.{i}.attn.hook_z" for i in range(3)), "blocks.0.hook_mlp_out"}
    assert store.read("blocks.2.attn.hook_z").shape == (27, 2, 8)
    ran.clear()
    early = ["hook_embed", "blocks.1.hook_resid_post"]
    assert harvest(model, many(3), early, tmp_path / "b", variant="watched", quiet=True).points == tuple(
        early
    )
    assert not ran
    handle.remove()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_the_rounded_states_in_half_the_bytes(tmp_path: Path, dtype: str) -> None:
    model, tokens = tiny.model(), many(5)
    whole = harvest(model, tokens, "resid_post", tmp_path / "whole", quiet=True)
    half = harvest(model, tokens, "resid_post", tmp_path / "half", dtype=dtype, quiet=True)
    assert torch.equal(half.read(1), whole.read(1).to(getattr(torch, dtype)))
    assert half.layout.nbytes * 2 == whole.layout.nbytes
    half.verify()


def test_a_value_too_large_for_float16_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny.model()
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.b_out").fill_(1e5)
    said = "blocks.1.hook_resid_post reaches 1e.05, more than float16 holds"
    with pytest.raises(UndoProbeError, match=said):
        harvest(model, many(3), "resid_post", tmp_path / "a", dtype="float16", quiet=True)
    kept = harvest(model, many(3), "resid_post", tmp_path / "b", dtype="bfloat16", quiet=True)
    assert kept.read(1).isfinite().all()


def test_size_and_time_are_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, tokens = tiny.model(), many(200)
    plan = plan_harvest(model, tokens, "resid_post", shard_mb=0.05)
    assert plan.layout.nbytes == 2 * 200 * 9 * 16 * 4
    store = harvest(model, tokens, "resid_post", tmp_path / "s", shard_mb=0.05)
    written = sum(path.stat().st_size for path in store.folder.glob("shard-*.safetensors"))
    assert plan.layout.nbytes <= written < plan.layout.nbytes * 1.05  # headers
    assert max(path.stat().st_size for path in store.folder.glob("shard-*")) < 50_000 * 1.05
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"harvest: {str(plan).rpartition('; about')[0]}; about ")
    assert said[1].startswith(f"harvest: {store.layout.shards} to do, done in ")
    harvest(model, tokens, "resid_post", tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().err == ""


def test_the_estimate_is_of_the_right_size(tmp_path: Path) -> None:
    model, tokens = tiny.model(d_model=128, n_layers=4), many(1500, 8)
    plan = plan_harvest(model, tokens, "resid_post")
    begin = time.perf_counter()
    harvest(model, tokens, "resid_post", tmp_path / "s", quiet=True)
    took = time.perf_counter() - begin
    assert took / 20 < plan.seconds < took * 20


def test_a_harvest_that_is_there_is_opened_and_another_one_is_refused(tmp_path: Path) -> None:
    model, tokens = tiny.model(), many(4)
    first = harvest(model, tokens, "resid_post", tmp_path, quiet=True)
    before = files(tmp_path)
    again = harvest(model, tokens.int(), POST, tmp_path, batch_size=2, shard_mb=1, quiet=True)
    assert again.key == first.key
    assert files(tmp_path) == before
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % tiny.task().d_vocab
    unlike: dict[str, dict[str, Any]] = {
        "model": {"model": tiny.model(seed=1)},
        "tokens": {"tokens": other},
        "kept": {"positions": "last"},
        "points": {"points": POST[:1]},
        "dtype": {"dtype": "float16"},
        "variant": {"variant": "ablated"},
    }
    for name, change in unlike.items():
        words = {"model": model, "tokens": tokens, "points": "resid_post", **change}
        with pytest.raises(UndoProbeError, match=f"another harvest: its {name} is"):
            harvest(folder=tmp_path, quiet=True, **words)
    assert files(tmp_path) == before


def test_a_hooked_model_must_say_what_its_hooks_do(tmp_path: Path) -> None:
    model, tokens = tiny.model(), many(4)
    plain = harvest(model, tokens, "resid_post", tmp_path / "plain", quiet=True)
    with intervene(model, {"blocks.0.hook_resid_pre": lambda states: 2 * states}):
        with pytest.raises(UndoProbeError, match="has a hook on blocks.0.hook_resid_pre, which changes"):
            harvest(model, tokens, "resid_post", tmp_path / "edited", quiet=True)
        edited = harvest(model, tokens, "resid_post", tmp_path / "edited", variant="doubled", quiet=True)
    assert edited.key != plain.key
    assert not torch.equal(edited.read(1), plain.read(1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"points": "resid"}, "no hook point 'resid': give a full name such as 'blocks.1.hook_resid_post'"),
        ({"points": []}, "no hook point was asked for"),
        ({"points": "pattern"}, "only points whose first axes are row and position"),
        ({"points": "ln_final.hook_normalized"}, "was not reached: it lies behind the last block"),
        ({"tokens": torch.zeros(0, 4, dtype=torch.long)}, r"tokens of shape \(0, 4\) cannot be harvested"),
        ({"positions": 9}, "do not fit rows of 9 tokens"),
        ({"positions": "answer"}, "positions='answer' is not known here: .*the rows of a task"),
        ({"positions": torch.ones(2, 2, dtype=torch.bool)}, "a mask of positions is boolean, of the tokens'"),
        ({"dtype": "int8"}, "dtype='int8' is not one of float32, float16, bfloat16"),
        ({"batch_size": 0}, "batch_size=0 and shard_mb=64 do not fit"),
        ({"shard_mb": 257}, "batch_size=64 and shard_mb=257 do not fit: .* at most 256 MB"),
        ({"shard_mb": 1e-3}, "one row takes 0.0 MB at these points, a shard is to have 0.001 MB"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, words: dict, said: str
) -> None:
    settings = {"tokens": many(), "points": "resid_post", **words}
    with pytest.raises(UndoProbeError, match=said):
        harvest(tiny.model(), folder=tmp_path / "s", quiet=True, **settings)
    assert not (tmp_path / "s").exists()


def test_a_pattern_with_as_many_heads_as_tokens_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match="blocks.0.attn.hook_pattern gave an activation of shape"):
        harvest(tiny.model(), many(3, n_pos=2), "attn.hook_pattern", tmp_path / "s", quiet=True)


def test_a_folder_of_something_else_or_a_full_disk_is_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        UndoProbeError, match=r"is not empty and holds no activations \(thesis.tex lies there\)"
    ):
        harvest(tiny.model(), many(), "resid_post", tmp_path, quiet=True)
    full = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: full)
    with pytest.raises(UndoProbeError, match="needs 0 MB, and 0 MB are free"):
        harvest(tiny.model(), many(), "resid_post", tmp_path / "s", quiet=True)


KILLED = """
import sys
from pathlib import Path

import tiny
import torch
import test_harvesting
from undo_probe import harvesting

torch.set_num_threads(1)

def told(*words):
    print("shard", flush=True)
    return write_shard(*words)

write_shard, harvesting.write_shard = harvesting.write_shard, told
harvesting.harvest(
    tiny.model(), test_harvesting.many(120), "resid_post", Path(sys.argv[1]), batch_size=3, shard_mb=0.012, quiet=True
)
print("done", flush=True)
"""


def begin(folder: Path) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(REPO), str(REPO / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "-c", KILLED, str(folder)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_harvests_go_on_at_the_first_missing_shard_and_end_at_the_same_bits(tmp_path: Path) -> None:
    whole = harvest(
        tiny.model(), many(120), "resid_post", tmp_path / "whole", batch_size=3, shard_mb=0.012, quiet=True
    )
    assert whole.layout.shards > 10
    folder, done = tmp_path / "killed", [0]
    for shards, wait in ((2, 0.0), (4, 0.002)):
        process = begin(folder)
        assert process.stdout is not None
        for _ in range(shards):
            assert process.stdout.readline() == "shard\n"
        time.sleep(wait)  # in a forward pass, in writing, or between a shard and its hashes
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        done.append(len(list(folder.glob("shard-*.json"))))
        with pytest.raises(UndoProbeError, match=r"is not complete: \d+ of \d+ shards are missing"):
            ActivationStore(folder)
    assert done[0] < done[1] < done[2] < whole.layout.shards  # each went on where the last had stopped
    process = begin(folder)
    said, _ = process.communicate(timeout=120)
    assert said.count("shard") == whole.layout.shards - done[-1]
    a, b = files(whole.folder), files(folder)
    assert a == b


def peak_growth(work: Callable[[], object]) -> float:
    """Bytes by which the process's resident memory rose, at most, while the work ran."""
    process, done = psutil.Process(), threading.Event()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # freed memory that the process still holds would be used again, unseen
    before, highest = process.memory_info().rss, [0]

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = work()  # alive until the last look
    highest.append(process.memory_info().rss)
    done.set()
    watcher.join()
    del kept
    return max(highest) - before


def test_peak_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    model, tokens = tiny.model(d_model=128, n_layers=3), many(4000, 11)
    names = residual_names(model)[1:]

    def to_disk(rows: int) -> ActivationStore:
        return harvest(model, tokens[:rows], names, tmp_path / str(rows), shard_mb=2, quiet=True)

    to_disk(400)  # what the first use of anything takes
    size = to_disk(401).layout.item_bytes * 4000 * 11
    assert size > 64e6
    assert peak_growth(lambda: to_disk(4000)) < size / 3  # in memory it would be more than size
    held = peak_growth(lambda: harvest_points(model, tokens, names, batch_size=64))
    assert held > size / 2  # the measurement sees what is held


def test_records_say_what_was_harvested(tmp_path: Path) -> None:
    model: HookedTransformer = tiny.model()
    harvest(model, many(4), "resid_post", tmp_path, quiet=True)
    record = json.loads((tmp_path / "store.json").read_text())
    assert record["what"]["points"] == POST
    assert record["layout"]["shapes"] == {name: [16] for name in POST}
    assert "torch" in record["environment"]
    shard = json.loads((tmp_path / "shard-00000.json").read_text())
    assert shard["key"] == record["key"]
    assert set(shard["xxh3_128"]) == set(POST)
