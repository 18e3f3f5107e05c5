"""The files in cluster/, as far as they can be checked without a Kubernetes, a systemd that runs, or a cloud."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import dask
import jsonschema
import pytest
import tiny
import yaml
from dask.utils import parse_bytes
from distributed import Security
from distributed.cli import dask_scheduler, dask_worker

from dskprep.pipeline import cluster

RECIPES = Path(__file__).parents[2] / "cluster"

CLOUD_PROVIDER = ["dask-cloudprovider==2025.9.0", "cryptography", "cffi", "pycparser"]

EC2_BYTES = 16_384
"""The most user data that EC2 takes."""

CLOUD = """
import json, os, runpy, sys
import dask
from aiobotocore.client import AioBaseClient
from dask_cloudprovider.aws import EC2Cluster

asked = []

async def call(client, operation, arguments):
    asked.append((operation, arguments))
    if operation == "DescribeVpcs":
        return {"Vpcs": [{"VpcId": "vpc-1", "IsDefault": True}]}
    return {"Instances": [{"InstanceId": "i-1", "PrivateIpAddress": "10.0.0.1", "PublicIpAddress": "192.0.2.1"}]}

async def start(machines):
    await machines.scheduler_class(**machines.scheduler_options).create_vm()
    await machines.worker_class("tls://10.0.0.1:8786", **machines.worker_options).create_vm()
    print(json.dumps(asked))
    sys.stdout.flush()
    os._exit(0)

AioBaseClient._make_api_call = call
EC2Cluster._start = start
sys.argv = [sys.argv[1], "s3://bucket/scans", "s3://bucket/scans-1mm"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The program, but what it asks of EC2 is printed: one scheduler and one worker."""

FARGATE = """
import json, os, runpy, sys
from aiobotocore.client import AioBaseClient
from distributed.deploy.spec import SpecCluster

asked = []
address = {"type": "ElasticNetworkInterface", "details": [{"name": "networkInterfaceId", "value": "eni-1"}]}
task = {"taskArn": "task/1", "lastStatus": "RUNNING", "attachments": [address]}
answers = {
    "DescribeClusters": {"clusters": [{"clusterName": "mine"}]},
    "DescribeLogGroups": {"logGroups": [{"logGroupName": "dask-ecs"}]},
    "RegisterTaskDefinition": {"taskDefinition": {"taskDefinitionArn": "definition"}},
    "ListAccountSettings": {"settings": [{"value": "enabled"}]},
    "RunTask": {"tasks": [task]},
    "DescribeTasks": {"tasks": [task]},
    "DescribeNetworkInterfaces": {"NetworkInterfaces": [{"PrivateIpAddresses": [{"PrivateIpAddress": "10.0.0.1"}]}]},
}

async def call(client, operation, arguments):
    asked.append((operation, arguments))
    return answers[operation]

async def start(tasks):
    scheduler = await tasks.scheduler_spec["cls"](**tasks.scheduler_spec["options"])
    await tasks.new_spec["cls"](scheduler.address, name=0, **tasks.new_spec["options"])
    print(json.dumps(asked))
    sys.stdout.flush()
    os._exit(0)

AioBaseClient._make_api_call = call
SpecCluster._start = start
sys.argv = [sys.argv[1], "s3://bucket/scans", "s3://bucket/scans-1mm"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The same of ECS."""

ECS_CHARACTERS = 8192
"""The most that ECS takes of what a task has other than its definition: command and environment, as JSON."""

OPERATOR = "dask-kubernetes==2026.3.0"
DEFINITIONS = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds"


def fetch(words: list[str], *packages: str) -> None:
    """Run pip; skips the test where it cannot fetch the packages, or not soon."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        if not subprocess.run([*words, *packages], check=False, capture_output=True, timeout=tiny.LIMIT_S).returncode:
            return
    pytest.skip(f"pip cannot fetch {packages[0]}")


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The Dask operator as it comes from the package index, with the schemas of its resources."""
    folder = tmp_path_factory.mktemp("operator")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    fetch([*download, "--dest", str(folder)], OPERATOR)
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


@pytest.mark.slow
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


def test_a_worker_without_a_home_has_a_place_for_compiled_kernels() -> None:
    unit = dict(
        line.split("=", 1) for line in (RECIPES / "dask-worker.service").read_text().splitlines() if "=" in line
    )
    environment = dict(each.split("=") for each in unit["Environment"].split())
    assert environment["NUMBA_CACHE_DIR"] == f"/var/cache/{unit['CacheDirectory']}"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dask-cloudprovider, and what it needs beside what is here."""
    folder = tmp_path_factory.mktemp("provider")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    fetch([*install, "--target", str(folder)], *CLOUD_PROVIDER)
    return folder


def asked_by(name: str, code: str, provider: Path, **given: str) -> list[tuple[str, dict[str, Any]]]:
    """The operations that the recipe asks of AWS, each with its arguments."""
    mine = {"AWS_ACCESS_KEY_ID": "my-key", "AWS_SECRET_ACCESS_KEY": "my-secret", "AWS_SESSION_TOKEN": "my-token"}
    path = os.pathsep.join([str(RECIPES.parent), str(provider)])
    ran = subprocess.run(
        [sys.executable, "-c", code, str(RECIPES / name)],
        check=True,
        capture_output=True,
        text=True,
        timeout=tiny.LIMIT_S,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "AWS_DEFAULT_REGION": "eu-central-1", **mine, **given},
    )
    return [(operation, arguments) for operation, arguments in json.loads(ran.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def asked_of_ec2(provider: Path) -> list[dict[str, Any]]:
    """What cloud.py asks EC2 to start: a scheduler, a worker."""
    given = {"IMAGE": "registry/dskprep:1", "AMI": "ami-1", "PROFILE": "reader", "SUBNET": "subnet-1", "GROUP": "sg-1"}
    asked = asked_by("cloud.py", CLOUD, provider, **given)
    return [arguments for operation, arguments in asked if operation == "RunInstances"]


def test_machines_of_ec2_run_the_image_with_the_settings_of_a_scheduler(asked_of_ec2: list[dict[str, Any]]) -> None:
    scheduler, worker = (container(machine) for machine in asked_of_ec2)
    for words in (scheduler, worker):
        settings = dict(words[i + 1].split("=") for i, word in enumerate(words) if word == "-e")
        assert settings["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] == "1"
        assert settings["DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION"] == "1.0"
        assert "registry/dskprep:1" in words
    assert scheduler[-2:] == ["-m", "distributed.cli.dask_scheduler"]
    assert worker[-3:-1] == ["tls://10.0.0.1:8786", "--spec"]
    assert json.loads(worker[-1])["opts"].items() >= {"nthreads": cluster.SLOTS, "memory_limit": 0.9}.items()


def container(machine: dict[str, Any]) -> list[str]:
    """The words of `docker run` in the machine's user data."""
    (command,) = (c for c in yaml.safe_load(machine["UserData"])["runcmd"] if c.startswith("docker run"))
    return shlex.split(command)


def test_machines_of_ec2_have_a_role_and_no_credentials_of_the_caller(asked_of_ec2: list[dict[str, Any]]) -> None:
    for machine in asked_of_ec2:
        assert machine["IamInstanceProfile"] == {"Name": "reader"}
        (config,) = (w for w in container(machine) if w.startswith("DASK_INTERNAL_INHERIT_CONFIG="))
        sent = machine["UserData"] + json.dumps(dask.config.deserialize(config.partition("=")[2]))
        assert "BEGIN CERTIFICATE" in sent
        assert not [secret for secret in ("my-key", "my-secret", "my-token") if secret in sent]
        assert len(machine["UserData"]) < EC2_BYTES


def test_machines_of_ec2_are_reached_from_their_group_alone(asked_of_ec2: list[dict[str, Any]]) -> None:
    for machine in asked_of_ec2:
        (network,) = machine["NetworkInterfaces"]
        assert network["Groups"] == ["sg-1"]
        assert network["SubnetId"] == "subnet-1"
        assert not network["AssociatePublicIpAddress"]


@pytest.fixture(scope="module")
def asked_of_ecs(provider: Path) -> list[tuple[str, dict[str, Any]]]:
    """What fargate.py asks for a scheduler and a worker."""
    given = {"CLUSTER": "mine", "IMAGE": "registry/dskprep:1", "SUBNET": "subnet-1", "GROUP": "sg-1"}
    roles = {"ROLE": "arn:reader", "EXECUTION_ROLE": "arn:execution"}
    return asked_by("fargate.py", FARGATE, provider, **given, **roles)


def tasks_of(asked: list[tuple[str, dict[str, Any]]]) -> list[tuple[list[str], dict[str, str]]]:
    """Command and environment of the scheduler's and of a worker's task."""
    tasks = [arguments for operation, arguments in asked if operation == "RunTask"]
    containers = [container for task in tasks for container in task["overrides"]["containerOverrides"]]
    return [(each["command"], {v["name"]: v["value"] for v in each["environment"]}) for each in containers]


def test_tasks_of_fargate_run_the_image_with_roles_of_their_own(asked_of_ecs: list[tuple[str, dict[str, Any]]]) -> None:
    definitions = [arguments for operation, arguments in asked_of_ecs if operation == "RegisterTaskDefinition"]
    for definition in definitions:
        (container,) = definition["containerDefinitions"]
        assert container["image"] == "registry/dskprep:1"
        assert (definition["taskRoleArn"], definition["executionRoleArn"]) == ("arn:reader", "arn:execution")
        assert definition["cpu"] == "1024"
    assert int(definitions[1]["memory"]) >= 1.7 * 1024
    assert not [secret for secret in ("my-key", "my-secret", "my-token") if secret in json.dumps(asked_of_ecs)]


def test_tasks_of_fargate_are_reached_from_their_group_alone(asked_of_ecs: list[tuple[str, dict[str, Any]]]) -> None:
    tasks = [arguments for operation, arguments in asked_of_ecs if operation == "RunTask"]
    for task in tasks:
        network = task["networkConfiguration"]["awsvpcConfiguration"]
        assert network == {"subnets": ["subnet-1"], "securityGroups": ["sg-1"], "assignPublicIp": "DISABLED"}
        assert task["launchType"] == "FARGATE"
        assert len(json.dumps(task["overrides"])) < ECS_CHARACTERS
    operations = {operation for operation, _ in asked_of_ecs}
    assert not [each for each in operations if each.startswith(("Create", "Authorize", "Delete", "Attach"))]


def test_tasks_of_fargate_speak_by_certificates_in_their_environment(
    asked_of_ecs: list[tuple[str, dict[str, Any]]],
) -> None:
    for role, (_, environment) in zip(("scheduler", "worker"), tasks_of(asked_of_ecs), strict=True):
        with dask.config.set(dask.config.merge(dask.config.config, dask.config.collect_env(environment))):
            security = Security()
            assert dask.config.get("distributed.scheduler.allowed-failures") == 1
            assert dask.config.get("distributed.scheduler.worker-saturation") == 1.0
        assert security.require_encryption
        assert security.get_listen_args(role)["ssl_context"].verify_mode == ssl.CERT_REQUIRED


def test_dask_takes_the_commands_of_fargate(asked_of_ecs: list[tuple[str, dict[str, Any]]]) -> None:
    (scheduler, _), (worker, _) = tasks_of(asked_of_ecs)
    assert (scheduler[0], worker[0]) == ("dask-scheduler", "dask-worker")
    assert dask_scheduler.main.make_context(scheduler[0], scheduler[1:]).params["idle_timeout"] == "30 minutes"
    said = dask_worker.main.make_context(worker[0], worker[1:]).params
    assert (said["scheduler"], said["nthreads"]) == ("tls://10.0.0.1:8786", cluster.SLOTS)
    assert parse_bytes(said["memory_limit"]) >= 1.7 * 2**30


def test_the_image_has_the_programs_that_fargate_starts(tmp_path: Path) -> None:
    (line,) = (s for s in (RECIPES / "Dockerfile").read_text().replace("\\\n", "").splitlines() if "dask-$each" in s)
    subprocess.run(["sh", "-c", line.removeprefix("RUN").replace("/usr/local/bin", str(tmp_path))], check=True)
    (tmp_path / "dask").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "dask").chmod(0o755)
    for what in ("scheduler", "worker"):
        said = subprocess.check_output(
            [tmp_path / f"dask-{what}", "--idle-timeout", "30 minutes"],
            text=True,
            env={"PATH": f"{tmp_path}:{os.defpath}"},
        )
        assert said.splitlines() == [what, "--idle-timeout", "30 minutes"]


@pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem", "dask.pem"])
def test_certificates_are_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("another authority's")
    words = [RECIPES / "make-certificates", tmp_path]
    made = subprocess.run(words, check=False, capture_output=True, text=True)
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr.startswith(f"{tmp_path / name}: is there already")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "another authority's")]


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl")
def test_certificates_leave_others_files_alone(tmp_path: Path) -> None:
    others = {name: name.encode() for name in ("key.pem", "certificate.pem", "request.pem", "ca.srl")}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    subprocess.run([RECIPES / "make-certificates", tmp_path.name, "30"], check=True, cwd=tmp_path.parent)
    there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert there.keys() - others.keys() == {"ca-key.pem", "ca.pem", "dask.pem"}
    assert {name: there[name] for name in others} == others
    assert (tmp_path / "dask.pem").stat().st_mode & 0o777 == 0o600
    failed = subprocess.run(
        [RECIPES / "make-certificates", tmp_path / "x", "soon"], check=False, capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "soon" in failed.stderr


SLURM = """
import json, os, runpy, sys
import dask, dask_jobqueue

def made(**asked):
    folder = dask.config.get("temporary-directory")
    print(json.dumps([asked, folder, os.stat(folder).st_mode], default=str))
    sys.exit()

dask_jobqueue.SLURMCluster = made
sys.argv = [sys.argv[1], "/scans", "/scans-1mm"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the recipe, and prints what it asks of dask-jobqueue."""


def test_no_other_user_of_a_node_has_a_part_in_daskes_folder(tmp_path: Path) -> None:
    """By default /tmp/dask-scratch-space, which may be another user's, comes first where modules are looked for."""
    pytest.importorskip("dask_jobqueue")
    said = subprocess.check_output([sys.executable, "-c", SLURM, str(RECIPES / "slurm.py")], text=True)
    asked, of_scheduler, mode = json.loads(said)
    assert (mode & 0o777, of_scheduler) == (0o700, f"{tempfile.gettempdir()}/{Path(of_scheduler).name}")
    assert not Path(of_scheduler).exists()
    assert "local_directory" not in asked
    job = "\n".join([*asked["job_script_prologue"], "stat -c '%a %n' $DASK_TEMPORARY_DIRECTORY"])
    seen = subprocess.check_output(["bash", "-c", job], text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    mode_there, folder = seen.split()
    assert (mode_there, Path(folder).parent) == ("700", tmp_path)
    assert not Path(folder).exists()


@pytest.mark.parametrize("name", ["make-certificates", "ssh-hosts"])
def test_the_scripts_are_shell(name: str) -> None:
    subprocess.run(["bash", "-n", RECIPES / name], check=True)


@pytest.mark.parametrize("name", ["cloud.py", "fargate.py", "slurm.py"])
def test_the_programs_run_on_the_cluster_they_made(name: str) -> None:
    calls = [n for n in ast.walk(ast.parse((RECIPES / name).read_text())) if isinstance(n, ast.Call)]
    (run,) = (call for call in calls if ast.unparse(call.func) == "dskprep.run")
    assert ast.unparse(run) == "dskprep.run(source, target, client=client)"
