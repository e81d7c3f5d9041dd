"""What every test shares: no network, one thread, and no skip without a listed reason."""

import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from undo_probe.store import Run

# Before any test module imports torch or a Hugging Face library: they read these once.
_hub = tempfile.mkdtemp(prefix="undo-probe-hub-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": _hub}
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

SKIPS = Path(__file__).with_name("SKIPS.md")


def pytest_unconfigure() -> None:
    import shutil

    shutil.rmtree(_hub, ignore_errors=True)


@pytest.fixture(autouse=True)
def _draws(request: pytest.FixtureRequest) -> None:
    """What a test draws from torch's own generator follows from its name: it fails always or never."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A whole small run with its attack; a test that changes it works on a copy of its folder."""
    import tiny

    from undo_probe.attacks import attack
    from undo_probe.pipeline import run_undo

    folder = tmp_path_factory.mktemp("attacked") / "run"
    return attack(run_undo(tiny.quick(), folder, workers=1), workers=1)


def listed_skips(text: str) -> list[str]:
    """The reasons that SKIPS.md allows: what stands in backticks at the start of a list item."""
    return re.findall(r"^- `([^`]+)`", text, flags=re.MULTILINE)


def _refuse_unlisted_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped:
        return
    skipped = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    reason = str(getattr(report, "wasxfail", skipped))
    if not any(listed in reason for listed in listed_skips(SKIPS.read_text())):
        report.outcome = "failed"
        vars(report).pop("wasxfail", None)  # else pytest shows the failure but does not count it
        report.longrepr = (
            f"{reason!r} is not listed in tests/SKIPS.md; add a line that says why, or run the test"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    _refuse_unlisted_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    _refuse_unlisted_skip(report)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that the last minutes of a parallel run are not one test's alone."""
    items.sort(key=lambda item: item.path.name != "test_kill_loop.py")
