"""The report of a run: one page that a reader can open anywhere, made from the run's files alone."""

from undo_probe.report.html import write_report
from undo_probe.report.verdict import Verdict, verdict

__all__ = ["Verdict", "verdict", "write_report"]
