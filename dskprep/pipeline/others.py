"""What other runs on the same target have under way and have done, learned from the claims of all."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from dskprep.dataset import claims, identity
from dskprep.dataset.claims import Claim, Lease
from dskprep.dataset.record import RecordName
from dskprep.errors import InfrastructureError

RENEW_S = 10.0
"""Seconds between two renewals of a lease, and at most between two looks at what other runs do."""
STALE_S = 60.0
"""Seconds after which a lease that was not renewed belongs to a dead run.

They are counted by the clock of the run that looks, since it first saw the lease as it is now. So no clock is compared
with another one.
"""
KEEP_S = 600.0
"""Seconds for which a claim stays when its patients are done; each run looks many times in between."""
JOIN_S = 5.0
"""How long a renewal that hangs may hold up the end of a run, in seconds."""


class _Heard(NamedTuple):
    lease: Lease
    tag: str
    since_s: float


class Others:
    """Claims patients for one run, and knows those of the others by key.

    `mine` are the keys that this run has claimed and not done. `held` has the run that has claimed a key and not done
    it, `done` the records that other runs have told of since this one began. `live` are the other runs that are alive.
    """

    def __init__(self, target: str, run_id: str) -> None:
        self.mine: set[str] = set()
        self.held: dict[str, str] = {}
        self.done: dict[str, RecordName] = {}
        self.live: set[str] = set()
        self.has_met_any = False
        self._target = target
        since = claims.utc(time.time())
        self._lease = Lease(run_id, os.uname().nodename, os.getpid(), claims.this_machine(), since)
        self._is_running = False
        self._ended = threading.Event()
        self._next, self._looked_s = 0, 0.0
        self._own: dict[int, tuple[float, frozenset[str]]] = {}
        self._read: set[tuple[int, str]] = set()
        self._heard: dict[str, _Heard] = {}
        self._robbers: set[str] = set()
        self.look()
        self.done.clear()  # the records that are listed after this say more

    def begin(self, count: Callable[[], int]) -> bool:
        """Let the other runs know of this one, with the patients that `count` says are done.

        Returns False, and leaves nothing behind, if the store lets no run claim anything.
        """
        if not claims.begin(self._target, self._lease):
            claims.end(self._target, self._lease)
            return False
        self._is_running = True
        self._thread = threading.Thread(target=self._renew_until_end, args=(count,), name="lease", daemon=True)
        self._thread.start()
        self.look()
        return True

    def end(self, untold: Collection[RecordName]) -> None:
        """Give back what is claimed, and tell what is done. The last run to end deletes the claims of all."""
        self._ended.set()
        with contextlib.suppress(InfrastructureError):  # if the store does not answer, the lease ends by itself
            if self._is_running:
                self._thread.join(JOIN_S)
                self.look()
                while untold and self.live and not self.claim([], untold):
                    pass
                claims.end(self._target, self._lease)
                self._is_running = False
            if self._read or self._heard:
                self.look()
                if not self.live:
                    claims.delete(self._target, [*self._heard, *(number for number, _ in self._read)])

    def leave(self) -> None:
        """End without an account: the lease stays, so that `status` tells of this run until another one has ended."""
        try:
            identity.check_there(self._target)
        except InfrastructureError:  # its disk is not mounted: nothing is to stay in its place
            self.end([])
        self._ended.set()
        if self._is_running:
            self._is_running = False
            self._thread.join(JOIN_S)
            with contextlib.suppress(InfrastructureError):  # then the lease ends by itself
                claims.renew(self._target, self._lease.without_account())

    def claim(self, keys: Collection[str], untold: Collection[RecordName]) -> bool:
        """Claim these keys, and tell of what is done.

        If another run was faster, returns False and knows what that one has claimed.
        """
        if self._next > claims.LAST:
            self.look()
        number = self._next
        self._next += 1
        claim = Claim.of(self._lease.run_id, keys, untold)
        if claims.add(self._target, number, claim):
            self._learn(number, claim)
        else:
            self.look()
        if number in self._own:  # also if it is there although the answer was lost
            self.mine.update(keys)
            for key in keys:  # of a run that died
                self.held.pop(key, None)
            return True
        return False

    def who(self, run_id: str) -> str:
        """Return how a run is named to the user."""
        return str(self._heard[run_id].lease if run_id in self._heard else Lease(run_id))

    def is_lost(self, run_id: str) -> bool:
        """Tell whether a run has not ended and yet is not alive."""
        return run_id in self._heard and run_id not in self.live

    def robbers(self) -> set[str]:
        """Return the runs that took this one for dead, and patients over from it, since the last call.

        One that has ended since is "": it left nothing, and has deleted the claims of this run too.
        """
        found, self._robbers = self._robbers, set()
        return found

    def look_now_and_then(self) -> None:
        """Look, if the last time was a while ago."""
        if time.monotonic() - self._looked_s > RENEW_S:
            self.look()

    def look(self) -> None:
        """Read what is new in the leases and claims of all runs."""
        self._looked_s = time.monotonic()
        leases, listed = claims.listing(self._target)
        self._looked_s = time.monotonic()
        new = [e for number, e in listed.items() if number not in self._own and (number, e.tag) not in self._read]
        for number, claim in sorted(claims.read_claims(self._target, new).items()):
            self._learn(number, claim)
        if self._is_running and (gone := self._own.keys() - listed.keys()):
            self._robbers.add("")
            for number in gone:
                del self._own[number]
        self._read = {(number, entry.tag) for number, entry in listed.items()}
        has_room = self._next <= claims.LAST and claims.LAST not in listed
        self._next = max(self._next if has_room else 0, claims.following(listed.keys()))
        self._forget_old()
        leases.pop(self._lease.run_id, None)
        has_gone = not self._heard.keys() <= leases.keys()
        self._heard = {run_id: heard for run_id, heard in self._heard.items() if run_id in leases}
        known = {run_id for run_id, heard in self._heard.items() if heard.lease.host}
        who = claims.read_leases(self._target, [e for run_id, e in leases.items() if run_id not in known])
        for run_id, entry in leases.items():
            before = self._heard.get(run_id)
            since_s = before.since_s if before and before.tag == entry.tag else self._looked_s
            self._heard[run_id] = _Heard(
                before.lease if before and run_id in known else who[run_id], entry.tag, since_s
            )
        self.live = {run_id for run_id, heard in self._heard.items() if self._is_alive(heard)}
        self.has_met_any |= bool(self.live)
        if has_gone:  # a folder may be listed just before the last claim of a run, and just after its lease
            self.look()

    def _forget_old(self) -> None:
        """Delete old claims of this run whose patients are done, but never that with the highest number."""
        before_s = self._looked_s - KEEP_S
        old = [
            number
            for number, (added_s, keys) in self._own.items()
            if added_s < before_s and number < self._next - 1 and self.mine.isdisjoint(keys)
        ]
        if old:
            claims.delete(self._target, old)
        for number in old:
            del self._own[number]

    def _is_alive(self, heard: _Heard) -> bool:
        return self._looked_s - heard.since_s < STALE_S and not heard.lease.is_dead

    def _learn(self, number: int, claim: Claim) -> None:
        """Take in the claim of another run, or one of this run of which it did not know that it stands there."""
        if claim.run_id == self._lease.run_id:
            self._own[number] = (time.monotonic(), frozenset(claim.takes))
            return
        if not self.mine.isdisjoint(claim.takes):
            self._robbers.add(claim.run_id)
            self.mine.difference_update(claim.takes)
        self.held.update(dict.fromkeys(claim.takes, claim.run_id))
        for name in claim.records():
            if self.held.get(name.key) == claim.run_id:
                del self.held[name.key]
            self.done[name.key] = name

    def _renew_until_end(self, count: Callable[[], int]) -> None:
        while not self._ended.wait(RENEW_S):
            self._lease = self._lease.renewed(count())
            with contextlib.suppress(InfrastructureError):  # the run itself meets it too, and says so
                claims.renew(self._target, self._lease)
