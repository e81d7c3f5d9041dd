"""One self-contained page from a run folder: files in, HTML out, nothing recomputed and nothing fetched."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undo_probe import figures, files
from undo_probe.errors import UndoProbeError
from undo_probe.figures import Figure
from undo_probe.figures.figure import POLICY, plotly_source, script_json, table_html
from undo_probe.figures.look import NIGHT, STORY_VARIANTS
from undo_probe.figures.said import said
from undo_probe.records import TaskWords
from undo_probe.report import sections
from undo_probe.report.folder import RunFiles, read_run, words_of
from undo_probe.report.intrinsic import intrinsic_table
from undo_probe.report.verdict import verdict
from undo_probe.report.weights import weights_table

LARGEST = 8 * 2**20
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Shown:
    """A figure of the page, or the sentence that says why it is not there."""

    figure: Figure | None
    why_not: str = ""


def write_report(run_or_folder: object, path: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of a run.

    Args:
        run_or_folder: The path of a run folder, or anything with a ``folder``.
        path: Where to write; ``report.html`` in the run folder if not given.

    Returns:
        The path written to.
    """
    run = read_run(run_or_folder)
    given = getattr(run_or_folder, "folder", run_or_folder)
    target = Path(path) if path is not None else Path(str(given)) / "report.html"
    arms = len(run.run.get("arms") or [])
    return save_page(target, render(run), f"the run has {arms} arms; report on a run with fewer")


def save_page(target: Path, page: str, advice: str) -> Path:
    """Write a page, unless it is too large to be sent around; ``advice`` says what to do then."""
    if len(page.encode()) > LARGEST:
        raise UndoProbeError(
            f"the report would be {len(page.encode()) / 2**20:.1f} MiB, over the limit of {LARGEST // 2**20}: {advice}"
        )
    files.write_text(target, page)
    return target


def render(run: RunFiles) -> str:
    """The page as text."""
    costs, words = sections.costs(run.ledger), words_of(run.run)
    return fill(
        "report.html",
        run=run,
        words=words,
        said=said(words),
        verdict=verdict(run.readings, run.run, run.card),
        lead=sections.lead(run.readings),
        diagram=sections.diagram(run.readings, words),
        shown=_figures(run, words),
        summary=sections.summary_table(run.readings),
        enough=intrinsic_table(run.readings),
        moved=weights_table(run.readings),
        strata=sections.strata_table(run.readings, words),
        costs=costs,
        totals=sections.total_cost(costs),
        biggest=max((cost.share for cost in costs), default=0.0) or 1.0,
        settings=sections.flat(run.config),
        facts=sections.provenance(run),
        models=sections.models(run),
    )


def fill(template: str, **values: Any) -> str:
    """A template with its values, the scripts that draw its figures, and the policy that lets nothing else run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["table"] = lambda table: Markup(table_html(table))  # noqa: S704
    environment.filters["coded"] = _coded
    return environment.get_template(template).render(
        policy=POLICY,
        night=Markup(script_json(NIGHT)),  # noqa: S704
        plotly=Markup(plotly_source()),  # noqa: S704
        spec=lambda figure: Markup(figure.spec()),  # noqa: S704
        **values,
    )


def _coded(text: str) -> str:
    """Text with what stands between backticks set as code."""
    from markupsafe import Markup, escape

    parts = [
        Markup("<code>{}</code>").format(part) if at % 2 else escape(part)
        for at, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _figures(run: RunFiles, words: TaskWords) -> dict[str, Shown]:
    curves, readings = (
        table.loc[table["variant"].isin(STORY_VARIANTS)] if "variant" in table else table
        for table in (run.curves, run.readings)
    )
    makers: dict[str, Callable[[], Figure]] = {
        "relearning": lambda: figures.relearning(curves, readings, words),
        "attacks": lambda: figures.attacks(curves),
        "recoveries": lambda: figures.recoveries(readings, words),
        "lengths": lambda: figures.lengths(run.curves, run.readings),
        "variations": lambda: figures.variations(run.readings, words),
        "tradeoff": lambda: figures.tradeoff(readings),
        "bits": lambda: figures.probes(readings, words=words),
        "bits_retain": lambda: figures.probes(readings, task_split="retain", words=words),
        "accuracy": lambda: figures.probes(readings, "accuracy", words=words),
        "accuracy_retain": lambda: figures.probes(readings, "accuracy", "retain", words),
        "stream": lambda: figures.stream(readings, words),
        "depth": lambda: figures.depth_by_block(readings, words),
        "lenses": lambda: figures.lenses(readings, words),
        "attribution": lambda: figures.attribution(readings, words),
        "subspaces": lambda: figures.subspaces(readings, words),
        "updates": lambda: figures.update_energy(readings, words),
        "selectivity": lambda: figures.selectivity(readings, words),
        "drift_layers": lambda: figures.drift_layers(readings, words),
        "drift_positions": lambda: figures.drift_positions(readings, words=words),
        "junk": lambda: figures.junk(readings, words),
        "training": lambda: figures.training(curves, words),
    }
    return {name: shown(make) for name, make in makers.items()}


def shown(make: Callable[[], Figure]) -> Shown:
    """The figure, or why there is none."""
    try:
        return Shown(make())
    except UndoProbeError as error:
        return Shown(None, str(error))
