"""Two models side by side: where their states part, what each layer says, and both on shared components."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undo_probe.errors import UndoProbeError
from undo_probe.figures.drift import heat, map_scale, short_layer
from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import BLUE, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, faint, layer_label, plain
from undo_probe.figures.tables import number, with_interval

if TYPE_CHECKING:
    import pandas as pd

READ = "read"
SPLITS = {"forget": VERMILION, "retain": BLUE, "neutral": GREY}
_DASHES = {"forget": "solid", "retain": "dash", "neutral": "dot"}
LAYERED = {
    "relative_distance": "distance / norm",
    "mean_shift": "shift of the mean / norm",
    "shift_share": "share of the shift that is one shift",
    "cka": "CKA (debiased)",
    "procrustes": "Procrustes distance",
    "subspace_angle": "angle of leading subspaces (degrees)",
    "norm_ratio": "norm of B / norm of A",
    "cosine": "cosine",
}
READERS = {
    "a": ("A itself", INK, "solid"),
    "own": ("B, own decoder", VERMILION, "solid"),
    "a's": ("B, A’s decoder", PURPLE, "dash"),
    "mapped": ("B mapped to A’s basis", ORANGE, "dot"),
    "tuned": ("B, A’s tuned lens", SKY, "longdash"),
}


@dataclass(frozen=True)
class Series:
    """One line of a panel; ``thin`` ones are what it is read against."""

    name: str
    color: str
    dash: str
    layers: Sequence[str]
    values: Sequence[float | None]
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()
    thin: bool = False


def where(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """Layer by position, one panel a split: distance over the norm, or CKA where the widths differ."""
    return _map(
        lines, facts, "relative_distance" if _has(lines, "relative_distance") else "cka", "compared-where"
    )


def alike(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """Layer by position, one panel a split: CKA, which a rotation leaves alone."""
    return _map(lines, facts, "cka", "compared-alike")


def layers(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """Every measure of the residual stream by layer at the read position, with floor and twin."""
    panels = []
    for measure, title in LAYERED.items():
        found = lines.loc[(lines["measure"] == measure) & (lines["position"] == READ)]
        if found["value"].notna().any():
            panels.append((title, _by_split(found, facts)))
    beside = " and what the twin shows (dash-dotted)" if facts["twin"] else ""
    return _line_figure(
        "compared-layers", "How far apart, layer by layer", panels, facts,
        f"States at the last token of the prompt, {facts['b']} against {facts['a']}; bands are 95% intervals over families. "
        f"Thin lines are the noise floor on forget rows ({_floor_words(facts)}){beside}. Look for the layer from which the "
        "forget line leaves both the retain line and the floor. CKA and Procrustes do not see a rotation, the others do.",
        "forget and retain lines on top of each other: a change of the whole model, not of what should be forgotten.",
    )  # fmt: skip


def lens(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """The answer's log-probability by layer through each decoder, and how far the two lenses are apart."""
    panels = []
    for split in facts["rows"]:
        found = lines.loc[(lines["measure"] == "lens_log_probability") & (lines["split"] == split)]
        own = found.loc[found["reading"] == "own"]
        series = [_series(own, facts, "a", column="a")] if len(own) else []
        series += [
            _series(found.loc[found["reading"] == name], facts, name, column="b")
            for name in READERS
            if (found["reading"] == name).any()
        ]
        if series:
            panels.append((f"log₂ p of the answer, {split} rows", series))
    kl = lines.loc[(lines["measure"] == "lens_kl") & (lines["reading"] == "own")]
    if len(kl):
        panels.append(("divergence of own lenses (bits a token)", _by_split(kl, facts)))
    return _line_figure(
        "compared-lens", "What each layer would answer", panels, facts,
        "The logit lens: the state after each block read through a final norm and unembedding, in bits a token of the answer. "
        "A line through A’s decoder that falls while the own decoder’s stays is a change of basis; the mapped line takes that "
        "change out with a map fitted on retain rows.",
        "B’s lines on A’s at every layer but the last: the answer is still computed, and only its output is withheld.",
    )  # fmt: skip


def patched(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """What A loses of the answer when it runs with B's states after a block."""
    found = lines.loc[lines["measure"] == "patch_drop"]
    panels = []
    for reading, title in (("raw", "B’s states as they are"), ("mapped", "B’s states mapped to A’s basis")):
        part = found.loc[found["reading"] == reading]
        if len(part):
            panels.append((f"bits A loses, {title}", _by_split(part, facts)))
    depth = lines.loc[(lines["measure"] == "depth") & (lines["reading"] == "raw")]
    if len(depth):
        panels.append(("depth (1: as in the gold model)", _by_split(depth, facts)))
    return _line_figure(
        "compared-patched", "What A can still read from B’s states", panels, facts,
        "A runs on the same tokens with its states after one block replaced by B’s; the loss is in bits a token of the answer. "
        "Zero means that the state carries the answer as A’s own does.",
        "a loss at the last block alone: everything before it still holds the answer.",
    )  # fmt: skip


def probes(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """Probes of A read on B, as it is and mapped, beside probes refitted on B."""
    found = lines.loc[lines["measure"].isin(("probe_transferred", "probe_refitted"))]
    panels = []
    for target in dict.fromkeys(name.removesuffix(", mapped") for name in found["reading"]):
        part = found.loc[found["reading"].str.removesuffix(", mapped") == target]
        refitted = part.loc[part["measure"] == "probe_refitted"]
        carried = part.loc[part["measure"] == "probe_transferred"]
        named = [
            ("A’s own", INK, "solid", refitted, "a"),
            ("refitted on B", VERMILION, "solid", refitted, "b"),
            ("A’s, read on B", PURPLE, "dash", carried.loc[carried["reading"] == target], "b"),
            ("A’s, on B mapped", ORANGE, "dot", carried.loc[carried["reading"] != target], "b"),
        ]
        panels.append((
            facts["words"]["targets"].get(target, target),
            [_plain(name, color, dash, rows, facts, column) for name, color, dash, rows, column in named if len(rows)],
        ))  # fmt: skip
    return _line_figure(
        "compared-probes", "What a linear probe reads", panels, facts,
        "Share of forget rows whose label a probe gets right, trained on other families. Refitted: B still holds it. "
        "Transferred but not refitted would be chance; refitted and not transferred is a change of basis.",
        "a refitted probe at the level of A’s own: nothing was removed that a linear probe can find.",
    )  # fmt: skip


def points(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """Both models' states at the read position on the two leading components of all of them together."""
    if not len(points):
        raise UndoProbeError("no shared components: the two models have states of different width.")
    shown = list(dict.fromkeys(points["layer"]))
    titles = [
        f"{layer_label(layer)}, {100 * points.loc[points['layer'] == layer, 'explained'].iloc[0]:.0f}% of the variance"
        for layer in shown
    ]
    grid = Panels(titles, columns=min(3, len(shown)), panel_height=300, legend_rows=2, bottom=70, row_gap=50)
    traces = [
        _cloud(points, layer, split, model, index, facts)
        for index, layer in enumerate(shown)
        for split in facts["rows"]
        for model in ("a", "b")
    ]
    bare = axis(showticklabels=False, zeroline=False)
    return Figure(
        name="compared-points",
        title="Both models’ states on shared components",
        plotly=draw(traces, grid.layout(bare, bare, showlegend=True)),
        caption=(
            f"Each point is one prompt at its last token; hollow circles are {facts['a']}, filled diamonds {facts['b']}. The "
            "components are those of both models’ states together, so the picture favours neither."
        ),
        opposite="diamonds on their circles: in these two directions the states did not move.",
        table=_centres(points),
        narrow=grid.narrow(),
    )


Maker = Callable[["pd.DataFrame", "pd.DataFrame", Mapping[str, Any]], Figure]
# name -> figure, in the order of the page
FIGURES: dict[str, Maker] = {
    "where": where,
    "alike": alike,
    "layers": layers,
    "lens": lens,
    "patched": patched,
    "probes": probes,
    "points": points,
}


def summary(lines: "pd.DataFrame") -> "pd.DataFrame":
    """Behaviour and the read position's distance, split by split, as text: what a reader checks the words against."""
    import pandas as pd

    chosen = lines.loc[
        lines["measure"].isin(("kl", "answer_log_probability", "accuracy"))
        | (lines["measure"].isin(("relative_distance", "cka")) & (lines["position"] == READ))
    ]
    rows = [
        {
            "measure": f"{row['measure'].replace('_', ' ')}{', ' + layer_label(row['layer']) if row['layer'] else ''}",
            "rows": row["split"],
            "value": with_interval(_known(row["value"]), _known(row["low"]), _known(row["high"]), 3),
            "A": number(_known(row["a"]), 3),
            "B": number(_known(row["b"]), 3),
            "floor": number(_known(row["floor"]), 3),
            "twin": number(_known(row["twin"]), 3),
            "n": f"{row['n']} ({row['n_clusters']})",
        }
        for row in chosen.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _known(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def _has(lines: "pd.DataFrame", measure: str) -> bool:
    return bool((lines["measure"] == measure).any())


def _floor_words(facts: Mapping[str, Any]) -> str:
    return "another seed of A" if facts["floor"] == "second seed" else "what other prompts alone would do"


def _map(lines: "pd.DataFrame", facts: Mapping[str, Any], measure: str, name: str) -> Figure:
    found = lines.loc[lines["measure"] == measure]
    names = [short_layer(layer) for layer in facts["layers"]]
    splits = [split for split in facts["rows"] if (found["split"] == split).any()]
    columns = {split: facts["positions"][split] for split in splits}
    grid = Panels([f"{split} rows" for split in splits], columns=len(splits), panel_height=max(150, 17 * len(names)),
                  gap=0.05, bottom=56, labels_in_first_column=False)  # fmt: skip
    at = {(r["split"], r["layer"], r["position"]): _known(r["value"]) for r in found.to_dict("records")}
    values = {
        split: [
            [at.get((split, layer, position)) for position in columns[split]] for layer in facts["layers"]
        ]
        for split in splits
    }
    scale = map_scale([row for each in values.values() for row in each], measure)
    traces = []
    for index, split in enumerate(splits):
        trace = heat(values[split], [plain(_place(each)) for each in columns[split]], names, index) | scale
        if len(names) > 16 or len(columns[split]) * len(splits) > 16:
            trace["texttemplate"] = ""
        traces.append(trace)
    text = axis(showgrid=False, type="category", tickangle=0)
    layout = grid.layout(
        {**text, "title": {"text": "position", "font": text["title"]["font"], "standoff": 6}}, text
    )
    floor = max(
        (
            v
            for r in found.loc[found["position"] == READ].to_dict("records")
            if (v := _known(r["floor"])) is not None
        ),
        default=None,
    )
    said = (
        f" The largest noise floor at the read position is {number(floor, 3)}."
        if measure != "cka" and floor is not None
        else ""
    )
    return Figure(
        name=name,
        title="Where the two part" if measure == "relative_distance" else "Where the two are no longer alike",
        plotly=draw(traces, layout),
        caption=(
            f"{LAYERED[measure]} of {facts['b']}’s states against {facts['a']}’s: one row a layer (emb is the embedding), one column "
            f"a token position, of which “{READ}” is where the answer is read. Dark is far." + said
        ),
        opposite="panels that look the same: the change does not know forget rows from others.",
        table=_map_table(values, columns, names),
        narrow=grid.narrow(),
    )  # fmt: skip


def _map_table(
    values: Mapping[str, list[list[float | None]]], columns: Mapping[str, Sequence[str]], names: Sequence[str]
) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame([
        {"layer": name, "rows": split, **dict(zip(columns[split], map(number, row), strict=True))}
        for split, each in values.items()
        for name, row in zip(names, each, strict=True)
    ]).fillna("")  # fmt: skip


def _place(position: str) -> str:
    return position.removeprefix("pos ").replace(f"{READ} ", "")


def _by_split(found: "pd.DataFrame", facts: Mapping[str, Any]) -> list[Series]:
    series = []
    for split, color in SPLITS.items():
        rows = found.loc[found["split"] == split]
        if not len(rows):
            continue
        series.append(_plain(split, color, _DASHES[split], rows, facts))
        if split == "forget":
            for column, name, dash in (
                ("twin", "twin, forget", "dashdot"),
                ("floor", "noise floor, forget", "dot"),
            ):
                if rows[column].notna().any():
                    series.append(
                        _plain(
                            name, color if column == "twin" else GREY, dash, rows, facts, column, thin=True
                        )
                    )
    return series


def _series(rows: "pd.DataFrame", facts: Mapping[str, Any], reader: str, column: str) -> Series:
    return _plain(*READERS[reader], rows, facts, column)


def _plain(
    name: str, color: str, dash: str, rows: "pd.DataFrame", facts: Mapping[str, Any], column: str = "value", thin: bool = False
) -> Series:  # fmt: skip
    at = {row["layer"]: row for row in rows.to_dict("records")}
    layers = [layer for layer in facts["layers"] if layer in at]
    limits = (
        [[_known(at[layer][name]) for layer in layers] for name in ("low", "high")]
        if column == "value"
        else [(), ()]
    )
    return Series(
        name, color, dash, layers, [_known(at[layer][column]) for layer in layers], *limits, thin=thin
    )


def _line_figure(
    name: str, title: str, panels: Sequence[tuple[str, Sequence[Series]]], facts: Mapping[str, Any], caption: str, opposite: str
) -> Figure:  # fmt: skip
    if not panels:
        raise UndoProbeError(
            f"nothing was measured for “{title}” ({'; '.join(facts['notes']) or 'its part was left out'})."
        )
    names = list(dict.fromkeys(series.name for _, each in panels for series in each))
    grid = Panels([plain(panel) for panel, _ in panels], columns=min(2, len(panels)), panel_height=190, bottom=74, row_gap=70,
                  legend_rows=len(names) // 2 + 1, labels_in_first_column=False)  # fmt: skip
    at = {layer: index for index, layer in enumerate(facts["layers"])}
    seen: set[str] = set()
    traces = []
    for index, (_, each) in enumerate(panels):
        for series in each:
            traces += _traces(series, at, index, series.name not in seen)
            seen.add(series.name)
    step = max(1, -(-len(at) // 12))
    ticks = {
        "tickvals": list(at.values())[::step],
        "ticktext": [plain(short_layer(layer)) for layer in at][::step],
    }
    layout = grid.layout(
        axis(showgrid=False, range=[-0.3, len(at) - 0.7], **ticks), axis(nticks=5), showlegend=True
    )
    return Figure(name, title, draw(traces, layout), caption, opposite, _series_table(panels), grid.narrow())


def _traces(series: Series, at: Mapping[str, int], index: int, legend: bool) -> list[dict[str, Any]]:
    x = [at[layer] for layer in series.layers]
    band = []
    kept = [
        (place, low, high)
        for place, low, high in zip(x, series.lows, series.highs, strict=False)
        if low is not None and high is not None
    ]
    if kept:
        around = [*kept, *reversed(kept)]
        ends = [high for _, _, high in kept] + [low for _, low, _ in reversed(kept)]
        band.append({
            "type": "scatter", "x": [place for place, _, _ in around], "y": ends, "fill": "toself", "mode": "lines",
            "line": {"width": 0}, "fillcolor": faint(series.color, 0.16), "hoverinfo": "skip", "showlegend": False,
            **axis_names(index),
        })  # fmt: skip
    line = {"color": series.color, "dash": series.dash, "width": 1.3 if series.thin else 2.2}
    return [*band, {
        "type": "scatter", "mode": "lines" if series.thin else "lines+markers", "x": x, "y": list(series.values),
        "name": plain(series.name), "legendgroup": series.name, "showlegend": legend, "line": line,
        "marker": {"size": 5, "color": series.color}, "text": [plain(layer_label(layer)) for layer in series.layers],
        "hovertemplate": f"{plain(series.name)}, %{{text}}: <b>%{{y:.3f}}</b><extra></extra>", **axis_names(index),
    }]  # fmt: skip


def _series_table(panels: Sequence[tuple[str, Sequence[Series]]]) -> "pd.DataFrame":
    import pandas as pd

    lines = []
    for panel, each in panels:
        for series in each:
            limits = zip(
                series.lows or [None] * len(series.layers),
                series.highs or [None] * len(series.layers),
                strict=True,
            )
            for layer, value, (low, high) in zip(series.layers, series.values, limits, strict=True):
                lines.append({
                    "measure": panel, "line": series.name, "layer": layer_label(layer), "value": with_interval(value, low, high, 3)
                })  # fmt: skip
    return pd.DataFrame(lines)


def _cloud(
    points: "pd.DataFrame", layer: str, split: str, model: str, index: int, facts: Mapping[str, Any]
) -> dict[str, Any]:
    rows = points.loc[(points["layer"] == layer) & (points["split"] == split) & (points["model"] == model)]
    name = f"{facts[model]}, {split}"
    return {
        "type": "scatter", "mode": "markers", "x": rows["x"].tolist(), "y": rows["y"].tolist(), "name": plain(name),
        "legendgroup": name, "showlegend": index == 0, "opacity": 0.75,
        "marker": {"size": 7, "color": SPLITS[split], "symbol": "circle-open" if model == "a" else "diamond"},
        "hovertemplate": f"{plain(name)}<extra></extra>", **axis_names(index),
    }  # fmt: skip


def _centres(points: "pd.DataFrame") -> "pd.DataFrame":
    """Where each cloud's centre lies; the points themselves are in the comparison's folder."""
    means = points.groupby(["layer", "split", "model"], sort=False)[["x", "y"]].mean().reset_index()
    means["layer"] = [layer_label(layer) for layer in means["layer"]]
    return means.assign(x=[number(x) for x in means["x"]], y=[number(y) for y in means["y"]])
