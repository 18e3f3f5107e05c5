"""The files in cluster/, as far as they can be checked without a Kubernetes, a systemd or a cloud."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dskprep import cluster

RECIPES = Path(__file__).parents[1] / "cluster"

OPERATOR = "dask-kubernetes==2026.3.0"
DEFINITIONS = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds"


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The Dask operator as it comes from the package index, with the schemas of its resources."""
    folder = tmp_path_factory.mktemp("operator")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    fetched = subprocess.run(
        [*download, "--dest", str(folder), OPERATOR], check=False, capture_output=True, timeout=120
    )
    if fetched.returncode:
        pytest.skip(f"pip cannot fetch {OPERATOR}")
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def closed(schema: Any) -> Any:
    """The schema as kubectl applies it: fields that it does not name are errors."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(each) for name, each in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not is_open and "type" in schema:
        made["additionalProperties"] = False
    return made


def schema_of(definitions: zipfile.ZipFile, kind: str, version: str) -> Any:
    definition = yaml.safe_load(definitions.read(f"{DEFINITIONS}/{kind.lower()}.yaml"))
    assert definition["spec"]["names"]["kind"] == kind
    (served,) = (v for v in definition["spec"]["versions"] if f"{definition['spec']['group']}/{v['name']}" == version)
    schema = closed(served["schema"]["openAPIV3Schema"])
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}  # every resource has them
    return schema


def faults(manifest: dict[str, Any], schema: Any) -> list[str]:
    return [
        f"{error.json_path}: {error.message[:200]}"
        for error in jsonschema.Draft7Validator(schema).iter_errors(manifest)
    ]


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text()))


def test_the_manifests_fit_the_schemas_of_the_dask_operator(definitions: zipfile.ZipFile) -> None:
    assert [manifest["kind"] for manifest in manifests()] == ["DaskCluster", "DaskAutoscaler"]
    for manifest in manifests():
        assert faults(manifest, schema_of(definitions, manifest["kind"], manifest["apiVersion"])) == []
    wrong = manifests()[0]
    wrong["spec"]["worker"]["spec"]["containers"][0]["comand"] = []
    (fault,) = faults(wrong, schema_of(definitions, "DaskCluster", wrong["apiVersion"]))
    assert "'comand' was unexpected" in fault


def test_the_manifests_belong_together() -> None:
    made, scaler = manifests()
    name = made["metadata"]["name"]
    assert scaler["spec"]["cluster"] == name
    assert made["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == name
    assert made["spec"]["scheduler"]["service"]["type"] == "ClusterIP"
    (worker,) = made["spec"]["worker"]["spec"]["containers"]
    assert worker["args"][worker["args"].index("--nthreads") + 1] == str(cluster.SLOTS)


def test_the_settings_are_those_of_a_local_cluster() -> None:
    settings = yaml.safe_load((RECIPES / "dask.yaml").read_text())

    def flat(tree: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(tree, dict) or name in cluster.SETTINGS:
            return {name: tree}
        return {n: v for k, each in tree.items() for n, v in flat(each, f"{name}.{k}".lstrip(".")).items()}

    assert flat(settings) == cluster.SETTINGS


@pytest.mark.parametrize("name", ["dask-scheduler.service", "dask-worker.service"])
def test_systemd_finds_no_fault_with_the_units(name: str, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")
    unit = (RECIPES / name).read_text()
    program = "/opt/dskprep/.venv/bin/dask"
    assert program in unit
    (tmp_path / name).write_text(unit.replace(program, sys.executable).replace("User=dask", "User=root"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / name], check=False, capture_output=True, text=True
    )
    assert [line for line in checked.stderr.splitlines() if name in line] == []
    assert "Restart=always" in unit


@pytest.mark.parametrize("name", ["make-certificates", "ssh-hosts"])
def test_the_scripts_are_shell(name: str) -> None:
    subprocess.run(["bash", "-n", RECIPES / name], check=True)


@pytest.mark.parametrize("name", ["cloud.py", "slurm.py"])
def test_the_programs_run_on_the_cluster_they_made(name: str) -> None:
    calls = [n for n in ast.walk(ast.parse((RECIPES / name).read_text())) if isinstance(n, ast.Call)]
    (run,) = (call for call in calls if ast.unparse(call.func) == "dskprep.run")
    assert ast.unparse(run) == "dskprep.run(source, target, client=client)"
