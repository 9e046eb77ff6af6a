"""The notebooks run, each in an empty folder, and are kept without outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.warm_python import python

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    """Run all cells as Jupyter would, with the warm Python and its command; a cell that fails raises."""
    commands = folder / ".commands"
    commands.mkdir()
    (commands / "refseg").write_text(f'#!/bin/sh\nexec {python()} -m refseg "$@"\n')
    (commands / "refseg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("sys.executable", python())  # of the kernel
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    """All text that the cells printed."""
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


@pytest.mark.slow
def test_your_own_data_goes_from_a_table_to_a_scored_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(run(NOTEBOOKS[0], tmp_path, monkeypatch))

    assert "shards/my-photos: built: 2 shards, 48 images, 96 refs, 192 sentences, 0 rejects" in text
    assert "shards/my-photos: no fault (everything checked)" in text
    assert "[SOS]" in text
    assert "all sentences: 32 of 16 refs in 8 images, 0 without a target" in text


@pytest.mark.slow
def test_your_own_model_learns_and_is_scored_under_named_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(run(NOTEBOOKS[1], tmp_path, monkeypatch))

    losses = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("epoch ")]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert "original {'oIoU': " in text
    assert "lavt {'oIoU': " in text
    assert "all sentences: " in text


def test_there_are_two_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["your_own_data.ipynb", "your_own_model.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
