"""What every figure function returns: a plotly figure that stays on its page, with its words and numbers."""

import base64
import functools
import gzip
import html
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undo_probe import files
from undo_probe.errors import UndoProbeError
from undo_probe.figures.look import clean

if TYPE_CHECKING:
    import pandas as pd

CONFIG: dict[str, Any] = {
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
}
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Figure:
    """A plotly figure with what a reader needs to judge it.

    ``caption`` says what to look for and ``opposite`` what would have shown the opposite; ``table`` holds the
    numbers drawn. ``narrow`` are layout settings by dotted name (``data.0.`` and so on
    for a trace's), which reports apply below a width of ``wide_from`` pixels.
    """

    name: str
    title: str
    plotly: Any = field(repr=False)
    caption: str
    opposite: str
    table: "pd.DataFrame" = field(repr=False)
    narrow: dict[str, Any] = field(default_factory=dict, repr=False)
    wide_from: int = 600

    def spec(self) -> str:
        """Data, layout, configuration and narrow layout as JSON that is safe inside a script element."""
        drawn = json.loads(self.plotly.to_json())
        return script_json({**drawn, "config": CONFIG, "narrow": self.narrow, "wide_from": self.wide_from})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure as a self-contained page (``.html``) or as plotly JSON (``.json``)."""
        path = Path(path)
        if path.suffix == ".html":
            files.write_text(path, _page(self))
        elif path.suffix == ".json":
            files.write_text(path, self.plotly.to_json())
        else:
            raise UndoProbeError(
                f"cannot save a figure as {path.name!r}: expected a name that ends in .html or .json. "
                "For a picture, open the page and use the camera button above the figure."
            )
        return path

    def _repr_html_(self) -> str:
        return _fragment(self)


def script_json(value: object) -> str:
    """JSON for a script element: no character that HTML or JavaScript could take for its own."""
    text = json.dumps(value, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


@functools.cache
def plotly_source() -> str:
    """The JavaScript of plotly, from the installed package; ``</script`` cannot occur in it."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")


@functools.cache
def _packed_source() -> str:
    return base64.b64encode(gzip.compress(plotly_source().encode(), 9, mtime=0)).decode()


def table_html(table: "pd.DataFrame") -> str:
    """A table as plain HTML, every cell escaped, the first column as row headings."""
    head = "".join(f'<th scope="col">{html.escape(clean(str(name)))}</th>' for name in table.columns)
    body = ""
    for row in table.itertuples(index=False):
        first, *rest = (cell_text(cell) for cell in row)
        cells = "".join(f"<td{'' if _is_number(cell) else _WORDS}>{_in_lines(cell)}</td>" for cell in rest)
        body += f'<tr><th scope="row">{_in_lines(first)}</th>{cells}</tr>\n'
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


_WORDS = ' class="words"'


def _in_lines(text: str) -> str:
    """A cell's text escaped; what follows a line break stands small below the rest."""
    first, _, below = html.escape(clean(text)).partition("\n")
    return f"{first}<br><small>{below}</small>" if below else first


def _is_number(cell: str) -> bool:
    return not cell or re.match(r"[≥<−–-]?\s?(\d[\d.,]*\s?([%(,kMGTP–]|to\b|$)|$)", cell) is not None


def cell_text(cell: object) -> str:
    """A value for a table cell: three digits, nothing for a missing one."""
    if cell is None or (isinstance(cell, float) and cell != cell):
        return ""
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


_LOAD = """
(async () => {
  const place = document.getElementById("__ID__");
  const spec = JSON.parse(document.getElementById("__ID__-spec").textContent);
  const unpack = async () => {
    const packed = Uint8Array.from(atob("__SOURCE__"), letter => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const source = await new Response(stream).text();
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    return window.Plotly;
  };
  window.undoProbePlotly ??= unpack();
  const plotly = await window.undoProbePlotly;
  plotly.newPlot(place, spec.data, spec.layout, spec.config);
})();
"""


def _words(figure: Figure) -> str:
    return (
        f"<figcaption><strong>{html.escape(clean(figure.title))}.</strong> {html.escape(clean(figure.caption))} "
        f"<em>What would have shown the opposite:</em> {html.escape(clean(figure.opposite))}</figcaption>\n"
        f"<details><summary>The numbers</summary>\n{table_html(figure.table)}\n</details>"
    )


def _fragment(figure: Figure) -> str:
    """The figure for a notebook's output: plotly.js travels inside, packed, and no address is ever asked."""
    name = f"undo-probe-{secrets.token_hex(6)}"
    script = _LOAD.replace("__ID__", name).replace("__SOURCE__", _packed_source())
    return (
        f'<figure style="margin:1em 0;max-width:62rem">\n'
        f'<div id="{name}" role="img" aria-label="{html.escape(clean(figure.title))}"></div>\n{_words(figure)}\n'
        f'<script type="application/json" id="{name}-spec">{figure.spec()}</script>\n'
        f"<script>{script}</script>\n</figure>"
    )


def _page(figure: Figure) -> str:
    """One figure as a page of its own."""
    title = html.escape(clean(figure.title))
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1d1d20}"
        "table{border-collapse:collapse;font-size:.85em}th,td{padding:.2em .7em;text-align:right}"
        "th[scope=row]{text-align:left}details{overflow-x:auto;margin-top:1em}figure{margin:0}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<figure>\n"
        f'<div id="figure" role="img" aria-label="{title}"></div>\n{_words(figure)}\n</figure>\n'
        f'<script type="application/json" id="spec">{figure.spec()}</script>\n'
        f"<script>{plotly_source()}</script>\n"
        "<script>const spec = JSON.parse(document.getElementById('spec').textContent);"
        "Plotly.newPlot('figure', spec.data, spec.layout, spec.config);</script>\n</body>\n</html>\n"
    )
