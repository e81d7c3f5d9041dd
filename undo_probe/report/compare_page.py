"""The page of two models side by side: words, figures, and prompts token by token."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undo_probe.figures.compared import summary
from undo_probe.figures.look import clean, layer_label
from undo_probe.report.html import fill, save_page, shown
from undo_probe.report.sections import flat

if TYPE_CHECKING:
    from undo_probe.comparison import Comparison

_UNNAMED = {"words", "notes", "layers", "positions"}


@dataclass(frozen=True)
class Token:
    """A token as the page shows it: its text, how strongly it is coloured (0 to 100) and its figures."""

    text: str
    shade: int
    figures: str
    answer: bool


@dataclass(frozen=True)
class TokenMap:
    """One way of colouring the prompts: what the colour is, and rows by split."""

    name: str
    scale: str
    rows: list[tuple[str, list[Token]]]


def write_compare_page(comparison: "Comparison", path: Path) -> Path:
    """Write the page of a comparison."""
    return save_page(path, render(comparison), "compare fewer rows (max_rows)")


def render(comparison: "Comparison") -> str:
    """The page as text."""
    facts = comparison.facts
    return fill(
        "compare.html",
        facts=facts,
        words=comparison.words,
        shown={name: shown(lambda name=name: comparison.figure(name)) for name in comparison.figures},
        maps=token_maps(comparison.tokens),
        summary=summary(comparison.lines),
        settings=flat({name: value for name, value in facts.items() if name not in _UNNAMED}),
    )


def token_maps(rows: list[dict[str, Any]]) -> list[TokenMap]:
    """The prompts coloured by divergence, and by displacement at each layer that was kept."""
    if not rows:
        return []
    maps = [_token_map("divergence of what follows", "bits", rows, [row["kl"] for row in rows])]
    for layer in rows[0]["moved"]:
        moved = [row["moved"][layer] for row in rows]
        maps.append(_token_map(f"displacement {layer_label(layer)}", "of the norm", rows, moved))
    return maps


def _token_map(name: str, unit: str, rows: list[dict[str, Any]], values: list[list[float]]) -> TokenMap:
    known = sorted(value for row in values for value in row)
    most = max(known[int(0.95 * (len(known) - 1))], 1e-9)
    shown = [
        (row["split"], [_token(row, at, value, most) for at, value in enumerate(each)])
        for row, each in zip(rows, values, strict=True)
    ]
    return TokenMap(name, f"plain is 0, full colour {most:.2g} {unit} or more", shown)


def _token(row: Mapping[str, Any], at: int, value: float, most: float) -> Token:
    moved = "; ".join(f"moved {each[at]:.3f} {layer_label(layer)}" for layer, each in row["moved"].items())
    figures = f"divergence {row['kl'][at]:.3f} bits" + (f"; {moved}" if moved else "")
    text = clean(row["tokens"][at]).replace("\n", "↵")
    return Token(text or "·", round(100 * min(1.0, value / most)), figures, bool(row["answer"][at]))
