"""A skip must be listed in SKIPS.md: checked by running pytest on small files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IN_A_TEST = "import pytest\n\ndef test_a():\n    pytest.skip({!r})\n"
BY_A_MARK = "import pytest\n\n@pytest.mark.skip(reason={!r})\ndef test_a():\n    pass\n"
WHOLE_MODULE = "import pytest\n\npytest.skip({!r}, allow_module_level=True)\n"
EXPECTED_FAILURE = "import pytest\n\n@pytest.mark.xfail(reason={!r})\ndef test_a():\n    assert False\n"


def run_pytest(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    for name in ("conftest.py", "SKIPS.md"):
        shutil.copy(HERE / name, folder / name)
    (folder / "test_it.py").write_text(test)
    (folder / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("test", [IN_A_TEST, BY_A_MARK, WHOLE_MODULE, EXPECTED_FAILURE])
def test_an_unlisted_reason_fails_and_says_where_to_list_it(test: str, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, test.format("no time"))
    assert done.returncode in (1, 2), done.stdout
    assert "is not listed in tests/SKIPS.md" in done.stdout


@pytest.mark.parametrize("test", [IN_A_TEST, BY_A_MARK])
def test_a_listed_reason_skips(test: str, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, test.format("ray is not installed"))
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
