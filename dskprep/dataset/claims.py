"""What the runs under way tell one another, so that two runs on one target share the patients.

claims/<run id>.json    the lease of a run: written anew every few seconds, deleted when the run ends
claims/<number>.json    a claim: which patients a run takes next, and which of its patients are recorded by now

The claims of all runs are one log. A number is created only if it does not exist, so whoever adds a claim has seen
those before it, or is told to look first. None of this decides what is written: that is what the records are for. A
lease or a claim that is damaged, or that somebody made up, counts for nothing more than a patient done twice or later.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from dskprep import storage
from dskprep.dataset import own
from dskprep.dataset.record import RecordName
from dskprep.storage import Entry
from dskprep.typed import converter

T = TypeVar("T")

MAX_BYTES = 4 << 20
"""Size of the largest claim that is read: many times that of the largest that a run makes."""
LATEST_S = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC).timestamp()
"""The latest time that is told, in seconds since 1970."""
LAST = 99_999_999
"""The highest number of a claim: all have eight digits."""
Text = Annotated[str, msgspec.Meta(max_length=200)]
"""What a run says of itself is shown to users, so it has an end."""


class Lease(msgspec.Struct, frozen=True):
    """Who runs: `since` is the time of the start (UTC, ISO 8601), `n_done` counts the patients done so far.

    `machine` is the same for two processes only if each would see the other by its `pid`. `n_renewed` makes the content
    of each renewal another one. `has_ended` is said by a run that has no account.
    """

    run_id: str
    host: Text = ""
    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] = 1
    machine: Text = ""
    since: Text = ""
    n_done: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    n_renewed: int = 0
    has_ended: bool = False

    def renewed(self, n_done: int) -> Lease:
        """Return the lease with another content."""
        return msgspec.structs.replace(self, n_done=n_done, n_renewed=self.n_renewed + 1)

    def without_account(self) -> Lease:
        """Return the lease as a run leaves it that ends without an account."""
        return msgspec.structs.replace(self, n_renewed=self.n_renewed + 1, has_ended=True)

    @property
    def is_dead(self) -> bool:
        """Whether it has ended, or its process is known to be gone. That of another machine may be alive or not."""
        if self.has_ended:
            return True
        if not self.machine or self.machine != this_machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            return False
        return False

    def __str__(self) -> str:
        return f"{self.run_id} ({self.host or 'unknown host'}, process {self.pid})"


class Claim(msgspec.Struct, frozen=True):
    """What a run adds to the log: the keys of patients that it `takes`, and the records that it has `done` by now.

    The latter stand as `<status>/<key>.<input digest>`.
    """

    run_id: str
    takes: tuple[str, ...] = ()
    done: tuple[str, ...] = ()

    @classmethod
    def of(cls, run_id: str, takes: Iterable[str], done: Iterable[RecordName]) -> Claim:
        """Return a claim of these keys, which tells of these records."""
        return cls(run_id, tuple(takes), tuple(f"{name.status}/{name.key}.{name.digest}" for name in done))

    def records(self) -> list[RecordName]:
        """Return the possible ones of the names in `done`."""
        found = []
        for path in self.done:
            status, _, name = path.partition("/")
            found.append(RecordName(status, *name.rpartition(".")[::2]))
        return [name for name in found if name.is_possible]


_to_lease, _to_claim = converter(Lease), converter(Claim)


class Listing(NamedTuple):
    """The entries of all leases, by the id of their run, and of all claims, by their number."""

    leases: dict[str, Entry]
    claims: dict[int, Entry]


@functools.cache
def this_machine() -> str:
    """Return what two processes have in common that see each other by their numbers; "" if that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def new_run_id() -> str:
    """Return an id for a run that begins now: the time (UTC), and some letters for those that begin together."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def utc(seconds: float) -> str:
    """Return a time in seconds since 1970 as a text in ISO 8601; one that no calendar has is the nearest of it."""
    seconds = min(max(seconds, 0.0), LATEST_S)  # a file can have any
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def listing(target: str) -> Listing:
    """List the leases and the claims. Reads none of them."""
    there = storage.listing_below(_folder(target), follow_links=False)
    entries = {e.name.removesuffix(".json"): e for e in there if own.is_claim(e.name)}
    claims = {int(name): entry for name, entry in entries.items() if name.isdigit()}
    return Listing({name: entry for name, entry in entries.items() if not name.isdigit()}, claims)


def following(numbers: Collection[int]) -> int:
    """Return the number of the next claim. Claims at the very end, such as somebody's made up, do not end the log."""
    end = LAST
    while end in numbers:
        end -= 1
    return max((number for number in numbers if number < end), default=-1) + 1


def begin(target: str, lease: Lease) -> bool:
    """Write the lease of a run that begins; return whether the store refuses to create it again.

    Where it does not, as some S3 servers that ignore `If-None-Match`, a claim of one run would replace another's.
    """
    renew(target, lease)
    return not storage.create(storage.join(_folder(target), f"{lease.run_id}.json"), _content(lease))


def renew(target: str, lease: Lease) -> None:
    """Write a lease, as it is now."""
    storage.write_many(target, {f"claims/{lease.run_id}.json": _content(lease)})


def add(target: str, number: int, claim: Claim) -> bool:
    """Add a claim under a new number; return whether it is known to stand there."""
    storage.refuse_links(target, ["claims/any"])
    return storage.create(storage.join(_folder(target), _name(number)), _content(claim))


def read_leases(target: str, entries: Iterable[Entry]) -> dict[str, Lease]:
    """Read leases of a listing, by the id of their run; one that is damaged or gone says nothing but that id."""
    found = {name: Lease(name) for name in (entry.name.removesuffix(".json") for entry in entries)}
    return found | {name: lease for name, lease in _read(target, entries, _to_lease) if name == lease.run_id}


def read_claims(target: str, entries: Iterable[Entry]) -> dict[int, Claim]:
    """Read claims of a listing, by their number; those that are damaged or gone are left out."""
    return {int(name): claim for name, claim in _read(target, entries, _to_claim)}


def end(target: str, lease: Lease) -> None:
    """Delete a lease."""
    storage.delete(target, [f"claims/{lease.run_id}.json"])


def delete(target: str, names: Iterable[int | str]) -> None:
    """Delete the claims of these numbers, and the leases of the runs of these ids."""
    storage.delete(target, [f"claims/{_name(name)}" for name in names])


def _read(target: str, entries: Iterable[Entry], to_part: Callable[[Any], T]) -> Iterator[tuple[str, T]]:
    names = [entry.name for entry in entries if entry.size <= MAX_BYTES]
    # one that was deleted since, or cannot be read, is passed over; a lease that was renewed is read as it is now
    for name, content in storage.read_existing(_folder(target), names, most_bytes=MAX_BYTES):
        with contextlib.suppress(ValueError, RecursionError):  # a ValidationError is a ValueError
            yield name.removesuffix(".json"), to_part(json.loads(content))


def _name(name: int | str) -> str:
    return f"{name:08}.json" if isinstance(name, int) else f"{name}.json"


def _content(part: Lease | Claim) -> bytes:
    return (json.dumps(msgspec.to_builtins(part)) + "\n").encode()


def _folder(target: str) -> str:
    return storage.join(target, "claims")
