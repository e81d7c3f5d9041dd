"""`import undo_probe` is free; its public names arrive when they are used."""

import importlib
import pkgutil
import re
import statistics
import subprocess
import sys
import time
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import undo_probe

HEAVY = {"torch", "transformer_lens", "transformers", "sklearn", "plotly", "pandas", "numpy", "pydantic"}


def heavy_modules_after(code: str) -> set[str]:
    code += f"\nimport sys\nprint(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert heavy_modules_after("import undo_probe; dir(undo_probe)") == set()
    assert heavy_modules_after("import numpy") == {"numpy"}  # the check can fail


@pytest.mark.parametrize("name", undo_probe.__all__)
def test_every_public_name_exists_and_is_listed(name: str) -> None:
    assert name in dir(undo_probe)
    assert getattr(undo_probe, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'undo_probe' has no attribute 'undoo'"):
        getattr(undo_probe, "undoo")  # noqa: B009


HELP = f"""
import sys
from undo_probe.cli import main

sys.argv = ["undo-probe", "--help"]
try:
    main()
except SystemExit as end:
    print(end.code, sorted({HEAVY} & set(sys.modules)))
"""


def test_help_comes_within_a_second_and_loads_nothing_heavy() -> None:
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - begin)
        assert "Usage" in done.stdout
        assert done.stdout.splitlines()[-1] == "0 []"
    assert statistics.median(seconds) < 1


MODULES = [found.name for found in pkgutil.walk_packages(undo_probe.__path__, "undo_probe.")]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__name__ == name


def test_only_the_training_loop_steps_an_optimiser() -> None:
    """Copies of a loop drift apart; whoever trains calls the one there is."""
    root = Path(undo_probe.__file__).parent
    stepping = [path for path in root.rglob("*.py") if re.search(r"optim\w*\.step\(", path.read_text())]
    assert [path.relative_to(root).as_posix() for path in stepping] == ["training.py"]


def test_what_the_package_reads_beside_its_code_goes_into_a_wheel() -> None:
    """hatchling takes the whole package, but neither what a setting leaves out nor what git ignores."""
    root = Path(__file__).parents[1]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert settings == {"targets": {"wheel": {"packages": ["undo_probe"]}}}
    package = root / "undo_probe"
    read = [*package.glob("tasks/tables/*.csv"), *package.glob("report/templates/*"), package / "py.typed"]
    assert {".csv", ".html", ".css", ".js"} <= {path.suffix for path in read}
    lines = (root / ".gitignore").read_text().splitlines()
    ignored = [line.strip("/") for line in lines if line and line[0] not in "#!"]
    assert not [path for path in read for part in path.parts if any(fnmatch(part, each) for each in ignored)]
    assert any(fnmatch("build", each) for each in ignored)  # the check can fail
