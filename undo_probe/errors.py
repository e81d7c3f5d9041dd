"""The exceptions this package raises on purpose."""


class UndoProbeError(ValueError):
    """Says what was given, what was expected, and what to do about it; the user can mend it."""

    exit_code = 2


class JobsFailed(UndoProbeError):
    """Parallel work that broke for a reason that is not the user's input."""

    exit_code = 1
