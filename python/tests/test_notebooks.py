"""The tutorials run from start to end."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_from_start_to_end(name: str, tmp_path: Path) -> None:
    needed = ["nbclient", "nbformat", "ipykernel", "matplotlib", "onnx", "sklearn", "pandas"]
    for package in needed:
        pytest.importorskip(package, reason=f"pip install {package}")
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    nbformat.write(notebook, tmp_path / name)
