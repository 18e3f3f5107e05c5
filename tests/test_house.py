"""The rules of the house: light imports, an honest public API, errors that travel."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import dskprep
from dskprep import errors

PACKAGE = Path(dskprep.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
HEAVY = {"pydicom", "zarr", "distributed", "dask", "matplotlib", "pandas", "numpy", "scipy", "numba", "s3fs", "fsspec"}

HOMES = {
    "fsspec": {"storage", "s3read"},
    "s3fs": {"storage", "s3read"},
    "obstore": {"s3read"},
    "pydicom": {"attributes", "pixels", "scanner", "slices"},
    "zarr": {"omezarr", "dataset"},
    "numcodecs": {"omezarr", "shards"},
    "nibabel": {"exchange"},
    "SimpleITK": {"exchange"},
    "xarray": {"exchange"},
    "torch": {"training"},
    "distributed": {"cluster", "page", "patient", "pipeline", "watch"},
    "imagecodecs": {"pixels", "thumbnail"},
    "jinja2": {"report"},
    "matplotlib": {"picture"},
    "bokeh": {"page"},
    "click": {"cli", "terminal"},
    "rich": {"cli", "printed", "terminal"},
}
"""Which modules may import what."""


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """First parts of the names of what a module imports, but for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_import_stays_in_its_home(library: str) -> None:
    users = {path.stem for path in MODULES if library in imports_of(path)}
    assert users <= HOMES[library]


def loaded_by(*words: str) -> set[str]:
    code = f"import sys, json\n{';'.join(words)}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "words",
    [
        ("import dskprep",),
        ("from dskprep import cli", "cli.run_command(['--help'])"),
        ("from dskprep import cli", "cli.run_command(['run', '--help'])"),
        ("from dskprep import cli", "cli.run_command(['--version'])"),
    ],
)
def test_what_is_asked_for_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    assert loaded_by(*words) & HEAVY == set()


def test_the_public_names_are_complete_and_can_be_imported() -> None:
    assert sorted(dskprep.__all__) == sorted(set(dskprep.__all__)) == sorted(dskprep._HOMES)
    for name in dskprep.__all__:
        public = getattr(dskprep, name)
        assert getattr(importlib.import_module(f"dskprep.{dskprep._HOMES[name]}"), name) is public
        if callable(public):
            assert public.__doc__, name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"dskprep.{home}" for name, home in dskprep._HOMES.items()}


def test_what_a_shell_completes_is_there() -> None:
    assert {*dskprep.__all__, "__version__", "__doc__"} <= set(dir(dskprep))
    assert dskprep.__version__ == importlib.metadata.version("dskprep")


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dskprep.nonsense  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "error",
    [
        errors.UsageError("wrong"),
        errors.InfrastructureError("away"),
        errors.Refusal("not-ct", "expected CT, found MR"),
    ],
)
def test_errors_survive_pickling(error: errors.DskprepError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert isinstance(copy, errors.DskprepError)


def test_a_refusal_has_a_known_reason() -> None:
    with pytest.raises(ValueError, match="unknown reason 'because'"):
        errors.Refusal("because", "")


def constants_of(call: str) -> set[str]:
    """The first argument of every call of that name in the package, where it is a plain word."""
    return {
        node.args[0].value
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == call
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def test_every_reason_is_used_and_listed() -> None:
    assert constants_of("Refusal") <= set(errors.REASONS)
