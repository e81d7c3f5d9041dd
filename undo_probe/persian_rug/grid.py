"""Grids of trained autoencoders over sizes, ratios, rates and seeds, each in the stage store."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from undo_probe.files import FolderLock
from undo_probe.jobs import Job, Outcome, default_workers, values_of
from undo_probe.persian_rug.engineered import Measured
from undo_probe.persian_rug.rivals import digon_loss, linear_loss
from undo_probe.persian_rug.training import VERSION, RugConfig, TrainedRug, rug_config, step_flops, train
from undo_probe.store import Store
from undo_probe.training import Context, resolve_device
from undo_probe.waves import Piece, compute, failures

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Grid:
    """Trained autoencoders in a folder: a table, and each of them."""

    store: Store
    configs: tuple[RugConfig, ...]
    outcomes: dict[str, Outcome]

    @property
    def failed(self) -> dict[str, Outcome]:
        """Key to outcome of the cells that failed; the same call tries them again."""
        return failures([_piece(config, self.store, "cpu") for config in self.configs], self.outcomes)

    def check(self) -> None:
        """Raises an error that names the failed cells, if there are any."""
        values_of(list(self.failed.values()))

    def trained(self, config: RugConfig) -> TrainedRug:
        """One of them, checked against its content hash."""
        return _opened(config, self.store)

    def table(self) -> "pd.DataFrame":
        """A line a finished cell: what was asked, loss and standard error, theory and rivals, both outputs."""
        import pandas as pd

        done = [config for config in self.configs if _key(config) in self.store]
        return pd.DataFrame([_line(_opened(config, self.store)) for config in done])


def train_grid(
    base: RugConfig,
    folder: str | Path,
    *,
    n_s: Sequence[int] = (),
    r: Sequence[float] = (),
    p: Sequence[float] = (),
    seeds: Sequence[int] = (),
    workers: int | None = None,
    backend: str = "loky",
    device: str = "cpu",
    progress: Callable[..., None] | None = None,
) -> Grid:
    """Trains every combination; what is done stays, what was cut short goes on from its last saved step.

    The cells of :mod:`undo_probe.sweep` are whole runs on a language model; below them lies what is used here too:
    the stage store and :mod:`undo_probe.waves`. Empty lists stand for the base's own value.

    Raises:
        UndoProbeError: a value no autoencoder can have, or the folder is in use.
    """
    store, configs = Store(Path(folder)), _combinations(base, n_s, r, p, seeds)
    resolve_device(device)
    with FolderLock(store.folder):
        pieces = [[_piece(config, store, device)] for config in configs]
        outcomes = compute(pieces, store, workers or default_workers(), backend=backend, progress=progress)
    return Grid(store, configs, outcomes)


def costs(
    base: RugConfig,
    *,
    n_s: Sequence[int] = (),
    r: Sequence[float] = (),
    p: Sequence[float] = (),
    seeds: Sequence[int] = (),
    workers: int | None = None,
) -> str:
    """What :func:`train_grid` would cost here, in a sentence: from matrix products timed at the base's batch size."""
    configs = _combinations(base, n_s, r, p, seeds)
    flops = sum(step_flops(config) * config.fit.steps for config in configs)
    rows, width = base.fit.batch_size, 512
    x, w = torch.ones(rows, width), torch.ones(width, width)
    torch.mm(x, w)  # the first one of a size is slower
    begun, times = time.perf_counter(), 8
    for _ in range(times):
        torch.mm(x, w)
    pace = times * 2.0 * rows * width * width / (time.perf_counter() - begun)
    hours = flops / pace / (workers or default_workers()) / 3600
    return (
        f"{len(configs)} trainings, {flops:.2g} FLOPs: at least {hours:.2g} hours in {workers or default_workers()} "
        f"processes at the {pace / 1e9:.0f} GFLOP/s that matrix products reach here; drawing features comes on top"
    )


def _combinations(
    base: RugConfig, n_s: Sequence[int], r: Sequence[float], p: Sequence[float], seeds: Sequence[int]
) -> tuple[RugConfig, ...]:
    axes = {"n_s": n_s, "r": r, "p": p, "seed": seeds}
    lists = [values or (getattr(base, name),) for name, values in axes.items()]
    settings = base.model_dump()
    return tuple(
        rug_config(**{**settings, **dict(zip(axes, values, strict=True))}) for values in product(*lists)
    )


def _what(config: RugConfig) -> dict[str, Any]:
    return {"kind": "rug", "version": VERSION, "settings": config.model_dump(mode="json")}


def _key(config: RugConfig) -> str:
    return Store.key(_what(config))


def _piece(config: RugConfig, store: Store, device: str) -> Piece:
    name = f"n_s={config.n_s} r={config.r:g} p={config.p:g} seed={config.seed}"
    job = Job(name, _train_into, (config, store.folder, device))
    return Piece(_key(config), (), job, step_flops(config) * config.fit.steps)


def _train_into(config: RugConfig, folder: Path, device: str, report: Any) -> None:
    store = Store(folder)
    made = train(config, context=Context(device=device, folder=store.work(_key(config)), report=report))
    store.write(
        _what(config),
        tensors={name: each.detach() for name, each in made.model.named_parameters()},
        rows=[{"step": step, "value": value} for step, value in made.curve],
        ledger=made.ledger,
        stopped=made.stopped,
        extra={"loss": made.loss.value, "error": made.loss.error},
    )


def _opened(config: RugConfig, store: Store) -> TrainedRug:
    key = _key(config)
    entry, model = store.entry(key), config.model()
    model.load_state_dict(store.tensors(key))
    loss = Measured(entry.extra["loss"], entry.extra["error"])
    curve = tuple((row["step"], row["value"]) for row in entry.rows)
    return TrainedRug(config, model, loss, curve, entry.ledger, entry.stopped)


def _line(made: TrainedRug) -> dict[str, Any]:
    config, r = made.config, made.config.n_d / made.config.n_s
    return {
        "n_s": config.n_s,
        "r": r,
        "p": config.p,
        "seed": config.seed,
        "decoder": config.decoder,
        "loss": made.loss.value,
        "error": made.loss.error,
        "rug": made.theory,
        "digon": float(digon_loss(r, config.p)),
        "linear": float(linear_loss(r, config.p)),
        "plateau_match": made.plateau_match,
        "converged_gap": made.converged_gap,
        "stopped": made.stopped,
    }
