"""Everything that can go wrong at once, in a seeded order, and then the account must be right.

    python tests/chaos.py --seeds 20 --patients 60

For each seed: a real S3 server behind a proxy that lets one request in twenty fail in some way, with latency; a
scheduler and workers of small memory as processes of their own, restarted when they die; patients of which some
are refused and one kills each worker that touches it. While `dskprep run` goes on, workers, nannies, the
scheduler and the client itself are killed and workers' memory bursts; the client is started again each time.
Beside it a second client has the same task on the same target; it is killed too, or sleeps for so long that it is
taken for dead.
In the end the faults stop, and every promise is checked against an undisturbed run.

The same file is what the workers preload (`dask worker --preload chaos`) and what the clients run
(`python chaos.py client run ...`), with time-outs of a few seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

FOLDER = "DSKPREP_CHAOS"
"""Environment variable: the folder of the seed's logs, and of the file that names the poison patient."""

PYTHON = sys.executable
N_WORKERS, MEMORY = 2, 700 << 20
SHARE, LATENCY_MS, STALL_S, READ_TIMEOUT_S = 0.05, "30-50", 4.0, 2.0
EVENTS = ("worker", "nanny", "burst", "scheduler", "client", "term", "second", "sleep")
RENEW_S, STALE_S, SLEEP_S = 1.0, 5.0, 8.0
MAX_CLIENTS = 25
SEED_LIMIT_S = 800.0
NOT_WRITTEN = {"few-slices": "too-few-slices", "no-dicom": "no-dicom"}
PROMISED = ("status", "reason", "objects", "geometry", "source", "warnings", "hu_sha256", "input_digest", "lungs")
"""What a record must say whatever happened on the way."""


# inside the workers and the clients


def dask_setup(worker: Any) -> None:  # noqa: ARG001
    """Called by Dask in each worker process: short time-outs, the poison, and memory bursts on SIGUSR1."""
    from dskprep.worker import patient

    shorten()
    poison = Path(os.environ[FOLDER], "poison")
    prepare = patient.prepare_patient

    @functools.wraps(prepare)
    def prepare_or_die(job: patient.Job, **arguments: Any) -> Any:
        key, _, way = poison.read_text().partition(" ") if poison.exists() else ("", "", "")
        if job.case.key == key and way == "exit":
            os._exit(1)
        if job.case.key == key:
            burst()
        return prepare(job, **arguments)

    patient.prepare_patient = prepare_or_die
    signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=burst, daemon=True).start())


def shorten() -> None:
    """Seconds instead of minutes until a silent server, or a silent run, is given up."""
    from dskprep.pipeline import others
    from dskprep.storage import S3_SETTINGS, clients
    from dskprep.worker import process

    S3_SETTINGS["config_kwargs"]["read_timeout"] = READ_TIMEOUT_S
    clients.SILENCE_S = READ_TIMEOUT_S
    process.WAIT_S = 0.2
    others.RENEW_S, others.STALE_S = RENEW_S, STALE_S


def burst() -> None:
    """Take memory until the nanny kills the process, at 95 % of its limit; without a nanny, end it."""
    taken = []
    while sum(map(len, taken)) < 2 * MEMORY:
        taken.append(b"\1" * (32 << 20))
        time.sleep(0.02)
    os._exit(1)


# the cluster


class Cluster:
    """A scheduler and workers, each a process that is started again when it ends."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        import tiny

        (port,) = tiny.free_ports(1)
        self.address = f"tcp://127.0.0.1:{port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._is_over = threading.Event()

    def __enter__(self) -> Cluster:
        dask = ["-m", "dask"]
        host, _, port = self.address.removeprefix("tcp://").partition(":")
        self._keep("scheduler", [*dask, "scheduler", "--host", host, "--port", port, "--no-dashboard"])
        for i in range(N_WORKERS):
            self._keep(
                f"worker-{i}",
                [*dask, "worker", self.address, "--host", host, "--nworkers", "1", "--nthreads", "3", "--no-dashboard"]
                + ["--memory-limit", str(MEMORY), "--preload", "chaos", "--death-timeout", "200"]
                + ["--local-directory", str(self.folder / f"scratch-{i}")],
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for name in list(self.processes):
            with contextlib.suppress(ProcessLookupError):
                self.processes[name].kill()  # a worker process ends with its nanny
        for thread in self._threads:
            thread.join(60)

    def kill(self, event: str, rng: random.Random) -> None:
        """Do the event to a process that lives; wait for one."""
        if event == "scheduler":
            return self.processes["scheduler"].kill()
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            name = f"worker-{rng.randrange(N_WORKERS)}"
            nanny = self.processes[name]
            if event == "nanny" and nanny.poll() is None:
                return nanny.kill()
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(nanny.pid).children()
                for child in [c for c in children if "spawn_main" in " ".join(c.cmdline())]:
                    return child.send_signal(signal.SIGKILL if event == "worker" else signal.SIGUSR1)
            time.sleep(0.05)
        raise Problem(f"no worker lived for {event}")

    def _keep(self, name: str, words: list[str]) -> None:
        started = threading.Event()

        def keep() -> None:
            for _ in range(100):
                if self._is_over.is_set():
                    return
                with (self.folder / f"{name}.log").open("ab") as log:
                    self.processes[name] = popen(words, self.environment, stdout=log)
                started.set()
                if self._is_over.is_set():
                    self.processes[name].kill()
                self.processes[name].wait()

        self._threads.append(threading.Thread(target=keep, daemon=True))
        self._threads[-1].start()
        started.wait(200)


def popen(words: list[str], environment: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Python with these words, as a process that dies with the thread that starts it."""
    from dskprep.synthetic.s3server import LAUNCHER

    return subprocess.Popen(
        [PYTHON, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), PYTHON, *words],
        stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=environment, start_new_session=True, **options,
    )  # fmt: skip


# the run


class Problem(Exception):
    """A promise that was not kept."""


@dataclass
class Outcome:
    """What happened under one seed; no `problems` if every promise was kept."""

    seed: int
    events: list[str] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    seconds_ended: list[str] = field(default_factory=list)
    injected: dict[str, int] = field(default_factory=dict)
    before_calm: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {'FAILED' if self.problems else 'ok'}, {self.seconds:.0f} s; {', '.join(self.events)}",
            f"  clients ended with {' '.join(self.clients)}; the second run with {' '.join(self.seconds_ended)}; "
            f"faults {self.injected}",
            f"  when the faults stopped: {self.before_calm}",
        ]
        return "\n".join([*lines, *(f"  note: {n}" for n in self.notes), *(f"  PROBLEM: {p}" for p in self.problems)])


@dataclass
class Stage:
    """What all seeds share: the server, the patients, and the undisturbed dataset."""

    server: Any
    source: str
    calm: str
    keys: list[str]
    volumes: dict[str, bytes]
    records: dict[tuple[str, str], dict[str, Any]]


@contextlib.contextmanager
def stage(server: Any, n_patients: int) -> Iterator[Stage]:
    """Write the patients and prepare them undisturbed. Sets this process's environment for the server."""
    import s3fs
    import tiny

    import dskprep

    before = dict(os.environ)
    for name in [n for n in os.environ if n.startswith(("AWS_", "FSSPEC_"))]:
        del os.environ[name]
    os.environ.update(server.environment)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        bucket = server.make_bucket(f"chaos-{os.getpid()}-{n_patients}")
        source, calm = f"{bucket}/in", f"{bucket}/calm"
        n_plain = n_patients - len(NOT_WRITTEN) - 2
        for i in range(n_plain):
            tiny.write(f"{source}/p{i:03}", tiny.series(i, n=12 + i % 9))
        second = {f"second-{name}": content for name, content in tiny.series(501).items()}
        tiny.write(f"{source}/two-series", {**tiny.series(500, n=14), **second})
        tiny.write(source, {"zipped.zip": tiny.zipped(tiny.series(502))})
        tiny.write(f"{source}/few-slices", tiny.series(503, n=5))
        tiny.write(f"{source}/no-dicom", {"report.txt": b"nothing"})
        summary = dskprep.run(source, calm)
        if summary.account.counts != {"written": n_patients - 2, "refused": 2}:
            raise Problem(f"the undisturbed run: {summary.account}")
        keys = [f"p{i:03}" for i in range(n_plain)]
        volumes = tiny.everything_below(f"{calm}/volumes")
        yield Stage(server, source, calm, keys, volumes, records_of(calm))
    finally:
        os.environ.clear()
        os.environ.update(before)
        s3fs.S3FileSystem.clear_instance_cache()


def play(the_stage: Stage, seed: int, *, folder: Path, n_events: int = len(EVENTS), share: float = SHARE) -> Outcome:
    """One seed. Logs stay in `folder`."""
    from faulty_s3 import FaultyS3

    started = time.monotonic()
    outcome = Outcome(seed)
    rng = random.Random(seed)
    poison = rng.choice(the_stage.keys)
    (folder / "poison").write_text(f"{poison} {rng.choice(['exit', 'memory'])}")
    (folder / "dask.yaml").write_text(yaml.safe_dump(dask_settings()))
    target = f"{the_stage.calm.rpartition('/')[0]}/seed-{seed}"
    with FaultyS3(the_stage.server.endpoint, seed=seed, share=share, latency_ms=LATENCY_MS, stall_s=STALL_S) as faulty:
        environment = os.environ | {
            "AWS_ENDPOINT_URL": faulty.endpoint,
            "DASK_CONFIG": str(folder),
            FOLDER: str(folder),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
        }
        with Cluster(folder, environment) as cluster:
            run = Run(the_stage, target, cluster, environment, folder, outcome, started + SEED_LIMIT_S)
            try:
                run.disturbed(schedule(rng, n_events, len(the_stage.keys)), rng)
                outcome.injected = faulty.injected
                outcome.before_calm = dict(Counter(name.status for name in record_names(target)))
                faulty.set(share=0.0)
                others = [n for n in record_names(target) if n.status in ("failed", "killed") and n.key != poison]
                again = ["--retry", "failed"] if others else []  # the poison alone costs four workers each time
                check(run.calm(*again) == 1, "the calm run did not end with 1")
                check_account(the_stage, target, poison)
                (folder / "poison").unlink()
                check(run.calm("--retry", "failed") == 1, "the run without poison did not end with 1")
                check_equal(the_stage, target)
                left = leftovers(target)
                check(not left, f"left after clean: {left}")
            except Problem as problem:
                outcome.problems.append(str(problem))
    outcome.seconds = time.monotonic() - started
    return outcome


def schedule(rng: random.Random, n_events: int, n_patients: int) -> list[tuple[int, str]]:
    """Events, and how many records there must be before each."""
    events = [*rng.sample(EVENTS, len(EVENTS)), *rng.choices(EVENTS, k=max(0, n_events - len(EVENTS)))][:n_events]
    return sorted(zip((rng.randrange(n_patients * 4 // 5) for _ in events), events, strict=True))


@dataclass
class Run:
    """The clients of one seed, one after another."""

    stage: Stage
    target: str
    cluster: Cluster
    environment: dict[str, str]
    folder: Path
    outcome: Outcome
    deadline: float

    def disturbed(self, events: list[tuple[int, str]], rng: random.Random) -> None:
        """Two runs at once until each has come to its end; meanwhile the events, each when its time has come."""
        second = Second(self)
        try:
            self._disturb_first(list(events), rng, second)
            second.wait_for_end()
        finally:
            second.stop()

    def _disturb_first(self, events: list[tuple[int, str]], rng: random.Random, second: Second) -> None:
        for _ in range(MAX_CLIENTS):
            client = self._client()
            sent = ""
            while client.poll() is None:
                self._check_time(client)
                n_records = sum(1 for _ in record_names(self.target))
                is_due = bool(events) and not sent and n_records >= events[0][0]
                if is_due and (events[0][1] not in ("client", "term") or self._log().stat().st_size):  # it has begun
                    event = events.pop(0)[1]
                    if event in ("client", "term"):
                        sent = event
                        client.send_signal(signal.SIGKILL if event == "client" else signal.SIGTERM)
                    elif event in ("second", "sleep"):
                        second.disturb(event)
                    else:
                        self.cluster.kill(event, rng)
                    self.outcome.events.append(f"{event}@{n_records}")
                time.sleep(0.05)
            if self._has_finished(client.returncode, sent):
                if events:
                    self.outcome.notes.append(f"the run ended before {', '.join(e for _, e in events)}")
                return
        raise Problem(f"{MAX_CLIENTS} clients did not come to an end: {self.outcome.clients}")

    def start(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """A client that writes to the log."""
        command = [__file__, "client", "run", self.stage.source, self.target, "--scheduler", self.cluster.address]
        with log.open("wb") as file:
            return popen([*command, *words], self.environment, stdout=file)

    def calm(self, *words: str) -> int:
        """One client without events; its exit code. It may find no workers yet."""
        for _ in range(5):
            client = self._client(*words)
            while client.poll() is None:
                self._check_time(client)
                time.sleep(0.05)
            self._has_finished(client.returncode, "")
            if client.returncode != 3:
                return int(client.returncode)
        raise Problem(f"no end without faults: {self.outcome.clients}")

    def _has_finished(self, code: int, sent: str) -> bool:
        said = self._log().read_text(errors="replace")
        last = said.strip().splitlines()[-1][:160] if said.strip() else ""
        is_interrupted = "interrupted" in said
        self.outcome.clients.append(f"{code}{'(' + sent + ')' if sent else ''}")
        if "Traceback" in said:
            self.outcome.problems.append(f"client {len(self.outcome.clients)} ({code}) showed a traceback")
        if code in (0, 1):
            check(not is_interrupted or sent == "term", f"interrupted without a signal: {last}")
            return not is_interrupted
        if code == 3:
            self.outcome.notes.append(f"exit 3: {last}")
            check(last.startswith("dskprep: "), f"exit 3 without its line: {last}")
            return False
        # SIGTERM that meets Python on its way out, after the last line, ends it as it ends any program
        is_late = code == -signal.SIGTERM and sent == "term" and last.startswith("dskprep: ")
        is_killed = code == -signal.SIGKILL and sent == "client"
        check(is_killed or is_late, f"a client ended with {code} after {sent!r}: {last}")
        return False

    def _log(self) -> Path:
        return self.folder / f"client-{len(self.outcome.clients):02}.log"

    def _client(self, *words: str) -> subprocess.Popen[bytes]:
        return self.start(self._log(), *words)

    def _check_time(self, client: subprocess.Popen[bytes]) -> None:
        if time.monotonic() > self.deadline:
            client.kill()
            client.wait()
            said = self._log().read_text(errors="replace").strip().splitlines()[-3:]
            raise Problem(f"no end after {SEED_LIMIT_S:.0f} s; the client last said {said}")


class Second:
    """A second run on the same target, in a thread that starts it again until it comes to its end."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._is_over = threading.Event()
        self._killed = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def disturb(self, event: str) -> None:
        """Kill it, or stop it for so long that it is taken for dead."""
        process = self._process
        if process is None or process.poll() is not None:
            self._run.outcome.notes.append(f"the second run had ended before {event}")
        elif event == "second":
            self._killed += 1
            process.kill()
        else:
            process.send_signal(signal.SIGSTOP)
            timer = threading.Timer(SLEEP_S, process.send_signal, [signal.SIGCONT])
            timer.daemon = True
            timer.start()

    def wait_for_end(self) -> None:
        """Wait until the run has come to its end without being told to."""
        self._thread.join(max(1.0, self._run.deadline - time.monotonic()))
        check(not self._thread.is_alive(), "the second run did not come to an end")

    def stop(self) -> None:
        self._is_over.set()
        if self._process:
            self._process.kill()
        self._thread.join(60)

    def _keep(self) -> None:
        outcome = self._run.outcome
        for i in range(MAX_CLIENTS):
            log = self._run.folder / f"second-{i:02}.log"
            self._process = self._run.start(log)
            code = self._process.wait()
            outcome.seconds_ended.append(str(code))
            if self._is_over.is_set():
                return
            said = log.read_text(errors="replace")
            if "Traceback" in said:
                outcome.problems.append(f"the second run ({code}) showed a traceback: {log}")
            if code in (0, 1):
                return
            if code == -signal.SIGKILL and self._killed:
                self._killed -= 1
            elif code != 3:
                outcome.problems.append(f"the second run ended with {code}")
                return


# the promises


def check_account(the_stage: Stage, target: str, poison: str) -> None:
    """Every input has one status; the poison patient alone is killed."""
    from dskprep.dataset import store
    from dskprep.dataset.record import FURTHER

    names = list(record_names(target))
    own = [n for n in names if FURTHER not in n.key]
    twice = [key for key, n in Counter(n.key for n in own).items() if n > 1]
    check(not twice, f"more than one record of {twice}")
    expected = dict(the_stage.records.keys()) | {poison: "killed"}
    found = {n.key: n for n in names}
    wrong = []
    for key in sorted({*expected, *found}):
        record = store.read_record(target, found[key]) if key in found else None
        status, message = (record.status, record.message) if record else ("absent", None)
        if expected.get(key) != status:
            wrong.append(f"{key} should be {expected.get(key)} and is {status}: {message}")
    check(not wrong, "; ".join(wrong))


def check_equal(the_stage: Stage, target: str) -> None:
    """The dataset is that of the undisturbed run, object by object and record by record."""
    import tiny

    import dskprep
    from dskprep.dataset import index

    volumes = tiny.everything_below(f"{target}/volumes")
    differing = sorted(n for n in {*volumes, *the_stage.volumes} if volumes.get(n) != the_stage.volumes.get(n))
    check(not differing, f"objects that differ from those of the undisturbed run: {differing[:10]}")
    records = records_of(target)
    check(set(records) == set(the_stage.records), f"records: {set(records) ^ set(the_stage.records)}")
    for name, record in records.items():
        other = the_stage.records[name]
        wrong = [field for field in PROMISED if getattr(record, field) != getattr(other, field)]
        check(not wrong, f"{name}: {wrong} differ from the undisturbed run's")
    faults = [f"{f.key}: {fault}" for f in dskprep.verify(target) for fault in f.faults]
    check(not faults, f"verify found {faults}")
    table = index.read(target)
    check(
        sorted(zip(table["key"], table["status"], strict=True)) == sorted(records),
        "index.parquet does not hold one row a record",
    )


def leftovers(target: str) -> list[str]:
    """Objects of the target that belong to nothing, after `clean`."""
    import s3fs

    from dskprep import storage
    from dskprep.cli import commands

    with contextlib.redirect_stdout(None):
        commands.run_command(["clean", target, "--older-than", "0"])
    written = {n.key for n in record_names(target) if n.status == "written"}
    stray = [e.name for e in storage.listing_below(f"{target}/volumes") if e.name.split(".zarr/")[0] not in written]
    stray += [e.name for e in storage.listing(f"{target}/thumbnails") if e.name.removesuffix(".webp") not in written]
    known = ("records/", "volumes/", "thumbnails/", "runs/")
    stray += [
        e.name
        for e in storage.listing_below(target)
        if not e.name.startswith(known) and e.name not in ("dataset.json", "identity.json", "index.parquet")
    ]
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    uploads = fs.call_s3("list_multipart_uploads", Bucket=target.removeprefix("s3://").split("/")[0]).get("Uploads", [])
    return stray + [f"upload: {u['Key']}" for u in uploads]


def check(is_so: bool, problem: str) -> None:
    if not is_so:
        raise Problem(problem)


def record_names(target: str) -> Iterator[Any]:
    from dskprep.dataset import store

    return store.record_names(target)


def records_of(target: str) -> dict[tuple[str, str], Any]:
    from dskprep.dataset import store

    return {(n.key, n.status): store.read_record(target, n) for n in record_names(target)}


def dask_settings() -> dict[str, Any]:
    """What dskprep sets on its own clusters, as nested YAML has it."""
    from dskprep.pipeline import cluster

    nested: dict[str, Any] = {}
    for name, value in cluster.SETTINGS.items():
        *above, last = name.split(".")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def main() -> int:
    if sys.argv[1:2] == ["client"]:
        from dskprep.cli import commands

        shorten()
        del sys.argv[1]
        commands.run_and_exit()
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--patients", type=int, default=60)
    options.add_argument("--events", type=int, default=9, help="kills and bursts under each seed")
    options.add_argument("--share", type=float, default=SHARE, help="of the S3 requests that fail")
    options.add_argument("--logs", type=Path, help="where logs go [a temporary folder, kept if a seed fails]")
    options.add_argument("--json", type=Path, help="write the outcomes there")
    o = options.parse_args()
    from dskprep.synthetic.s3server import S3Server

    folder = o.logs or Path(tempfile.mkdtemp(prefix="dskprep-chaos-"))
    outcomes = []
    with S3Server() as server, stage(server, o.patients) as the_stage:
        for seed in range(o.first_seed, o.first_seed + o.seeds):
            place = folder / f"seed-{seed}"
            place.mkdir(parents=True)
            outcomes.append(play(the_stage, seed, folder=place, n_events=o.events, share=o.share))
            print(outcomes[-1], flush=True)
    n_failed = sum(bool(outcome.problems) for outcome in outcomes)
    print(f"{len(outcomes)} seeds, {n_failed} failed" + (f"; logs in {folder}" if n_failed else ""))
    if o.json:
        o.json.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))
    if not n_failed and not o.logs:
        shutil.rmtree(folder)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
