"""The notebook on a real model, on a small one that was taught the same facts."""

import re
from pathlib import Path

import atlas
import nbformat
import pytest
from nbclient import NotebookClient

from undo_probe.task_config import FactsConfig
from undo_probe.tasks.facts import FactsTask

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "03_real_model.ipynb"


@pytest.mark.slow
def test_the_notebook_of_a_real_model_runs_on_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {"forget": {"relations": ["capital"], "groups": ["Europe"]}, "retain": {"relations": ["symbol"]}}
    task = FactsTask(FactsConfig.model_validate(sides), 0)
    monkeypatch.setenv(
        "UNDO_PROBE_NOTEBOOK_MODEL", str(atlas.model_folder(task, tmp_path / "model", steps=40))
    )
    monkeypatch.setenv("UNDO_PROBE_NOTEBOOK_STEPS", "2")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = " ".join(output["data"].get("text/html", "") for output in outputs if "data" in output)
    assert "forgot capitals" in said and "The twin" in said
    assert sum("undoProbePlotly" in output.get("data", {}).get("text/html", "") for output in outputs) == 3


@pytest.mark.parametrize("notebook", sorted(NOTEBOOK.parent.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_names_no_place_of_the_machine_it_was_run_on(notebook: Path) -> None:
    assert not re.search(r"/(home|root|tmp|usr|var|opt|private|Users)/|site-packages", notebook.read_text())
