"""Run the notebooks from top to bottom and store their outputs in them, pictures made small.

python notebooks/store_outputs.py [NOTEBOOK ...]
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
COLOURS, MAX_WIDTH = 128, 900
PORT = re.compile(r"127\.0\.0\.1:\d+")


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; fails where a cell does."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    return notebook


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same outputs, smaller, and alike on every machine as far as can be."""
    for n, cell in enumerate(notebook.cells):
        cell.id = f"cell-{n}"
        cell.metadata = {}
        if "outputs" in cell:  # what Dask logs on a busy machine is no part of the story
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = PORT.sub("127.0.0.1:8787", output.text)
            for kind, content in output.get("data", {}).items():
                if kind == "image/png":
                    output.data[kind] = _smaller(content)
                elif isinstance(content, str):
                    output.data[kind] = PORT.sub("127.0.0.1:8787", content)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _smaller(png: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.thumbnail((MAX_WIDTH, MAX_WIDTH), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(tidied(run(path)), path)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
