"""The rules of the house: light imports, an honest public API, errors that travel."""

from __future__ import annotations

import ast
import doctest
import functools
import graphlib
import importlib
import importlib.metadata
import importlib.util
import json
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dskprep
from dskprep import errors

PACKAGE = Path(dskprep.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
HEAVY = {"pydicom", "zarr", "distributed", "dask", "matplotlib", "pandas", "numpy", "scipy", "numba", "s3fs", "fsspec"}

FLOORS = (
    ("values",),
    ("kernels",),
    ("storage", "dicom", "formats"),
    ("series", "synthetic", "labels"),
    ("preparation",),
    ("source", "dataset"),
    ("reading",),
    ("exchange",),
    ("worker", "look"),
    ("pipeline",),
    ("cli",),
)
"""The rooms, lowest first. A room may import those on floors below its own, and never its neighbours."""

SYNTHETIC_MAY_IMPORT = {"values", "storage", "kernels", "synthetic"}
"""What is tried on a patient must not have made it."""

HOMES = {
    "aiobotocore": {"storage.clients"},
    "aiohttp": {"storage.answers"},
    "bokeh": {"pipeline.page"},
    "botocore": {"storage.answers", "storage.clients", "storage.connection", "synthetic.s3server"},
    "click": {
        "cli.cohort_commands",
        "cli.commands",
        "cli.dataset_commands",
        "cli.exits",
        "cli.label_commands",
        "cli.look_commands",
        "cli.options",
        "cli.run_commands",
        "cli.terminal",
        "cli.workers",
    },
    "dask": {
        "cli.options",
        "reading.convert",
        "pipeline.apart",
        "pipeline.cluster",
        "pipeline.cluster_check",
        "pipeline.executor",
        "pipeline.main_guard",
        "pipeline.workers",
        "preparation.mask_slots",
    },
    "distributed": {
        "cli.demo",
        "pipeline.annotate",
        "pipeline.cluster",
        "pipeline.cluster_check",
        "pipeline.crew",
        "pipeline.executor",
        "pipeline.lost",
        "pipeline.export",
        "pipeline.page",
        "pipeline.run",
        "pipeline.sharing",
        "pipeline.watch",
        "worker.process",
    },
    "duckdb": {"source.catalogue"},
    "fsspec": {"storage", "storage.answers", "storage.bucket", "storage.clients", "storage.s3_settings"},
    "google_crc32c": {"dataset.omezarr", "dataset.shards"},
    "idc_index_data": {"source.catalogue"},
    "imagecodecs": {"dicom.pixels", "dataset.shards", "dataset.thumbnail"},
    "jinja2": {"look.report", "look.viewer", "pipeline.page"},
    "lazy_loader": {""},
    "matplotlib": {
        "look.label_pictures",
        "look.outlines",
        "look.panels",
        "look.picture",
        "look.refused",
        "look.side_by_side",
    },
    "msgspec": {
        "dataset.claims",
        "dataset.facts",
        "dataset.label_record",
        "dataset.layout",
        "dataset.past_runs",
        "dataset.record",
        "dataset.seen",
        "reading.split_file",
        "reading.split_rule",
        "reading.splits",
        "exchange.place",
        "typed",
    },
    "nibabel": {"reading.convert", "formats.nifti"},
    "numba": {"kernels.compiled"},
    "numcodecs": {"dataset.omezarr", "dataset.shards"},
    "obstore": {
        "storage.answers",
        "storage.azure",
        "storage.blobs",
        "storage.bucket",
        "storage.bucket_listing",
        "storage.clients",
        "storage.connection",
    },
    "pandas": {
        "dataset.annotation_columns",
        "dataset.annotations",
        "dataset.volume_rows",
        "reading.duplicates",
        "dataset.index",
        "reading.joined",
        "reading.split_rule",
        "reading.splits",
        "exchange.croissant",
        "labels.lidc",
        "labels.points",
        "look.figures",
        "look.report",
        "tables",
    },
    "psutil": {"pipeline.prediction", "source.found", "storage.local"},
    "pyarrow": {
        "dataset.annotation_columns",
        "dataset.annotations",
        "dataset.volume_rows",
        "dataset.index",
        "dataset.index_files",
        "dataset.licences",
        "dataset.listed",
        "dataset.rows",
        "dataset.status",
        "dataset.unpacking",
        "tables",
    },
    "pydicom": {
        "dicom.header",
        "dicom.pixels",
        "dicom.slices",
        "labels.attributes",
        "labels.outlines",
        "labels.read",
        "labels.rtstruct",
        "labels.seg",
        "labels.seg_frames",
        "labels.seg_pixels",
        "synthetic.scanner",
    },
    "rich": {"cli.console", "cli.output", "cli.terminal", "cli.words"},
    "s3fs": {"storage.clients"},
    "prometheus_client": {"pipeline.metrics", "pipeline.page"},
    "scipy": {
        "reading.fingerprint",
        "reading.groups",
        "labels.nodules",
        "look.label_comparison",
        "look.surface",
        "preparation.recipes.grt123_lungs",
        "preparation.zoom",
    },
    "SimpleITK": {"reading.convert"},
    "skimage": {"look.surface"},
    "torch": {"reading.training"},
    "tornado": {"pipeline.page"},
    "xarray": {"reading.convert"},
    "zarr": {"dataset.opened", "reading.stored"},
}
"""Which modules may import what, of all that is not in the standard library (numpy may be anywhere)."""

LATE_IMPORTS = {"importlib.import_module", "_needs"}
"""Calls that import the library that they name."""

MOST_LINES = 300

LONG: dict[str, str] = {}
"""Modules of more than MOST_LINES lines, each with the reason."""


def name_of(path: Path) -> str:
    """A module's name within the package: `storage.bucket`, `storage` for its `__init__`, "" for the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    room = module.partition(".")[0]
    return room if room and (PACKAGE / room / "__init__.py").exists() else "values"


NAMES = {name_of(path): path for path in MODULES}
EVERYWHERE = {"numpy", "dskprep"}


@functools.cache
def imports_of(path: Path, *, top_level_only: bool = False) -> frozenset[str]:
    """The full names of what a module imports, but for type checking: modules, and names in them."""
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
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in LATE_IMPORTS:
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return frozenset(found)


def modules_imported_by(name: str) -> set[str]:
    """The modules of the package that a module of it imports, wherever in its code."""
    found = set()
    for imported in imports_of(NAMES[name]):
        inside = imported.removeprefix("dskprep.")
        if imported != inside:
            found.add(inside if inside in NAMES else inside.rpartition(".")[0])
    return found - {name}


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_import_stays_in_its_home(library: str) -> None:
    users = {name for name, path in NAMES.items() if library in libraries_of(path)}
    assert users == HOMES[library]


def libraries_of(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(path)} - sys.stdlib_module_names - EVERYWHERE


def test_every_library_has_a_home_and_is_declared() -> None:
    used = set.union(*map(libraries_of, MODULES))
    assert used == set(HOMES)
    declared = importlib.metadata.requires("dskprep") or []
    distributions = importlib.metadata.packages_distributions()
    names = {re.split(r"[^\w-]", line)[0].lower().replace("_", "-") for line in declared}
    homeless = {
        library
        for library in used
        if not {d.lower().replace("_", "-") for d in distributions.get(library, [library])} & names
    }
    assert homeless == set()
    required = {re.split(r"[^\w-]", r)[0].lower().replace("_", "-") for r in PROJECT["project"]["dependencies"]}
    imported = {d.lower().replace("_", "-") for library in used | EVERYWHERE for d in distributions.get(library, [])}
    assert required - imported == {"cryptography"}  # Dask makes the certificates of a local cluster with it


def test_every_file_of_the_package_is_packed() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["dskprep"]
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()}
    data = {path for path in files if path.suffix != ".py" and "__pycache__" not in path.parts}
    assert {str(path) for path in data if not any(path.match(pattern) for pattern in patterns)} == set()
    assert all(any(path.match(pattern) for path in data) for pattern in patterns)


def test_every_room_has_a_floor() -> None:
    assert {room_of(name) for name in NAMES} == {room for floor in FLOORS for room in floor}


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_down(name: str) -> None:
    room = room_of(name)
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    allowed = {room, *(below for rooms in FLOORS[:floor] for below in rooms)} - {"synthetic"}
    if room == "synthetic":
        allowed = SYNTHETIC_MAY_IMPORT
    if room == "cli":
        allowed.add("synthetic")
    if name in ("", "__main__"):  # the door of the whole house
        return
    assert {other for other in modules_imported_by(name) if room_of(other) not in allowed} == set()


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: modules_imported_by(name) for name in NAMES if name not in ("", "__main__")}
    order = graphlib.TopologicalSorter(
        {name: {other for other in others if f"{other}." not in f"{name}."} for name, others in graph.items()}
    )
    assert len(list(order.static_order())) >= len(graph)  # raises CycleError


def test_private_names_stay_in_their_room() -> None:
    strangers = {
        (name, imported)
        for name, path in NAMES.items()
        for imported in imports_of(path)
        if imported.startswith("dskprep.")
        and imported.rpartition(".")[2].startswith("_")
        and room_of(imported.removeprefix("dskprep.")) != room_of(name)
    }
    assert strangers == set()


def test_tracebacks_are_made_at_one_door_which_leaves_secrets_out() -> None:
    makers = {"format_exception", "format_exc", "print_exc", "print_exception", "TracebackException"}
    found = {name for name, path in NAMES.items() if any(f"traceback.{m}" in path.read_text() for m in makers)}
    assert found == {"plain"}


def test_a_long_module_has_a_reason() -> None:
    long = {name for name, path in NAMES.items() if len(path.read_text().splitlines()) > MOST_LINES}
    assert long == set(LONG)


def loaded_by(*words: str) -> set[str]:
    code = f"import sys, json\n{';'.join(words)}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "words",
    [
        ("import dskprep",),
        ("from dskprep.cli import commands", "commands.run_command(['--help'])"),
        ("from dskprep.cli import commands", "commands.run_command(['run', '--help'])"),
        ("from dskprep.cli import commands", "commands.run_command(['--version'])"),
    ],
)
def test_what_is_asked_for_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    assert loaded_by(*words) & HEAVY == set()


STUB = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
PUBLIC = {
    alias.name: f"dskprep.{node.module}"
    for node in STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
"""The home of each public name."""


def test_the_public_names_are_complete_and_can_be_imported() -> None:
    assert sorted(dskprep.__all__) == sorted(set(dskprep.__all__)) == sorted(PUBLIC)
    for name, home in PUBLIC.items():
        public = getattr(dskprep, name)
        assert getattr(importlib.import_module(home), name) is public
        if callable(public):
            assert public.__doc__, name


def test_type_checkers_see_the_same_names() -> None:
    (listed,) = (ast.literal_eval(node.value) for node in STUB.body if isinstance(node, ast.Assign))
    assert sorted(listed) == sorted(dskprep.__all__)


def test_the_stub_is_in_the_package_that_is_installed() -> None:
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "__init__.pyi" in settings["tool"]["setuptools"]["package-data"]["dskprep"]


def test_no_public_name_is_that_of_a_module_directly_below_the_package() -> None:
    """Importing `dskprep.x` sets the attribute `x` of the package to the module: it would hide a function `x`."""
    modules = {name.partition(".")[0] for name in NAMES}
    assert modules & set(dskprep.__all__) == set()


@pytest.mark.slow
def test_public_functions_stay_functions_when_everything_is_imported() -> None:
    is_here = {library: importlib.util.find_spec(library) is not None for library in HOMES}  # extras may not be
    imports = [
        f"import dskprep.{name}"
        for name, path in NAMES.items()
        if name not in ("", "__main__")
        and all(is_here.get(imported.partition(".")[0], True) for imported in imports_of(path, top_level_only=True))
    ]
    assert len(imports) > 250
    check = "assert all(not isinstance(getattr(dskprep, n), types.ModuleType) for n in dskprep.__all__)"
    subprocess.run([sys.executable, "-c", ";".join(["import types", *imports, check])], check=True)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_examples_of_public_names_are_right(name: str) -> None:
    public = getattr(dskprep, name)
    names = {"dskprep": dskprep, "Path": Path}
    for example in doctest.DocTestFinder().find(public, name, globs=vars(sys.modules[PUBLIC[name]]) | names):
        assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


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
    assert constants_of("Refusal") <= set(errors.REASONS | errors.SET_ASIDE | errors.LABEL_REASONS)
    assert set(errors.LABEL_REASONS) <= constants_of("Refusal")
