"""The residual stream of every stage: the picture to remember, depth by block, lenses, and who writes the answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.heat import (
    GREYS,
    MOVED,
    ROOMY,
    at_read,
    colors,
    distance_colors,
    heat,
    map_layout,
    short,
)
from undo_probe.figures.layout import Panels, axis_names, draw
from undo_probe.figures.look import in_order, labels, layer_label, layer_order, plain, teacher_method
from undo_probe.figures.said import said
from undo_probe.figures.tables import nothing, number, readings_of, with_interval
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

_ROW = 25
_GROUPS = ("original", "unlearned", "noised", "distilled", "twin", "oracle")
Cells = Mapping[tuple[Arm, str], Reading]
"""Arm and layer to what was read there."""


def stream(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """Stage by layer: how far from the original, how far towards the oracle, and how much of it a twin shows too."""
    words = words or TaskWords()
    moved = cells_of(at_read(readings_of(readings, "relative_distance", "forget")))
    if not moved:
        raise nothing("no drift readings yet", "undo-probe score")
    arms = chain(arm for arm, _ in moved)
    names = labels(arms)
    kind, depth = _depth(readings)
    twins = _twin_shares(moved, arms)
    panels: list[tuple[str, Cells, Callable[[list[list[float | None]]], dict[str, Any]], str]] = [
        ("distance from the original", moved, lambda z: distance_colors(z, "relative_distance"), ".2f")
    ]
    if depth:
        panels.append((f"towards the oracle ({kind})", depth, lambda _: colors(MOVED, 0.0, 1.0), ".2f"))
    if twins:
        panels.append(("share that its twin shows", twins, lambda _: colors(GREYS, 0.0, 1.0), ".0%"))
    grid = Panels([title for title, *_ in panels], columns=len(panels), panel_height=_ROW * len(arms), gap=0.025,
                  bottom=40, row_gap=76)  # fmt: skip
    rows = [plain(names[arm]) for arm in arms]
    traces, tight = [], {}
    for index, (_, cells, shade, shown) in enumerate(panels):
        layers = sorted({layer for _, layer in cells}, key=layer_order)
        z = [[level(cells.get((arm, layer))) for layer in layers] for arm in arms]
        traces.append(heat(z, [short(layer) for layer in layers], rows, index, shown) | shade(z))
        if len(layers) > ROOMY and shown == ".2f":
            tight[f"data.{index}.texttemplate"] = "%{z:.1f}" if traces[-1]["texttemplate"] else ""
    layout = map_layout(grid, len(arms), type="category")
    layout["shapes"] = _lines_between(arms, len(panels) - bool(twins))
    return Figure(
        name="stream",
        title="The residual stream, stage by stage",
        plotly=draw(traces, layout),
        caption=_stream_caption(moved, depth, twins, arms, names, words, kind),
        opposite=(
            "students as pale as the original would say that distillation put the old states back; a twin as far away "
            "as its student, that the distance is a change of basis and no sign of removal."
        ),
        table=_stream_table(moved, depth, twins, arms, names),
        narrow=grid.narrow() | tight,
    )


def chain(arms: Any) -> list[Arm]:
    """The arms of the story in its order: original, teacher, noised, students, twins, matched oracle."""
    ordered = in_order(arms)
    main = teacher_method(ordered)
    matched = "oracle_matched" if any(arm.stage == "oracle_matched" for arm in ordered) else "oracle"
    kept = [
        arm
        for arm in ordered
        if arm.variant in ("", "b", "twin")
        and (arm.stage != "unlearned" or not main or arm.method == main)
        and arm.stage in ("original", "unlearned", "noised", "distilled", matched)
        and not (arm.stage == "unlearned" and arm.variant)
    ]
    return sorted(kept, key=_group)


def _group(arm: Arm) -> int:
    if arm.variant == "twin":
        return _GROUPS.index("twin")
    return _GROUPS.index("oracle" if arm.stage.startswith("oracle") else arm.stage)


def _lines_between(arms: Sequence[Arm], panels: int) -> list[dict[str, Any]]:
    """A line between two stages, in the first panels."""
    ends = [row - 0.5 for row in range(1, len(arms)) if _group(arms[row]) != _group(arms[row - 1])]
    shapes = []
    for panel in range(panels):
        axes = axis_names(panel)
        for y in ends:
            shapes.append(
                {"type": "line", "xref": f"{axes['xaxis']} domain", "yref": axes["yaxis"], "x0": 0, "x1": 1, "y0": y,
                 "y1": y, "line": {"color": "#67676f", "width": 1}}
            )  # fmt: skip
    return shapes


def cells_of(readings: Sequence[Reading]) -> dict[tuple[Arm, str], Reading]:
    """Readings by arm and layer; the first of each."""
    return {(r.arm, r.layer or ""): r for r in reversed(readings) if r.value is not None}


def level(reading: Reading | None) -> float | None:
    """What was read, or None where nothing was."""
    return None if reading is None else reading.value


def _depth(readings: "pd.DataFrame") -> tuple[str, Cells]:
    """Depth by block after the map where there is one, else as it is."""
    rows = readings_of(readings, "depth", "forget")
    for kind in ("stitched", "raw"):
        cells = cells_of([r for r in rows if r.subset == f"{kind}, one block"])
        if cells:
            return kind, cells
    return "", {}


def _twin_shares(moved: Cells, arms: Sequence[Arm]) -> Cells:
    """The twin's distance over the arm's, where there is a twin of the same stage and alpha."""
    twins = {(arm.stage, arm.alpha): arm for arm in arms if arm.variant == "twin"}
    found: dict[tuple[Arm, str], Reading] = {}
    for (arm, layer), reading in moved.items():
        twin = twins.get((arm.stage, arm.alpha))
        theirs = level(moved.get((twin, layer))) if twin is not None and arm in arms else None
        if arm.variant or theirs is None or not reading.value:
            continue
        found[arm, layer] = Reading(arm, "twin_share", "forget", layer=layer, value=theirs / reading.value)
    return found


def asked(cells: Sequence[Cells], words: TaskWords) -> str:
    """How many rows and families the readings stand on."""
    sizes = {(r.n, r.n_clusters) for each in cells for r in each.values() if r.n}
    if not sizes:
        return ""
    n, clusters = max(sizes)
    kind = "rows" if words.scored else "questions"
    upto = "up to " if len(sizes) > 1 else ""
    return f" (n = {upto}{n} {kind} in {clusters} families)"


def _stream_caption(
    moved: Cells,
    depth: Cells,
    twins: Cells,
    arms: Sequence[Arm],
    names: dict[Arm, str],
    words: TaskWords,
    kind: str,
) -> str:
    speak = said(words)
    text = (
        f"Rows are models, columns the embedding and the state after each numbered block, on "
        f"{speak.rows.format('forget')} at {words.read_at}{asked([moved], words)}. Left: distance from the original’s "
        "state over that state’s norm; dark is far."
    )
    if depth:
        basis = ", after a map to the original’s basis" if kind == "stitched" else ""
        text += (
            f" Next: what the original loses when it runs on this model’s states{basis}, from 0 (nothing) to 1 (as "
            "much as with the matched oracle’s)."
        )
    elif any(arm.stage == "oracle_matched" for arm in arms):
        text += " How far towards the oracle is not measured: undo-probe score RUN --also depth adds it."
    else:
        text += " This run has no matched oracle to say how far the way to it is."
    text += (
        " Right: the share of the distance that the twin, which lost nothing, shows as well; empty without a twin."
        if twins
        else " This run has no twin, so a change of basis and a loss look alike here."
    )
    where = "Look for the stage and layer at which a row leaves the original."
    return f"{text} {where} {_here(moved, twins, arms, names)}".strip()


def _here(moved: Cells, twins: Cells, arms: Sequence[Arm], names: dict[Arm, str]) -> str:
    """What this run shows after the last block, in numbers."""
    last = max((layer for _, layer in moved), key=layer_order)
    shown = [a for a in arms if a.stage in ("unlearned", "distilled") and not a.variant]
    shown = [*shown[:1], *shown[-1:]] if len(shown) > 1 else shown
    parts = [f"{names[a]} lies {number(level(moved.get((a, last))))}" for a in shown]
    oracle = [a for a in arms if a.stage.startswith("oracle")]
    parts += [f"the oracle {number(level(moved.get((oracle[0], last))))}"] if oracle else []
    text = f"Here, {layer_label(last)}, {', '.join(parts)} of the original’s norm away." if parts else ""
    strongest = [a for a in arms if (a, last) in twins and a.stage == "distilled"]
    if strongest:
        share = twins[strongest[-1], last].value or 0.0
        text += f" Of {names[strongest[-1]]}’s distance its twin shows {share:.0%}."
    return text


def _stream_table(
    moved: Cells, depth: Cells, twins: Cells, arms: Sequence[Arm], names: dict[Arm, str]
) -> "pd.DataFrame":
    import pandas as pd

    layers = sorted({layer for _, layer in moved}, key=layer_order)
    lines = []
    for arm in arms:
        for layer in layers:
            here, deep = moved.get((arm, layer)), depth.get((arm, layer))
            if here is None:
                continue
            line = {"model": names[arm], "layer": layer_label(layer)}
            line["distance (95% interval)"] = with_interval(here.value, here.low, here.high)
            if depth:
                line["towards the oracle"] = (
                    "–" if deep is None else with_interval(deep.value, deep.low, deep.high)
                )
            if twins:
                share = level(twins.get((arm, layer)))
                line["its twin’s share"] = "–" if share is None else f"{share:.0%}"
            lines.append(line | {"n": str(here.n), "families": str(here.n_clusters)})
    return pd.DataFrame(lines)
