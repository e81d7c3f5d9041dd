"""Progress: one line where nobody watches, bars with an estimate where somebody does."""

import io
import re
import threading
from typing import Any

import pytest
from rich.console import Console

from undo_probe.progress import SHOWN, PhaseProgress


def test_without_a_terminal_a_phase_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with PhaseProgress("stages") as phase:
        assert not phase.live
        phase.event("original", 0, None, {"cost": 5.0})
        phase.event("original", 3, 10, {"loss": 1.0})
        phase.event("original", 10, 10, {})
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"stages: 1 to do, done in \d+ s\n", said.err)


def test_a_phase_without_work_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with PhaseProgress("attack"):
        pass
    assert "attack: nothing to do" in capsys.readouterr().err


def test_a_phase_that_fails_leaves_the_word_to_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), PhaseProgress("attack"):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_the_share_that_is_done_weighs_jobs_by_their_cost() -> None:
    phase = PhaseProgress("stages", live=False)
    assert phase.done == 0
    phase.event("long", 0, None, {"cost": 30.0})
    phase.event("short", 0, None, {"cost": 10.0})
    assert phase.done == 0
    phase.event("short", 1, 1, {})
    assert phase.done == pytest.approx(0.25)
    phase.event("long", 5, 10, {})
    assert phase.done == pytest.approx(0.625)
    phase.event("long", 11, 10, {})  # a job that does more than it said is done, not more than done
    assert phase.done == 1


def test_a_job_that_was_not_announced_counts_too() -> None:
    phase = PhaseProgress("stages", live=False)
    phase.event("unannounced", 1, 4, {})
    assert phase.done == pytest.approx(0.25)
    phase.event("empty", 0, 0, {})
    assert phase.done == pytest.approx(1.25 / 2)


def test_a_job_of_no_cost_does_no_harm() -> None:
    phase = PhaseProgress("stages", live=False)
    phase.event("free", 0, None, {"cost": 0.0})
    assert phase.done == 0
    phase.event("free", 1, 1, {})
    assert phase.done == 1


def test_reports_may_come_from_many_threads() -> None:
    phase = PhaseProgress("stages", live=False)

    def work(name: str) -> None:
        phase.event(name, 0, None, {"cost": 1.0})
        for step in range(1, 101):
            phase.event(name, step, 100, {})

    threads = [threading.Thread(target=work, args=(f"job {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert phase.done == pytest.approx(1)
    assert len(phase.cost) == 8


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal that somebody watches."""
    screen = io.StringIO()
    monkeypatch.delenv("CI", raising=False)

    def console(**options: Any) -> Console:
        return Console(file=screen, force_terminal=True, width=100)

    monkeypatch.setattr("rich.console.Console", console)
    return screen


def test_on_a_terminal_bars_show_the_phase_the_jobs_and_their_loss(terminal: io.StringIO) -> None:
    with PhaseProgress("stages") as phase:
        assert phase.live
        phase.event("original", 0, None, {"cost": 1.0})
        phase.event("original", 5, 10, {"loss": 1.2345})
        bars = phase._bars
        assert bars is not None
        bars.refresh()
    shown = terminal.getvalue()
    assert "stages" in shown
    assert "original" in shown
    assert "loss 1.234" in shown
    assert re.search(r"about \d+ s left", shown)
    assert "done in" in shown


def test_finished_jobs_leave_the_screen_but_the_last_few(terminal: io.StringIO) -> None:
    with PhaseProgress("stages") as phase:
        for number in range(8):
            phase.event(f"job {number}", 1, 1, {})
        bars = phase._bars
        assert bars is not None
        assert len(bars.tasks) == 1 + SHOWN
    assert phase.done == 1


def test_bars_are_gone_after_an_error(terminal: io.StringIO) -> None:
    phase = PhaseProgress("stages")
    with pytest.raises(KeyError), phase:
        raise KeyError
    bars = phase._bars
    assert bars is not None
    assert not bars.live.is_started


def test_in_ci_nothing_is_drawn(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert not PhaseProgress("stages").live
