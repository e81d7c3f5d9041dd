"""Through the microscope: directions that forget and retain rows share, what updates do in them, and selectivity."""

from collections.abc import Mapping, Sequence
from math import log10
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.heat import MOVED, ROOMY, colors, heat, map_layout
from undo_probe.figures.layers import curves
from undo_probe.figures.layout import Panels, draw
from undo_probe.figures.look import labels, layer_order, plain
from undo_probe.figures.stream import Cells, chain, level
from undo_probe.figures.tables import nothing, number, readings_of, with_interval
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

COMMAND = "undo-probe score RUN --also subspaces"
READ, WRITTEN = "inputs", "gradients"
LEADING = ("mean", "1–4", "5–16")
"""Bands of components that the map sums."""
BANDS = (*LEADING, "17–64", "rest")
_SIDES = {READ: "W_in", WRITTEN: "W_out"}
"""Side to the map that lies at the residual stream; the other map's numbers stand in the table."""
_UPDATES = {"relearning": "relearning", "the whole way": "from the original", "distillation": "distillation"}
_KINDS = {
    "paraphrase": "the same facts, reworded",
    "other forget facts": "other forget rows (V)",
    "sibling": "retain rows of the same kind",
    "unrelated": "other retain rows",
}


def subspaces(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """Stage by layer: the share of forget and of retain variance inside T's leading directions."""
    words = words or TaskWords()
    panels: dict[str, Cells] = {}
    for side, ending in _SIDES.items():
        for split, label in (("forget", "V"), ("retain", "retain")):
            cells = _leading(readings_of(readings, "shared_variance", split), side, ending)
            if cells:
                panels[f"{side}, {label}"] = cells
    if not panels:
        raise nothing("no shared directions yet", COMMAND)
    arms = chain(arm for cells in panels.values() for arm, _ in cells)
    names = labels(arms)
    grid = Panels(list(panels), columns=len(panels), panel_height=25 * len(arms), gap=0.02, bottom=40,
                  row_gap=76)  # fmt: skip
    traces, tight = [], {}
    for index, cells in enumerate(panels.values()):
        layers = sorted({layer for _, layer in cells}, key=layer_order)
        z = [[level(cells.get((arm, layer))) for layer in layers] for arm in arms]
        columns = [layer.split(".")[1] for layer in layers]
        traces.append(heat(z, columns, [plain(names[arm]) for arm in arms], index) | colors(MOVED, 0.0, 1.0))
        if len(layers) > ROOMY:
            tight[f"data.{index}.texttemplate"] = ""
    return Figure(
        name="subspaces",
        title="Directions that forget and retain rows share",
        plotly=draw(traces, map_layout(grid, len(arms), type="category")),
        caption=(
            "Columns are blocks, rows models. Every cell is a share of variance: of V’s rows or of held-out retain "
            "rows, inside the direction of the mean and the 16 leading principal components of T’s rows, which no V "
            "row was used to find. Left, what each MLP reads; right, the gradient of the answers’ loss at what it "
            f"writes. {_chance(readings)} Look for retain cells as dark as the V cells beside them: there the forget "
            "rows’ leading directions are everybody’s, and an update inside them cannot be particular to what should "
            f"be forgotten. {_here(panels, arms, names)}"
        ),
        opposite=(
            "pale retain cells beside dark V cells would be a subspace of the forget rows alone, which projecting "
            "out of the stream would remove without harm."
        ),
        table=_shared_table(readings, arms, names),
        narrow=grid.narrow() | tight,
    )


def update_energy(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """Band by band of components: the share of relearning's, unlearning's and distillation's updates."""
    found = [r for r in readings_of(readings, "update_energy") if r.value is not None]
    shown: dict[str, Cells] = {}
    for side, ending in _SIDES.items():
        for update, label in _UPDATES.items():
            cells = _over_chance(found, f"{update}: {ending} {side}, ")
            if cells:
                shown[f"{label}, {side}"] = cells
    if not shown:
        raise nothing("no updates by component yet", COMMAND)
    arms = chain(arm for cells in shown.values() for arm, _ in cells)
    arms = [arm for arm in arms if arm.stage != "noised"]
    times = [r.value for cells in shown.values() for (arm, _), r in cells.items() if arm in arms and r.value]
    return curves(
        "subspaces-updates",
        "In which directions updates lie",
        shown,
        arms,
        caption=(
            "An update’s squared length in each band of the forget rows’ components, over all MLPs: the direction of "
            "their mean, components by rank, and what is left; as a multiple of what a random direction has there. "
            "Inputs are what MLPs read, gradients those at what they write. Relearning is a short attack on each "
            "model; “from the original” is unlearning alone, or noise and distillation too. Components are those of "
            "the model that the update starts from. One number a model and band, without an interval: n = "
            f"{max((r.n for r in found), default=0)} matrices. A random direction has {_by_chance(found)}. Look for "
            "lines that lie high on the left: CIR’s claim is that updates there are shared, costly, and soon "
            "learned back."
        ),
        opposite="flat lines at 1: updates spread as a random direction is, and nothing for collapse to take out.",
        table=_update_table(found, arms),
        heading="times chance",
        y_axis={
            "type": "log",
            "range": [log10(min([*times, 0.5])) - 0.05, log10(max([*times, 2.0])) + 0.05],
            "tickvals": [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50],
        },
        columns=BANDS,
    )


def selectivity(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """How far an update against forget facts moves other rows, before and after its shared directions are gone."""
    found = [r for r in readings_of(readings, "selectivity") if r.value is not None]
    shown: dict[str, Cells] = {}
    for kind, title in _KINDS.items():
        cells = {(r.arm, r.subset.rpartition("k=")[2]): r for r in found if r.subset.startswith(f"{kind}, ")}
        if cells:
            shown[title] = cells
    if not shown:
        raise nothing("no selectivity yet", COMMAND)
    arms = [arm for arm in chain(r.arm for r in found) if arm.stage != "noised"]
    sizes = sorted({r.subset.rpartition("k=")[2] for r in found}, key=int)
    lows = [r.low if r.low is not None else r.value or 0.0 for r in found if r.arm in arms]
    highs = [r.high if r.high is not None else r.value or 0.0 for r in found if r.arm in arms]
    return curves(
        "subspaces-selectivity",
        "Whom an update against T moves along",
        shown,
        arms,
        caption=(
            "Cosine between the gradient that would unlearn T’s facts of one kind, after k shared directions are taken "
            "out of both its sides, and the plain gradient of other rows: to first order, how far forgetting the one "
            "moves the other. k = 0 is the plain gradient. Means over kinds of facts with 95% intervals, n = "
            f"{max((r.n for r in found), default=0)}. Look for retain rows that fall to 0 at a k at which the same "
            "facts in other words have not: there collapse makes the update particular."
        ),
        opposite="curves that fall together, or retain rows near 0 from the start: nothing is gained by collapse.",
        table=_selectivity_table(shown, arms, sizes),
        heading="cosine",
        y_axis={"range": [min([*lows, 0.0]) - 0.02, max([*highs, 0.1]) + 0.02], "tickformat": ".2f"},
        columns=sizes,
    )


def _leading(found: Sequence[Reading], side: str, ending: str) -> Cells:
    """By arm and layer, the sum over the leading bands, as a reading without an interval."""
    sums: dict[tuple[Arm, str], float] = {}
    for r in found:
        own, _, band = r.subset.partition(", ")
        if own == side and band in LEADING and r.value is not None and (r.layer or "").endswith(ending):
            sums[r.arm, r.layer or ""] = sums.get((r.arm, r.layer or ""), 0.0) + r.value
    return {
        key: Reading(key[0], "shared_variance", "", layer=key[1], value=value) for key, value in sums.items()
    }


def _over_chance(found: Sequence[Reading], prefix: str) -> Cells:
    """By arm and band, the share of the update over a random direction's; without bands that are empty."""
    return {
        (r.arm, r.subset.removeprefix(prefix)): r.replace(value=r.value / r.control_value)
        for r in found
        if r.subset.startswith(prefix) and r.value and r.control_value
    }


def _chance(readings: "pd.DataFrame") -> str:
    levels = {
        r.subset: r.control_value
        for r in readings_of(readings, "shared_variance", "retain")
        if r.control_value is not None and (r.layer or "").endswith("W_in")
    }
    total = sum(level for name, level in levels.items() if name in {f"{READ}, {band}" for band in LEADING})
    sizes = {(r.n, r.n_clusters) for r in readings_of(readings, "shared_variance", "forget") if r.n}
    n, families = max(sizes) if sizes else (0, 0)
    return f"Random directions would hold {number(total)} (V: n = {n} rows in {families} families)."


def _here(panels: Mapping[str, Cells], arms: Sequence[Arm], names: Mapping[Arm, str]) -> str:
    """The first model's own figures, averaged over blocks."""
    means = {}
    for title, cells in panels.items():
        values = [r.value for (arm, _), r in cells.items() if arm == arms[0] and r.value is not None]
        means[title] = number(sum(values) / len(values)) if values else "–"
    each = "; ".join(f"{title} {value}" for title, value in means.items())
    return f"Here, {names[arms[0]]}, mean over blocks: {each}."


def _by_chance(found: Sequence[Reading]) -> str:
    """What a random direction has in each band, on the side of the inputs."""
    levels = {
        r.subset.rpartition(", ")[2]: r.control_value
        for r in found
        if f"W_in {READ}" in r.subset and r.control_value is not None
    }
    return ", ".join(f"{number(levels[band])} ({band})" for band in BANDS if band in levels)


def _shared_table(readings: "pd.DataFrame", arms: Sequence[Arm], names: Mapping[Arm, str]) -> "pd.DataFrame":
    """Per model, map and side: every band with its interval, and the effective dimension."""
    import pandas as pd

    lines: dict[tuple[Arm, str, str, str], dict[str, str]] = {}
    for measure in ("shared_variance", "effective_dimension", "subspace_overlap"):
        for r in readings_of(readings, measure):
            side, _, band = r.subset.partition(", ")
            if r.arm not in names or r.value is None:
                continue
            column = {"effective_dimension": "effective dimension", "subspace_overlap": "overlap (chance)"}
            text = with_interval(r.value, r.low, r.high) if band else number(r.value)
            if measure == "subspace_overlap":
                text = f"{text} ({number(r.control_value)})"
            line = lines.setdefault((r.arm, r.layer or "", side, r.task_split), {})
            line[column.get(measure, band)] = text
    rows = [
        {"model": names[arm], "map": layer.removeprefix("blocks."), "side": side, "rows": split, **values}
        for (arm, layer, side, split), values in sorted(
            lines.items(), key=lambda item: (arms.index(item[0][0]), layer_order(item[0][1]), item[0][2:])
        )
    ]
    return pd.DataFrame(rows).fillna("–")


def _update_table(found: Sequence[Reading], arms: Sequence[Arm]) -> "pd.DataFrame":
    import pandas as pd

    names = labels(arms)
    lines: dict[tuple[Arm, str], dict[str, str]] = {}
    for r in found:
        update, _, band = r.subset.rpartition(", ")
        if r.arm in names:
            text = f"{number(r.value)} ({number(r.control_value)})"
            lines.setdefault((r.arm, update), {})[band] = text
    rows = [
        {
            "model": names[arm],
            "update, map and side": update,
            **{f"{b} (chance)": v for b, v in bands.items()},
        }
        for (arm, update), bands in sorted(
            lines.items(), key=lambda item: (arms.index(item[0][0]), item[0][1])
        )
    ]
    return pd.DataFrame(rows).fillna("–")


def _selectivity_table(
    shown: Mapping[str, Cells], arms: Sequence[Arm], sizes: Sequence[str]
) -> "pd.DataFrame":
    import pandas as pd

    names = labels(arms)
    rows: list[dict[str, Any]] = []
    for title, cells in shown.items():
        for arm in arms:
            here = {k: cells[arm, k] for k in sizes if (arm, k) in cells}
            if here:
                values = {f"k = {k}": with_interval(r.value, r.low, r.high) for k, r in here.items()}
                rows.append(
                    {"model": names[arm], "rows": title, **values, "n": str(next(iter(here.values())).n)}
                )
    return pd.DataFrame(rows).fillna("–")
