"""Two runs on one target share the work: each does the patients that no other run has under way or has done.

A run claims patients before its workers get them. Alone, it claims those of the next seconds at once, so that claims
cost next to nothing. Beside another run it claims little more than it has free slots for, so that both end together.
What others have claimed it leaves to them, and waits at its end until they have done it. If their run ends or dies
before that, it takes the rest over.

A claim saves work and decides nothing. Whoever does a patient twice, as after a run was taken for dead while its
machine slept, writes the same bytes twice, and the record that was there first stays. Where the files of the patient
have changed in between, see `dataset.overtaken`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from distributed import Client

from dskprep.dataset import store
from dskprep.dataset.listed import Listed
from dskprep.dataset.record import RecordName
from dskprep.errors import InfrastructureError
from dskprep.pipeline import executor
from dskprep.pipeline.account import Account
from dskprep.pipeline.others import Others
from dskprep.worker.patient import Job, Outcome

T = TypeVar("T", bound=tuple[Any, ...])

ALONE_S, BESIDE_S = 10.0, 1.0
"""A run claims the patients that it does in this many seconds at its pace: alone, and beside another run."""
MOST = 512
"""Patients in one claim."""
FIRST_POLL_S, LAST_POLL_S = 0.1, 2.0
"""Seconds between the first and between later looks while a run waits for another one."""

WAITING = "the run {who} has {n} patients under way that belong to this run too; waiting for it (Ctrl-C ends this run)"
TAKEN_OVER = "the run {who} was killed, or has not been heard of for a minute; what it had under way is taken over"
ROBBED = "the run {who} took this one for dead and has taken patients over; some are done twice, which does no harm"
CLEARED = (
    "a run that has ended meanwhile took this one for dead, and may have taken patients over; some may be done twice, "
    "which does no harm"
)
UNTOLD = "other runs cannot be told of what this one does ({error}); until they can, they may do the same patients"
NOT_SHARED = (
    "this store writes over what should be created only once (it ignores If-None-Match), so runs at the same time do "
    "not share the work: each does all of it"
)


class Sharing:
    """What this run does, and what it leaves to others. `note` is called with what the user should know.

    Make it before the records are listed: what other runs had done by then has its record in that listing. Call `begin`
    once there is something to do, and at last `close`; set `has_account` when the account of the run is written.
    """

    def __init__(self, target: str, run_id: str, account: Account, note: Callable[[str], None]) -> None:
        self._target, self._account, self._note = target, account, note
        self._others = Others(target, run_id)
        self._is_on: bool | None = None  # None until it begins
        self.has_account = False
        self._drawn: deque[Any] = deque()  # tasks that wait to be claimed
        self._reserve: deque[Any] = deque()  # claimed tasks that wait for a free slot
        self._left: list[Job] = []
        self._untold: list[RecordName] = []
        self._said: set[tuple[str, str]] = set()

    @property
    def has_met_others(self) -> bool:
        """Whether another run was under way at any time."""
        return self._others.has_met_any

    def meets_others(self) -> bool:
        """Look once more, and tell whether another run was under way at any time."""
        if self._is_on:
            with contextlib.suppress(InfrastructureError):
                self._others.look()
        return self.has_met_others

    def execute(
        self, client: Client | None, jobs: Iterator[Job], work: executor.Work[Job, Outcome]
    ) -> Generator[executor.Done[Job, Outcome]]:
        """Do the jobs that no other run does, and at the end those that another run did not come to do."""
        yield from executor.execute(client, jobs, work, self.take)
        while given_up := self._wait():
            yield from executor.execute(client, iter(given_up), work, self.take)

    def begin(self) -> None:
        """Let the other runs, and `status`, know of this one, if they do not yet."""
        if self._is_on is None:
            self._is_on = self._others.begin(lambda: self._account.n_new)

    def take(self, tasks: Iterator[T], n: int) -> list[T]:
        """Return `n` of the tasks, whose first part is a job, claimed by this run; fewer only if there are no more."""
        if not self._is_on:
            self._say(NOT_SHARED)
        self._look()
        while (n_missing := n - len(self._reserve)) > 0:
            batch = list(itertools.islice(self._free(tasks), self._size(n_missing)))
            if not batch:
                break
            if self._claim(batch):
                self._reserve += batch
            else:  # fewer may be enough beside another run, and some may be that run's
                self._drawn.extendleft(reversed(batch))
        self._tell_done()
        return [self._reserve.popleft() for _ in range(min(n, len(self._reserve)))]

    def finish(self, name: RecordName) -> None:
        """Note that a patient of this run has its record."""
        self._others.mine.discard(name.key)
        self._untold.append(name)

    def close(self) -> None:
        """Give back what is claimed; without an account of the run it stays, until others take it over."""
        if self.has_account:
            self._others.end(self._untold)
        else:
            self._others.leave()
        self._say_robbed()

    def _size(self, n_missing: int) -> int:
        seconds = BESIDE_S if self._others.live else ALONE_S
        return max(n_missing, min(MOST, int(seconds * self._account.pace.per_second[0])))

    def _free(self, tasks: Iterator[T]) -> Iterator[T]:
        """Yield the tasks that no other run does. The jobs of the others are left to them."""
        while task := self._drawn.popleft() if self._drawn else next(tasks, None):
            if self._is_free(task[0]):
                yield task
            else:
                self._left.append(task[0])
                self._account.left = len(self._left)

    def _is_free(self, job: Job) -> bool:
        key, others = job.case.key, self._others
        if key in others.mine:
            return True
        holder = others.held.get(key, "")
        if holder in others.live or (key in others.done and others.done[key].digest == job.case.digest):
            return False
        if others.is_lost(holder):
            self._say(TAKEN_OVER, holder)
        return True

    def _claim(self, batch: list[T]) -> bool:
        """Claim the tasks; return False if another run was faster. Those of a worker that died are claimed already."""
        keys = [key for task in batch if (key := task[0].case.key) not in self._others.mine]
        return not self._is_on or not keys or self._tell(keys)

    def _tell_done(self) -> None:
        """Tell the other runs, if there are any, what is done."""
        while self._is_on and self._others.live and self._untold and not self._tell([]):
            pass

    def _tell(self, keys: list[str]) -> bool:
        """Claim these keys and tell what is done; return False if another run was faster."""
        try:
            has_told = self._others.claim(keys, self._untold)
        except InfrastructureError as error:  # an outage may cost that a patient is done twice, but not the run
            self._others.mine.update(keys)
            self._say(UNTOLD, error=error)
            return True
        if has_told:
            self._untold.clear()
        return has_told

    def _look(self) -> None:
        try:
            self._others.look_now_and_then()
        except InfrastructureError as error:
            self._say(UNTOLD, error=error)
        if self._say_robbed():
            self._drawn.extendleft(reversed(self._reserve))  # some of them are that run's now
            self._reserve.clear()

    def _say_robbed(self) -> bool:
        """Say which runs took this one for dead; return whether there are any."""
        robbers = self._others.robbers()
        for run_id in robbers:
            self._say(ROBBED if run_id else CLEARED, run_id)
        return bool(robbers)

    def _wait(self) -> list[Job]:
        """Wait until what is left to other runs is done. Return the jobs that they gave up, none in the end."""
        given_up: list[Job] = []
        poll_s = FIRST_POLL_S
        while self._left and not given_up:
            self._tell_done()
            self._others.look()
            self._say_robbed()
            given_up = [job for job in self._left if self._is_free(job)]
            under_way = [holder for job in self._left if (holder := self._others.held.get(job.case.key))]
            if not given_up and not under_way:
                given_up = self._count_left()
            elif not given_up:
                self._say(WAITING, under_way[0], n=len(under_way))
                time.sleep(poll_s)
                poll_s = min(2 * poll_s, LAST_POLL_S)
        keys = {job.case.key for job in given_up}
        self._left = [job for job in self._left if job.case.key not in keys]
        self._account.left = len(self._left)
        return given_up

    def _count_left(self) -> list[Job]:
        """Count what other runs have done; return the jobs that have no record after all."""
        known = Listed(self._target).known
        lost = []
        for job in self._left:
            status, further = store.status_of(known.get(job.case.key), job.case.key, job.case.digest)
            if status:
                self._account.add_elsewhere(status, further)
            else:
                del self._others.done[job.case.key]
                lost.append(job)
        self._left = lost
        return lost

    def _say(self, what: str, run_id: str = "", **more: Any) -> None:
        """Say something, of another run or of all, once."""
        if (what, run_id) not in self._said:
            self._said.add((what, run_id))
            self._note(what.format(who=self._others.who(run_id), **more))
