"""One configuration over several seeds: readings by seed, and claims with seeds as the unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from undo_probe import intervals
from undo_probe.attacks.arms import attack
from undo_probe.config import RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.files import digest, read_json
from undo_probe.parquet import read_table, write_table
from undo_probe.pipeline import run_undo
from undo_probe.presets import override
from undo_probe.records import Scorecard
from undo_probe.scorecard import score
from undo_probe.store import Run

if TYPE_CHECKING:
    import pandas as pd

ENOUGH = 6
"""Seeds from which a claim may be said to hold: with 3, a sign-flip test cannot go below p = .25."""


def replicate(
    config: RunConfig,
    seeds: Sequence[int],
    folder: str | Path,
    workers: int | None = None,
    kept: str | Path | None = None,
    measures: Sequence[str] | None = None,
) -> "pd.DataFrame":
    """Runs, attacks and scores the configuration once a seed, each in ``folder/SEED``.

    What is done already is loaded, so more seeds can be added later.

    Args:
        config: its own seed does not matter.
        seeds: of the runs.
        folder: where they lie.
        workers: processes at once.
        kept: a Parquet file of readings, to which each seed is added as it comes; a seed that it holds of this very
            configuration needs no run any more. It may hold those of several configurations.
        measures: those that are kept and returned; all by default, and of a seed in ``kept`` those that it holds.

    Returns:
        All readings, with columns ``arm`` (its name) and ``inner`` (the layer chosen on D in that run).

    Raises:
        UndoProbeError: ``kept`` is damaged or holds something else.
    """
    import pandas as pd

    tables = []
    # the seed is a column of its own, and where it runs makes no difference
    what = digest(config.model_dump(mode="json", exclude={"seed", "device", "threads"}))
    known = (
        read_table(kept, ("config", "seed", "measure")) if kept is not None and Path(kept).is_file() else None
    )
    for seed in seeds:
        held = None if known is None else known[(known["config"] == what) & (known["seed"] == seed)]
        if held is not None and len(held):
            tables.append(held.drop(columns="config"))
            continue
        run = run_undo(override(config, f"seed={seed}"), Path(folder) / str(seed), workers=workers)
        own = _table(score(attack(run, workers=workers), workers=workers))
        tables.append(own if measures is None else own[own["measure"].isin(list(measures))])
        if kept is not None:
            known = pd.concat([each for each in (known, tables[-1].assign(config=what)) if each is not None])
            write_table(known, kept)
    return pd.concat(tables, ignore_index=True)


def read_runs(folders: Sequence[str | Path]) -> tuple[list[Run], "pd.DataFrame"]:
    """Finished runs, one a seed, and their readings as :func:`replicate` gives them; nothing is computed.

    Args:
        folders: run folders, or folders that hold some.

    Returns:
        The runs in the order of their seeds, and the readings of all of them.

    Raises:
        UndoProbeError: there is no scored run, or two have one seed.
    """
    import pandas as pd

    found = [place for folder in folders for place in _runs_in(Path(folder))]
    runs = sorted((Run(place) for place in found), key=lambda run: run.config.seed)
    seeds = [run.config.seed for run in runs]
    if not runs or len(set(seeds)) < len(seeds):
        raise UndoProbeError(
            f"expected scored runs of different seeds in {', '.join(map(str, folders))}: found seeds {seeds}; "
            "`undo-probe score RUN` scores one"
        )
    cards = [Scorecard.from_dict(read_json(run.folder / "scorecard.json")) for run in runs]
    return runs, pd.concat([_table(card) for card in cards], ignore_index=True)


def _runs_in(folder: Path) -> list[Path]:
    """The folder itself or those directly inside it that are scored."""
    return [place for place in (folder, *sorted(folder.glob("*"))) if (place / "scorecard.json").is_file()]


def _table(card: Scorecard) -> "pd.DataFrame":
    names = [reading.arm.name for reading in card.readings]
    return card.table().assign(arm=names, inner=card.verdict["inner_layer"])


def by_seed(readings: "pd.DataFrame", asked: str) -> "pd.DataFrame":
    """The values of the readings that a query picks: one line a seed, one column an arm.

    Raises:
        UndoProbeError: the query picks nothing, or several readings of one arm and seed.
    """
    found = readings.query(asked)
    if found.empty or found.duplicated(["seed", "arm"]).any():
        which = "no reading" if found.empty else "several readings of one arm and seed"
        raise UndoProbeError(f"the query {asked!r} picks {which}: name measure, task_split, subset and layer")
    table = found.pivot(index="seed", columns="arm", values="value")
    return table.reindex(columns=list(dict.fromkeys(found["arm"])))


@dataclass(frozen=True)
class Contrast:
    """A paired difference between two arms over seeds."""

    high: str
    low: str
    interval: intervals.Interval
    p_value: float

    @property
    def verdict(self) -> str:
        """In words; with too few seeds no claim is made."""
        if self.interval.n < ENOUGH:
            return f"points only (fewer than {ENOUGH} seeds)"
        return "holds" if self.interval.low > 0 else "does not hold"

    def __str__(self) -> str:
        """One line with difference, interval, p and verdict."""
        found = self.interval
        return (
            f"{self.high} - {self.low}: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], "
            f"sign-flip p {self.p_value:.3f}, n = {found.n} seeds: {self.verdict}"
        )


def contrast(frame: "pd.DataFrame", high: str, low: str) -> Contrast:
    """Student's interval and exact sign-flip test of ``high - low``, paired over the seeds of :func:`by_seed`."""
    difference = (frame[high] - frame[low]).to_numpy(dtype=float)
    found = intervals.t_interval(difference)
    return Contrast(high, low, found, intervals.sign_flip_test(difference).p_value)
