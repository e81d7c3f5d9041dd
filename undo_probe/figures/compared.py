"""Two models side by side: where their states part, what each layer says, and both on shared components."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from undo_probe.errors import UndoProbeError
from undo_probe.figures.by_layer import Lines, Series, known, line_figure, series
from undo_probe.figures.figure import Figure
from undo_probe.figures.heat import distance_colors, heat, short
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import BLUE, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, layer_label, plain
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


def where(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """Layer by position, one panel a split: distance over the norm, or CKA where the widths differ."""
    measure = "relative_distance" if "relative_distance" in set(lines["measure"]) else "cka"
    return _map(lines, facts, measure, "compared-where")


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
    return _drawn(
        "compared-layers", "How far apart, layer by layer", panels, facts,
        f"States at the last token of the prompt, {facts['b']} against {facts['a']}; bands are 95% intervals over "
        f"families. Thin lines are the noise floor on forget rows ({_floor_words(facts)}){beside}. Look for the layer "
        "from which the forget line leaves both the retain line and the floor. CKA and Procrustes do not see a "
        "rotation, the others do.",
        "forget and retain lines on top of each other: a change of the whole model, not of what should be forgotten.",
    )  # fmt: skip


def lens(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """The answer's log-probability by layer through each decoder, and how far the two lenses are apart."""
    panels = []
    for split in facts["rows"]:
        found = lines.loc[(lines["measure"] == "lens_log_probability") & (lines["split"] == split)]
        own = found.loc[found["reading"] == "own"]
        drawn = [series(READERS["a"], own, facts["layers"], "a")] if len(own) else []
        drawn += [
            series(READERS[name], found.loc[found["reading"] == name], facts["layers"], "b")
            for name in READERS
            if (found["reading"] == name).any()
        ]
        if drawn:
            panels.append((f"log₂ p of the answer, {split} rows", drawn))
    kl = lines.loc[(lines["measure"] == "lens_kl") & (lines["reading"] == "own")]
    if len(kl):
        panels.append(("divergence of own lenses (bits a token)", _by_split(kl, facts)))
    return _drawn(
        "compared-lens", "What each layer would answer", panels, facts,
        "The logit lens: the state after each block read through a final norm and unembedding, in bits a token of the "
        "answer. A line through A’s decoder that falls while the own decoder’s stays is a change of basis; the mapped "
        "line takes that change out with a map fitted on retain rows, and the tuned lens was fitted there to A.",
        "B’s lines on A’s at every layer but the last: the answer is still computed, and only its output is withheld.",
    )  # fmt: skip


def patched(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """What A loses of the answer when it runs with B's states after a block."""
    found = lines.loc[lines["measure"] == "patch_drop"]
    panels = []
    for reading, title in (("raw", "states as they are"), ("mapped", "states mapped")):
        part = found.loc[found["reading"] == reading]
        if len(part):
            panels.append((f"bits A loses, {title}", _by_split(part, facts)))
    depth = lines.loc[(lines["measure"] == "depth") & (lines["reading"] == "raw")]
    if len(depth):
        panels.append(("depth (1: as in the gold model)", _by_split(depth, facts)))
    return _drawn(
        "compared-patched", "What A can still read from B’s states", panels, facts,
        "A runs on the same tokens with its states after one block replaced by B’s; the loss is in bits a token of the "
        "answer. Zero means that the state carries the answer as A’s own does.",
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
            (("A’s own", INK, "solid"), refitted, "a"),
            (("refitted on B", VERMILION, "solid"), refitted, "b"),
            (("A’s, read on B", PURPLE, "dash"), carried.loc[carried["reading"] == target], "b"),
            (("A’s, on B mapped", ORANGE, "dot"), carried.loc[carried["reading"] != target], "b"),
        ]
        drawn = [series(look, rows, facts["layers"], column) for look, rows, column in named if len(rows)]
        panels.append((facts["words"]["targets"].get(target, target), drawn))
    return _drawn(
        "compared-probes", "What a linear probe reads", panels, facts,
        "Share of forget rows whose label a probe gets right that was trained on other families. What a refitted probe "
        "reads, B still holds; what A’s probe reads only on mapped states, B holds in another basis.",
        "a refitted probe at the level of A’s own: nothing was removed that a linear probe can find.",
    )  # fmt: skip


def attribution(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """By how much each head and MLP writes more or less of the answer's lead, block by block, a panel a split."""
    found = lines.loc[(lines["measure"] == "attribution") & lines["layer"].str.startswith("blocks.")]
    parts = [name for name in dict.fromkeys(found["reading"]) if name.startswith("head ") or name == "MLP"]
    parts.sort(key=lambda name: (name == "MLP", int(name.removeprefix("head ")) if name != "MLP" else 0))
    if not parts:
        raise UndoProbeError(
            "nothing is attributed to heads here (its part was left out, or the shapes differ)."
        )
    at = {(r["split"], _block(r["layer"]), r["reading"]): known(r["value"]) for r in found.to_dict("records")}
    blocks = sorted({_block(layer) for layer in found["layer"]})
    splits = [split for split in facts["rows"] if split in set(found["split"])]
    shown = [name.removeprefix("head ") for name in parts]
    values = {
        split: [[at.get((split, block, part)) for part in parts] for block in blocks] for split in splits
    }
    leads = lines.loc[(lines["measure"] == "attribution") & (lines["reading"] == "lead")].to_dict("records")
    said = "; ".join(
        f"{number(row['a'])} in A and {number(row['b'])} in B on {row['split']} rows" for row in leads
    )
    return _maps(
        "compared-attribution",
        "Who writes the answer",
        values,
        dict.fromkeys(splits, shown),
        [str(block) for block in blocks],
        ("change", "head"),
        "Change, from A to B, of what each head (by number) and MLP adds to the lead of the answer’s first token over "
        f"its rivals, in logits; one row a block. The leads are {said}. A contribution is no cause: a later block may "
        "undo it.",
        "pale panels beside a large fall of the lead: what changed is not what writes the answer but what it is given.",
    )


def weights(lines: "pd.DataFrame", points: "pd.DataFrame", facts: Mapping[str, Any]) -> Figure:
    """How far each tensor of each block lies from A's, one row a block."""
    found = lines.loc[(lines["measure"] == "weight_distance") & lines["reading"].str.startswith("blocks.")]
    if not len(found):
        raise UndoProbeError(
            "nothing is said of weights here (their part was left out, or the shapes differ)."
        )
    named = {tuple(r["reading"].split(".", 2)[1:]): known(r["value"]) for r in found.to_dict("records")}
    blocks = sorted({int(block) for block, _ in named})
    tensors = list(dict.fromkeys(tensor for _, tensor in named))
    values = [[named.get((str(block), tensor)) for tensor in tensors] for block in blocks]
    return _maps(
        "compared-weights",
        "How far the weights moved",
        {"block": values},
        {"block": [_short_tensor(tensor) for tensor in tensors]},
        [str(block) for block in blocks],
        ("weight_distance", "tensor"),
        f"Distance of {facts['b']}’s weights from {facts['a']}’s over the norm of these, tensor by tensor (its W left "
        "out), one row a block. Dark is far; where weights moved is not yet where knowledge was.",
        "pale everywhere: the two are the same model.",
    )


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
            f"Each point is one prompt at its last token; hollow circles are {facts['a']}, filled diamonds "
            f"{facts['b']}. The components are those of both models’ states together, so the picture favours neither."
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
    "attribution": attribution,
    "weights": weights,
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
            "value": with_interval(known(row["value"]), known(row["low"]), known(row["high"]), 3),
            "A": number(known(row["a"]), 3),
            "B": number(known(row["b"]), 3),
            "floor": number(known(row["floor"]), 3),
            "twin": number(known(row["twin"]), 3),
            "n": f"{row['n']} ({row['n_clusters']})",
        }
        for row in chosen.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _floor_words(facts: Mapping[str, Any]) -> str:
    return "another seed of A" if facts["floor"] == "second seed" else "what other prompts alone would do"


def _map(lines: "pd.DataFrame", facts: Mapping[str, Any], measure: str, name: str) -> Figure:
    found = lines.loc[lines["measure"] == measure]
    splits = [split for split in facts["rows"] if (found["split"] == split).any()]
    columns = {split: facts["positions"][split] for split in splits}
    at = {(r["split"], r["layer"], r["position"]): known(r["value"]) for r in found.to_dict("records")}
    values = {
        split: [
            [at.get((split, layer, position)) for position in columns[split]] for layer in facts["layers"]
        ]
        for split in splits
    }
    return _maps(
        name,
        "Where the two part" if measure == "relative_distance" else "Where the two are no longer alike",
        values,
        {split: [_place(each) for each in columns[split]] for split in splits},
        [short(layer) for layer in facts["layers"]],
        (measure, "position"),
        f"States of {facts['b']} against {facts['a']}, {LAYERED[measure]}: one row a layer (emb is the embedding), "
        f"one column a token position, of which “{READ}” is where the answer is read. Dark is far.",
        "panels that look the same: the change does not know forget rows from others.",
    )  # fmt: skip


Cells = Mapping[str, list[list[float | None]]]


def _maps(
    name: str, title: str, values: Cells, columns: Mapping[str, Sequence[str]], rows: list[str],
    of: tuple[str, str], caption: str, opposite: str,
) -> Figure:  # fmt: skip
    """One heat map a split on one scale; ``of`` is the measure and what the columns are."""
    titles = [f"{split} rows" if split in SPLITS else "" for split in values]
    grid = Panels(titles, columns=len(values), panel_height=max(150, 17 * len(rows)),
                  gap=0.05, bottom=56, labels_in_first_column=False)  # fmt: skip
    scale = distance_colors([row for each in values.values() for row in each], of[0])
    roomy = len(rows) <= 16 and len(next(iter(columns.values()))) * len(values) <= 16
    traces = [
        heat(values[split], [plain(each) for each in columns[split]], rows, index)
        | scale
        | ({} if roomy else {"texttemplate": ""})
        for index, split in enumerate(values)
    ]
    text = axis(showgrid=False, type="category", tickangle=0)
    below = {**text, "title": {**text["title"], "text": of[1], "standoff": 6}}
    plot, table = draw(traces, grid.layout(below, text)), _map_table(values, columns, rows)
    return Figure(name, title, plot, caption, opposite, table, grid.narrow())


def _map_table(
    values: Mapping[str, list[list[float | None]]], columns: Mapping[str, Sequence[str]], names: Sequence[str]
) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame([
        {"layer": name, "rows": split, **dict(zip(columns[split], map(number, row), strict=True))}
        for split, each in values.items()
        for name, row in zip(names, each, strict=True)
    ]).fillna("")  # fmt: skip


def _short_tensor(name: str) -> str:
    return name.rpartition(".")[2].lstrip("_").removeprefix("W_") if "W_" in name else name.removesuffix(".w")


def _block(layer: str) -> int:
    return int(layer.split(".")[1])


def _place(position: str) -> str:
    return position.removeprefix("pos ").replace(f"{READ} ", "")


def _by_split(found: "pd.DataFrame", facts: Mapping[str, Any]) -> list[Series]:
    """A line for each split, and for forget rows what they are read against."""
    drawn = []
    for split, color in SPLITS.items():
        rows = found.loc[found["split"] == split]
        if not len(rows):
            continue
        drawn.append(series((split, color, _DASHES[split]), rows, facts["layers"]))
        beside = {"twin": ("twin, forget", color, "dashdot"), "floor": ("noise floor, forget", GREY, "dot")}
        for column, named in beside.items() if split == "forget" else ():
            if rows[column].notna().any():
                drawn.append(series(named, rows, facts["layers"], column, thin=True))
    return drawn


def _drawn(
    name: str, title: str, panels: Lines, facts: Mapping[str, Any], caption: str, opposite: str
) -> Figure:
    why_not = "; ".join(facts["notes"]) or "its part was left out"
    return line_figure(name, title, panels, facts["layers"], caption, opposite, why_not)


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
    import pandas as pd

    clouds: dict[tuple[str, str, str], list[Any]] = {}
    for row in points.to_dict("records"):
        clouds.setdefault((layer_label(row["layer"]), row["split"], row["model"]), []).append(row)
    return pd.DataFrame([
        dict(zip(("layer", "split", "model"), key, strict=True))
        | {name: number(sum(row[name] for row in rows) / len(rows)) for name in ("x", "y")}
        for key, rows in clouds.items()
    ])  # fmt: skip
