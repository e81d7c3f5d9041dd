"""Numbers and names as a reader would say them."""

from collections.abc import Sequence

from undo_probe.figures.tables import number
from undo_probe.records import Reading

SYMBOLS = {"*": "×", "/": "÷", "-": "−"}  # noqa: RUF001


def percent(value: float | None) -> str:
    """A share as a reader would say it: whole percents, one digit more near the ends."""
    if value is None:
        return "an unknown share"
    share = 100 * value
    digits = 1 if 0 < share < 9.95 or 99 < share < 100 else 0
    text = f"{share:.{digits}f}"
    return text.removesuffix(".0").replace("-", "\u2212") + "%"


def percent_interval(reading: Reading) -> str:
    """``88% (95% interval 79 to 94%)``."""
    if reading.low is None or reading.high is None:
        return percent(reading.value)
    return f"{percent(reading.value)} (95% interval {percent(reading.low)[:-1]} to {percent(reading.high)})"


def survival_text(reading: Reading) -> str:
    """``0.86 (0.75 to 0.94)``."""
    if reading.survival_low is None or reading.survival_high is None:
        return number(reading.survival)
    return f"{number(reading.survival)} ({number(reading.survival_low)} to {number(reading.survival_high)})"


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
