"""Who writes the answer: what every head and MLP adds to the right token's lead, stage by stage."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.heat import AROUND_ZERO, ROW, colors, heat, map_layout, most_of
from undo_probe.figures.layout import Panels, draw
from undo_probe.figures.look import labels, layer_order, plain
from undo_probe.figures.stream import asked, cells_of, chain
from undo_probe.figures.tables import nothing, number, readings_of, with_interval
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

_WIDEST = 40
"""Columns of the map of components; of larger models heads are summed by block."""


def attribution(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """Stage by component: what every head and MLP adds to the answer's lead over the other tokens."""
    found = [r for r in readings_of(readings, "attribution", "forget") if r.value is not None]
    if not found:
        raise nothing("no attribution yet", "undo-probe score RUN --also attribution")
    words = words or TaskWords()
    arms = [arm for arm in chain(r.arm for r in found) if arm.stage != "noised"]
    names = labels(arms)
    columns = _columns(found)
    values = [[_summed(found, arm, parts) for parts in columns.values()] for arm in arms]
    grid = Panels([""], columns=1, panel_height=ROW * len(arms), bottom=62, top=34)
    far = max(1e-9, most_of([abs(v) for row in values for v in row[:-1] if v is not None]))
    trace = heat(values, list(columns), [plain(names[arm]) for arm in arms], 0)
    trace |= colors(AROUND_ZERO, -far, far) | {"texttemplate": "%{z:.1f}" if len(columns) <= 20 else ""}
    layout = map_layout(grid, len(arms), type="category", **_ticks(list(columns)))
    lead = {r.arm: r for r in found if r.subset == "lead"}
    agree = {r.arm: r for r in readings_of(readings, "attribution_cosine", "forget") if r.value is not None}
    return Figure(
        name="stream-attribution",
        title="Which heads and MLPs write the answer",
        plotly=draw([trace], layout),
        caption=(
            "Direct logit attribution where the answer is read: what each component adds to the right token’s lead "
            "over the other options, or over all tokens, in logits, the final norm frozen at the model’s own scale; a "
            "row adds up to its last column. Violet adds, orange takes away. Look for components that write the "
            "answer in the original and take it away in the teacher: there it was overwritten, not removed before. A "
            f"contribution is no cause: what one block writes a later one may cancel. {_agreement(agree, names, words)}"
        ),
        opposite=(
            "a teacher whose early components add what the original’s do, with one late component against them, holds "
            "the answer and speaks over it; components near zero all along have nothing to say."
        ),
        table=_attribution_table(columns, values, arms, names, lead, agree),
        narrow={**grid.narrow(), "data.0.texttemplate": "", "margin.l": 112},
    )


def _columns(found: Sequence[Reading]) -> dict[str, list[tuple[str, str | None]]]:
    """Column name to the components that it sums; biases together, heads by block where they are too many."""
    places = sorted(
        {(r.layer, r.subset) for r in found if r.layer}, key=lambda p: (layer_order(p[0] or ""), p[1])
    )
    heads = [p for p in places if p[1].startswith("head")]
    many = len(places) > _WIDEST
    columns: dict[str, list[tuple[str, str | None]]] = {"emb": []}
    rest: list[tuple[str, str | None]] = []
    for layer, name in sorted(places, key=lambda p: (layer_order(p[0] or "")[0], p[1] == "MLP", _head(p[1]))):
        block = (layer or "").split(".")[1]
        if name == "embedding":
            key = "emb"
        elif name == "MLP":
            key = f"{block} MLP"
        elif (layer, name) in heads:
            key = f"{block} heads" if many else f"{block} h{_head(name)}"
        else:
            rest.append((name, layer))
            continue
        columns.setdefault(key, []).append((name, layer))
    return {**columns, "biases": [*rest, ("bias", None)], "lead": [("lead", None)]}


def _head(name: str) -> int:
    return int(name.removeprefix("head ")) if name.startswith("head ") else 0


def _ticks(columns: Sequence[str]) -> dict[str, Any]:
    """What stands below each column: the component, and under the first of a block the block."""
    shown, last = [], ""
    for name in columns:
        block, _, inside = name.partition(" ")
        fresh = bool(inside) and block != last
        last = block if inside else last
        shown.append(f"{inside or name}<br>{f'block {block}' if fresh else ''}")
    return {"tickmode": "array", "tickvals": list(columns), "ticktext": shown}


def _summed(found: Sequence[Reading], arm: Arm, parts: Sequence[tuple[str, str | None]]) -> float | None:
    values = [r.value for r in found if r.arm == arm and (r.subset, r.layer) in parts and r.value is not None]
    return sum(values) if values else None


def _agreement(agree: Mapping[Arm, Reading], names: Mapping[Arm, str], words: TaskWords) -> str:
    shown = [a for a in names if a in agree and a.stage in ("unlearned", "distilled")]
    if not shown:
        return ""
    each = ", ".join(
        f"{names[a]} {with_interval(agree[a].value, agree[a].low, agree[a].high)}" for a in shown
    )
    size = asked([cells_of(list(agree.values()))], words)
    return f"Cosine of a row’s contributions with the original’s, with 95% intervals{size}: {each}."


def _attribution_table(
    columns: Mapping[str, Any],
    values: Sequence[Sequence[float | None]],
    arms: Sequence[Arm],
    names: Mapping[Arm, str],
    lead: Mapping[Arm, Reading],
    agree: Mapping[Arm, Reading],
) -> "pd.DataFrame":
    import pandas as pd

    lines = []
    for arm, row in zip(arms, values, strict=True):
        line = {"model": names[arm]} | {c: number(v) for c, v in zip(columns, row, strict=True)}
        total, cosine = lead.get(arm), agree.get(arm)
        if total is not None:
            line["lead"] = with_interval(total.value, total.low, total.high)
        if cosine is not None:
            line["cosine with the original"] = with_interval(cosine.value, cosine.low, cosine.high)
        lines.append(line)
    return pd.DataFrame(lines).fillna("–")
