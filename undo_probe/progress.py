"""Progress for people: bars with an estimate on a terminal, one line a phase in pipes and in CI."""

import os
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOWN = 3


class PhaseProgress:
    """A context manager around one phase of work; pass ``event`` as its ``progress``.

    A job is announced with ``event(name, 0, None, {"cost": c})``, reports ``event(name, step, total, {})``, and
    is over when ``step == total``. The estimate weighs jobs by their announced cost.
    """

    def __init__(self, title: str, *, live: bool | None = None) -> None:
        """``live`` draws bars; by default only on a terminal outside CI."""
        from rich.console import Console

        self.title = title
        self.console = Console(stderr=True)
        self.live = (self.console.is_terminal and not os.environ.get("CI")) if live is None else live
        self.cost: dict[str, float] = {}
        self.share: dict[str, float] = {}
        self._bars: Progress | None = None
        self._rows: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def __enter__(self) -> "PhaseProgress":
        """Starts drawing."""
        self._start = time.monotonic()
        if self.live:
            self._bars = _bars(self.console)
            self._bars.start()
            self._rows[""] = self._bars.add_task(self.title, total=1.0, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops drawing and says in one line what was done."""
        if self._bars is not None:
            self._bars.stop()
        if kind is None:
            jobs = f"{len(self.cost)} to do" if self.cost else "nothing to do"
            seconds = time.monotonic() - self._start
            self.console.print(
                f"{self.title}: {jobs}, done in {seconds:.0f} s", highlight=False, markup=False
            )

    def event(self, name: str, step: int, total: int | None, numbers: dict[str, float]) -> None:
        """Takes a job's report; safe from any thread."""
        with self._lock:
            if total is None and "cost" in numbers:
                self.cost[name] = max(numbers["cost"], 1e-9)
                return
            self.cost.setdefault(name, 1.0)
            self.share[name] = 1.0 if not total else min(1.0, step / total)
            if self._bars is not None:
                self._draw(name, step, total, numbers)

    @property
    def done(self) -> float:
        """Share of the phase's work that is done, weighed by announced cost, from 0 to 1."""
        whole = sum(self.cost.values())
        return sum(self.cost[name] * share for name, share in self.share.items()) / whole if whole else 0.0

    def _draw(self, name: str, step: int, total: int | None, numbers: dict[str, float]) -> None:
        bars = self._bars
        assert bars is not None
        left = (time.monotonic() - self._start) * (1 - self.done) / max(self.done, 1e-6)
        note = f"about {left:.0f} s left" if self.done > 0.02 else ""
        bars.update(self._rows[""], completed=self.done, note=note)
        if name not in self._rows:
            self._rows[name] = bars.add_task(f"  {name}", total=total, note="")
        loss = numbers.get("loss")
        bars.update(
            self._rows[name], completed=step, total=total, note="" if loss is None else f"loss {loss:.3f}"
        )
        finished = [job for job, share in self.share.items() if share >= 1.0 and job in self._rows]
        for job in finished[: max(0, len(finished) - SHOWN)]:
            bars.remove_task(self._rows.pop(job))


def _bars(console: Any) -> "Progress":
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )
