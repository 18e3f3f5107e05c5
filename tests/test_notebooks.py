"""The notebooks run from top to bottom, hold no logic, and are stored with the outputs they give, small."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 600_000

EXECUTE = "import sys, store_outputs; from pathlib import Path; store_outputs.run(Path(sys.argv[1]))"


def code_of(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_six_of_them() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "1_one_patient",
        "2_a_dataset",
        "3_on_a_cluster",
        "4_training",
        "5_nodules",
        "6_a_cohort",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_was_run(path: Path) -> None:
    """`make notebooks` does it."""
    cells = code_of(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) >= 3
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_logic(path: Path) -> None:
    tree = ast.parse("\n".join(cell.source for cell in code_of(path)))
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.If, ast.While))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_links_to_is_there(path: Path) -> None:
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (FOLDER / link).exists(), link


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    sources = "\n".join(cell.source for cell in code_of(path))
    for library in {"torch", "xarray", "nibabel"}:
        if library in sources or f"as_{library}" in sources or f"to_{library}" in sources:
            pytest.importorskip(library)
    environment = os.environ | {"MPLBACKEND": "agg", "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(FOLDER)}
    command = [sys.executable, "-c", EXECUTE, str(path)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
