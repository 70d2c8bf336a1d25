"""The notebook, run in a kernel of its own from the first cell to the last."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def test_the_notebook_runs_and_shows_its_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result" and "text/html" in output["data"]
    ]
    run, answer = shown
    assert "95% interval" in run
    assert "data:image/png;base64," in run
    assert answer.count("<tr>") == 5
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()
