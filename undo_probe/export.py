"""A model of a run, or a checkpoint, as a folder that transformers loads."""

import contextlib
from pathlib import Path

from undo_probe.errors import UndoProbeError
from undo_probe.models import load_model, save_model
from undo_probe.sources import Source, find_source, has_tokenizer
from undo_probe.store import Run


def export(place: str | Path, folder: str | Path, *, arm: str = "", source: str | None = None) -> str:
    """Writes a model in the Hugging Face format.

    Args:
        place: a run folder, or whatever :func:`undo_probe.models.load_model` reads.
        folder: where the model goes; nothing may be there yet.
        arm: which model of a run, by name (``distilled-maxent-0.4``) or label (``UNDO 0.4``).
        source: the Hugging Face model that it came from, for the tokenizer and, of older checkpoints, the family;
            by default the run's ``original.source``.

    Returns:
        A line for the user: what was written, and whether its tokenizer lies beside it.

    Raises:
        UndoProbeError: no such arm; no family holds the model exactly.
    """
    place, found = Path(place), None if source is None else find_source(source)
    if (place / "run.json").is_file():
        run = Run(place)
        chosen = run.named(arm)
        model, what = run.load(chosen), chosen.label
        found = found or _source_of(run)
    elif arm:
        raise UndoProbeError(f"{place} is no run folder, so it has no arm {arm!r}: leave --arm out")
    else:
        model, what = load_model(str(place)), place.name
    save_model(model, folder, format="huggingface", source=found)
    beside = "with" if has_tokenizer(Path(folder)) else "without"
    return f"{what}, {beside} a tokenizer: {folder}"


def _source_of(run: Run) -> Source | None:
    """What the run's original was loaded from, where it is still there: only the tokenizer is wanted of it."""
    original = run.config.original
    if original.source:
        with contextlib.suppress(UndoProbeError):
            return find_source(original.source, original.revision)
    return None
