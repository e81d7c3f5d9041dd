"""The stage store: every result once, under the hash of what made it; and Run, a manifest of such results."""

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from undo_probe import ranks
from undo_probe.config import RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.files import atomic_folder, digest, read_json, write_json
from undo_probe.models import HookedTransformer, load_model, load_tensors, save_into, save_tensors
from undo_probe.presets import load_config
from undo_probe.records import Arm, Ledger
from undo_probe.sources import META
from undo_probe.tasks import Task, asked_task, build_task

if TYPE_CHECKING:
    import pandas as pd

_RECORD, _TENSORS = "stage.json", "tensors.safetensors"
_ADVICE = "Delete that folder and run again: only this stage is redone."


@dataclass(frozen=True)
class Entry:
    """One stored result: what made it (``what``, hashed into ``key``), its history, cost and content hashes."""

    key: str
    kind: str
    what: dict[str, Any]
    rows: list[dict[str, Any]]
    ledger: Ledger
    stopped: str
    model: str | None
    tensors: str | None
    extra: dict[str, Any]


class Store:
    """A folder of results, each in a folder named by its key.

    The key is the sha256 of the canonical JSON of ``what``: stage kind and version, exactly the settings its
    function received, seed, parents' keys, task fingerprint. No time and no path is hashed.
    """

    def __init__(self, folder: str | Path) -> None:
        """Opens (and does not yet create) the store in ``folder``."""
        self.folder = Path(folder)

    @staticmethod
    def key(what: dict[str, Any]) -> str:
        """The name a result has before it is computed."""
        return digest(what)

    def path(self, key: str) -> Path:
        """Where a result lies."""
        return self.folder / key

    def work(self, key: str) -> Path:
        """Where a stage keeps what it needs to go on after a kill."""
        return self.folder / "work" / key

    @property
    def shared(self) -> Path:
        """What several stages use and any of them can make again."""
        return self.folder / "shared"

    def __contains__(self, key: str) -> bool:
        """Whether the result is there, complete (folders appear by rename only)."""
        return (self.path(key) / _RECORD).is_file()

    def keys(self) -> list[str]:
        """Keys of all complete results."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{_RECORD}"))

    def write(
        self,
        what: dict[str, Any],
        *,
        model: HookedTransformer | None = None,
        tensors: dict[str, Tensor] | None = None,
        rows: Iterable[dict[str, Any]] = (),
        ledger: Ledger | None = None,
        stopped: str = "",
        extra: dict[str, Any] | None = None,
    ) -> str:
        """Stores a result; a second writer of the same key leaves the first one's in place."""
        key = self.key(what)
        with atomic_folder(self.path(key), keep_existing=True) as target:
            body = {
                "format": 1,
                "key": key,
                "kind": what["kind"],
                "what": what,
                "model": None if model is None else save_into(model, target),
                "tensors": save_tensors(tensors, target / _TENSORS) if tensors else None,
                "rows": list(rows),
                "ledger": (ledger or Ledger()).to_dict(),
                "stopped": stopped,
                "extra": extra or {},
                "environment": environment(),
            }
            write_json(target / _RECORD, {**body, "digest": digest(body)})
        _remove_tree(self.work(key))
        return key

    def once(self, what: dict[str, Any], make: Callable[[], dict[str, Any]]) -> str:
        """The key of the result, which is made and stored unless it is there; ``make`` gives :meth:`write`'s words."""
        key = self.key(what)
        if ranks.agree(key in self):
            return key
        made = make()
        if ranks.is_main():
            self.write(what, **made)
        ranks.agree(None)  # nobody looks for it before it is there
        return key

    def entry(self, key: str) -> Entry:
        """The record of a result.

        Raises:
            UndoProbeError: missing, damaged, or stored under another key.
        """
        path = self.path(key) / _RECORD
        if not path.is_file():
            raise UndoProbeError(
                f"the store {self.folder} holds no result {key[:12]}: run the pipeline again to make it"
            )
        body = read_json(path)
        claimed = body.pop("digest", None)
        if digest(body) != claimed or body["key"] != key or self.key(body["what"]) != key:
            raise UndoProbeError(f"{path} is damaged or belongs to another result. {_ADVICE}")
        return Entry(
            key,
            body["kind"],
            body["what"],
            body["rows"],
            Ledger.from_dict(body["ledger"]),
            body["stopped"],
            body["model"],
            body["tensors"],
            body["extra"],
        )

    def model(self, key: str, device: str = "cpu") -> HookedTransformer:
        """The model of a result, checked against its content hash."""
        entry = self.entry(key)
        if entry.model is None:
            raise UndoProbeError(f"the result {key[:12]} ({entry.kind}) has no model")
        return load_model(self.path(key), device, expected=entry.model)

    def tensors(self, key: str) -> dict[str, Tensor]:
        """The named tensors of a result, checked; empty where it has none."""
        entry = self.entry(key)
        return {} if entry.tensors is None else load_tensors(self.path(key) / _TENSORS, entry.tensors)

    def verify(self, key: str) -> None:
        """Reads every file of a result and checks it.

        Raises:
            UndoProbeError: naming the damaged file.
        """
        entry = self.entry(key)
        if entry.model is not None:
            load_model(self.path(key), expected=entry.model)
        self.tensors(key)

    def size(self, key: str) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.path(key).rglob("*") if path.is_file())

    def forget_shared(self) -> None:
        """Deletes what several stages use; it is made again where it is needed."""
        _remove_tree(self.shared)

    def remove(self, key: str) -> None:
        """Deletes a result and whatever was kept to resume it."""
        _remove_tree(self.path(key))
        _remove_tree(self.work(key))


def _remove_tree(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def environment() -> dict[str, str]:
    """What may matter for a result but is not hashed: versions and the machine's kind."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for package in ("undo-probe", "torch", "transformer-lens", "transformers", "numpy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises:
        UndoProbeError: it is missing, cut, or changed in any bit.
    """
    path = folder / "run.json"
    body = read_json(path)
    claimed = body.pop("digest", "") if isinstance(body, dict) else None
    if claimed is None or claimed not in ("", digest(body)):
        raise UndoProbeError(
            f"{path} is damaged. Delete it and run the same command again: what was computed is kept."
        )
    return body


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes ``run.json`` with a digest, so that no flipped bit can give an arm another name."""
    write_json(folder / "run.json", {**manifest, "digest": digest(manifest)})


class Run:
    """A run folder: its configuration and the arms it made. Models are loaded when asked for.

    Opening follows the manifest; keys are never computed anew, so a run stays readable when code changes.
    """

    def __init__(self, folder: str | Path) -> None:
        """Opens a run folder.

        Raises:
            UndoProbeError: the folder holds no run, or its manifest is damaged.
        """
        self.folder = Path(folder)
        if not (self.folder / "run.json").is_file():
            raise UndoProbeError(
                f"{self.folder} holds no run (there is no run.json): give the folder that `undo-probe run --out` wrote"
            )
        self.manifest: dict[str, Any] = read_manifest(self.folder)
        self.config: RunConfig = load_config(self.folder / "config.json")
        if self.manifest.get("config", "") not in ("", digest(read_json(self.folder / "config.json"))):
            raise UndoProbeError(
                f"{self.folder / 'config.json'} is not what this run was made with: restore it, or run in a new folder"
            )
        self.store = Store(os.path.normpath(self.folder / self.manifest["store"]))

    @cached_property
    def task(self) -> Task:
        """The task, rebuilt from the configuration and checked against the run's fingerprint."""
        task = build_task(asked_task(self.config), self.manifest["split_seed"])
        if task.fingerprint != self.manifest["task"]["fingerprint"]:
            raise UndoProbeError(
                f"the task of {self.folder} was built by another version of undo_probe: its rows differ (or its text "
                "has changed since)"
            )
        return task

    @cached_property
    def arms(self) -> list[Arm]:
        """Every model of the run, in pipeline order."""
        names = ("stage", "method", "alpha", "seed", "variant", "checkpoint")
        return [Arm(**{name: arm[name] for name in names}) for arm in self.manifest["arms"]]

    @cached_property
    def keys(self) -> dict[str, str]:
        """Arm name to store key."""
        return {arm["name"]: arm["key"] for arm in self.manifest["arms"]}

    @cached_property
    def n_layers(self) -> int:
        """Blocks of the run's models, as the stored original says: it may have been loaded from elsewhere."""
        return read_json(self.store.path(self.keys["original"]) / META)["config"]["n_layers"]

    def arm(self, stage: str, *, method: str = "", alpha: float | None = None, variant: str = "") -> Arm:
        """The one arm that fits; ``method`` and ``alpha`` may be left out where only one fits.

        Raises:
            UndoProbeError: none or several fit; the text lists them.
        """
        found = [
            arm
            for arm in self.arms
            if arm.stage == stage
            and arm.variant == variant
            and (not method or arm.method == method)
            and (alpha is None or arm.alpha == alpha)
        ]
        if stage == "unlearned" and not method:
            found = [arm for arm in found if arm.method == self.config.teacher]
        if len(found) != 1:
            names = ", ".join(arm.name for arm in (found or self.arms))
            raise UndoProbeError(
                f"{'several arms fit' if found else 'no arm fits'} stage={stage!r} method={method!r} alpha={alpha} "
                f"variant={variant!r}; {'they are' if found else 'the run has'}: {names}"
            )
        return found[0]

    def named(self, asked: str) -> Arm:
        """The arm of that name (``distilled-maxent-0.4``), else of that label (``UNDO 0.4``).

        Raises:
            UndoProbeError: there is not just one; the text lists them.
        """
        named = [arm for arm in self.arms if arm.name == asked]
        found = named or [arm for arm in self.arms if arm.label.lower() == asked.strip().lower()]
        if len(found) != 1:
            problem = f"several arms are called {asked!r}" if found else f"the run has no arm {asked!r}"
            names = ", ".join(f"{arm.name} ({arm.label})" for arm in (found or self.arms))
            raise UndoProbeError(f"{problem if asked else 'no arm is given'}: expected one of {names}")
        return found[0]

    def model(
        self, stage: str, *, method: str = "", alpha: float | None = None, variant: str = ""
    ) -> HookedTransformer:
        """The model of one arm, for example ``run.model("distilled", alpha=0.4)``."""
        return self.load(self.arm(stage, method=method, alpha=alpha, variant=variant))

    def load(self, arm: Arm) -> HookedTransformer:
        """The model of an arm, checked against its content hash."""
        return self.store.model(self.keys[arm.name])

    def entry(self, arm: Arm) -> Entry:
        """The stored record of an arm."""
        return self.store.entry(self.keys[arm.name])

    @property
    def stages(self) -> "pd.DataFrame":
        """One line an arm: steps, FLOPs, seconds, why it stopped, hash."""
        import pandas as pd

        lines = []
        for arm in self.arms:
            entry = self.entry(arm)
            last = max((row["step"] for row in entry.rows), default=0)
            accuracy = {
                f"{row['task_split']} {row['subset']}": row["value"]
                for row in entry.rows
                if row["step"] == last
            }
            lines.append(
                {
                    "arm": arm.name,
                    "label": arm.label,
                    **accuracy,
                    "steps": entry.ledger.steps,
                    "flops": entry.ledger.flops,
                    "seconds": entry.ledger.seconds,
                    "stopped": entry.stopped,
                    "checkpoint": arm.checkpoint[:12],
                }
            )
        return pd.DataFrame(lines)

    def _repr_html_(self) -> str:
        return self.stages.to_html(index=False, float_format="%.3g", na_rep="")


def unused(run: Run) -> list[str]:
    """Keys in the run's own store that its manifest does not name.

    Raises:
        UndoProbeError: the store lies outside the run folder, where other runs may need its results.
    """
    if run.folder.resolve() not in run.store.folder.resolve().parents:
        raise UndoProbeError(f"{run.store.folder} is shared with other runs: delete results there by hand")
    used = {
        *run.keys.values(),
        *(attack["key"] for attack in run.manifest["attacks"]),
        *run.manifest["measured"],
    }
    return [key for key in run.store.keys() if key not in used]


def arm_at(place: str | Path) -> tuple[Run, Arm] | None:
    """The run and arm that ``RUN:arm`` names, or None for what is no arm of a run.

    Raises:
        UndoProbeError: the run has no such arm, or a run is named without one.
    """
    folder, _, asked = str(place).rpartition(":")
    if folder and (Path(folder) / "run.json").is_file():
        run = Run(folder)
        return run, run.named(asked)
    if (Path(place) / "run.json").is_file():
        names = ", ".join(arm.name for arm in Run(place).arms)
        raise UndoProbeError(f"{place} is a run of several models: name one, {place}:ARM, of {names}")
    return None
