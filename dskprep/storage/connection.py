"""How a process reaches buckets: what is common to all stores, and S3 with s3fs, obstore and renewed credentials.

Before a bucket is used for the first time one request is sent to it, within short limits. So an endpoint that does not
answer is one line soon. On S3, s3fs finds the settings and credentials, as the AWS tools do, and obstore takes over
what it found. The first request shows where the bucket lies: botocore has followed the way to another region, and
obstore goes straight there. Containers of Azure are in `azure`.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ParamValidationError
from obstore import exceptions

from dskprep.storage import answers, clients
from dskprep.storage.answers import FAILURES, Hopeless, Unanswered
from dskprep.storage.clients import Place
from dskprep.storage.local import OneFile
from dskprep.storage.public import PublicStore
from dskprep.storage.s3_settings import fingerprint

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

THREADS = 16
"""Requests under way at once per call."""
ATTEMPTS = 4
"""Tries per read or listing, on top of obstore's own: a body may break off, which obstore does not retry."""
WAIT_S = 0.5
"""Wait before the second try, in seconds; doubled before each further one."""
DEADLINE_S = 180.0
"""Seconds from the start of a call after which none of its requests is tried again."""
REMEMBERED_S = 10.0
"""Seconds for which a bucket that did not answer at first contact is not asked again."""
RENEWAL_WAITS_S = (0.0, 1.0, 2.0, 4.0)
"""Waits before each look for new credentials once those that had worked are refused: who renews them may be late."""
MAX_RENEWALS = 3
"""Most times that one request is sent again with other credentials."""


class _Forked(Exception):
    """This process was forked from one that had used obstore."""


NOT_BY_OBSTORE = (_Forked, exceptions.InvalidPathError, ValueError)
"""After one of these, `Connection.fs` does it. obstore raises the last two for keys that are no paths: in a listing, in
a read."""


class Connection:
    """The stores of one kind, under one set of settings. Threads may share it; a fork may not.

    A kind of store says how to make contact, open a store and list one object, and what does the rest: `fs`.
    """

    is_public = False
    """Whether its buckets are public ones: then other settings hold."""

    def __init__(self) -> None:
        self._stores: dict[str, ObjectStore] = {}
        self._places: dict[str, Place] = {}
        self._failures: dict[str, tuple[float, OSError]] = {}
        self._n_renewals = 0
        self._has_answered = self._has_worked = False
        self._refused_s = 0.0
        self._meeting, self._renewing = threading.Lock(), threading.Lock()

    def _first_contact(self, bucket: str) -> Place:
        """Ask a bucket for anything, within half a minute. Raises OSError if nothing is answered."""
        raise NotImplementedError

    def _open(self, bucket: str, place: Place) -> ObjectStore:
        """Open obstore's store of a bucket."""
        raise NotImplementedError

    @property
    def fs(self) -> Any:
        """What does the requests that obstore cannot: s3fs. Raises Hopeless where there is nothing like it."""
        raise NotImplementedError

    def has_any(self, bucket: str, prefix: str) -> bool:
        """Tell whether any key of a bucket begins so. Raises FileNotFoundError if there is no such bucket."""
        raise NotImplementedError

    def has_object(self, bucket: str, key: str) -> bool:
        """Tell whether there is an object of this very key."""
        raise NotImplementedError

    def _renew(self, _n_renewals: int, _since_s: float, *, is_awaited: bool) -> bool:  # noqa: ARG002
        """Look the credentials up again after a refusal; tell if they changed. No kind but S3 needs it."""
        return False

    def read(self, request: Callable[[], T], where: str, deadline: float | None = None) -> T:
        """Send a request until it succeeds, at most ATTEMPTS times, and not after the deadline (by `time.monotonic`).

        Raises FileNotFoundError, PermissionError, OneFile or Hopeless at once, and another OSError after the last try.
        NOT_BY_OBSTORE passes.
        """
        deadline = deadline or time.monotonic() + DEADLINE_S
        attempt, wait_s = 1, WAIT_S
        while True:
            try:
                return self.send(request)
            except (FileNotFoundError, PermissionError, OneFile, Hopeless) as error:
                raise type(error)(f"{where}: {error}") from error
            except OSError as error:
                if attempt == ATTEMPTS or time.monotonic() + wait_s > deadline:
                    raise type(error)(f"{where}: could not be read in {attempt} tries: {error}") from error
            time.sleep(wait_s)
            attempt, wait_s = attempt + 1, 2 * wait_s

    def send(self, request: Callable[[], T]) -> T:
        """Send a request, and again with new credentials if it is refused and there are some.

        Raises what `answers.to_os_error` makes of a failure, or FileExistsError. NOT_BY_OBSTORE passes.
        """
        for is_last in [False] * MAX_RENEWALS + [True]:
            n_renewals, started = self._n_renewals, time.monotonic()
            try:
                found = request()
            except (*NOT_BY_OBSTORE, FileExistsError):
                raise
            except FAILURES as error:
                failure = error
            else:
                self._has_worked = True
                return found
            problem = answers.to_os_error(failure, is_public=self.is_public)
            if isinstance(problem, Unanswered):
                self._places.clear()  # the next request makes contact first, within short limits
            elif isinstance(problem, PermissionError) and not is_last:
                is_stale = answers.answer_to(failure).code in answers.STALE
                if self._renew(n_renewals, started, is_awaited=is_stale and self._has_worked):
                    continue
            raise problem  # not from the failure, which may repeat all that was sent
        raise AssertionError("unreachable")

    def call(self, method: str, **request: Any) -> Any:
        """Send a request of botocore's, by s3fs."""
        return self.send(lambda: self.fs.call_s3(method, **request))

    def by_head(self, bucket: str, key: str, question: Callable[[], T]) -> T:
        """Send a question that is a HEAD. Answers to that have no text, so a listing is asked why it was refused.

        The listing raises it, or the credentials are renewed for it, and the question is put again.
        """
        try:
            return self.send(question)
        except (PermissionError, Hopeless):
            self.has_any(bucket, key)
            return self.send(question)

    def meet(self, bucket: str) -> Place:
        """Return where a bucket lies; the first time by a request that has to be answered soon."""
        with self._meeting:
            place = self._places.get(bucket)
            if place is None:
                place = self._places[bucket] = self._contact(bucket)
            return place

    def _contact(self, bucket: str) -> Place:
        whose = bucket if self._has_answered else ""  # an endpoint that never answered is silent for all buckets
        failed_s, failure = self._failures.get(whose, (-math.inf, OSError()))
        if time.monotonic() < failed_s + REMEMBERED_S:
            raise type(failure)(str(failure))
        try:
            place = self._first_contact(bucket)
        except OSError as error:
            if not isinstance(error.__cause__, ParamValidationError):  # then nobody was asked: the name is impossible
                self._failures[whose] = (time.monotonic(), error)
            raise
        self._has_answered = True
        return place

    def store(self, bucket: str) -> ObjectStore:
        """Return obstore's store of a bucket."""
        if fork.is_obstore_lost:
            raise _Forked
        fork.is_obstore_used = True
        stores, place = self._stores, self.meet(bucket)
        if bucket not in stores:
            stores[bucket] = self._open(bucket, place)
        return stores[bucket]


class S3Connection(Connection):
    """s3fs, and obstore's stores with the credentials that s3fs found."""

    def __init__(self, public: PublicStore | None = None) -> None:
        super().__init__()
        self._public, self.is_public = public, public is not None
        self._fs = clients.open_s3fs(public=public)
        self._past: list[Any] = []  # threads may still use them

    @property
    def fs(self) -> Any:
        return self._fs

    def _first_contact(self, bucket: str) -> Place:
        return clients.first_contact(bucket, public=self._public)

    def _open(self, bucket: str, place: Place) -> ObjectStore:
        return clients.open_obstore(self.fs, bucket, place)

    def has_any(self, bucket: str, prefix: str) -> bool:
        return bool(self.call("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents"))

    def has_object(self, bucket: str, key: str) -> bool:
        try:
            self.by_head(bucket, key, lambda: self.fs.call_s3("head_object", Bucket=bucket, Key=key))
        except FileNotFoundError:
            return False
        return True

    def _renew(self, n_renewals: int, since_s: float, *, is_awaited: bool) -> bool:
        """Look the credentials up again after a request that began at `since_s` was refused; tell if they changed.

        With `is_awaited` they may change soon, unless they are given to this process.
        """
        if self._public:
            return False
        with self._renewing:
            if self._n_renewals != n_renewals:
                return True  # by another thread
            if self._refused_s > since_s:
                return False  # another thread has just looked in vain
            with contextlib.suppress(OSError, BotoCoreError):
                used = clients.credentials_of(self.fs)
                is_given = used.method in ("", "env")
                for wait_s in RENEWAL_WAITS_S if is_awaited and not is_given else (0.0,):
                    time.sleep(wait_s)
                    fs = clients.open_s3fs()
                    if clients.credentials_of(fs) != used:
                        self._past.append(self._fs)
                        self._fs, self._stores = fs, {}
                        self._n_renewals += 1
                        return True
                    clients.close(fs)
            self._refused_s = time.monotonic()
            self._has_worked = self._has_worked and not is_awaited  # nobody waits for them once more
            return False


def connect(public: PublicStore | None = None) -> Connection:
    """Return this process's connection to S3 under its settings of now. Each public store has one of its own."""
    return connected((fingerprint(), public), lambda: S3Connection(public))


def connected(settings: Hashable, open_it: Callable[[], Connection]) -> Connection:
    """Return this process's connection under these settings; it is opened once, and again if they change."""
    with fork.lock:
        if settings not in fork.connections:
            fork.connections[settings] = open_it()
        return fork.connections[settings]


class _Fork:
    """What a process that was forked cannot use of its parent's: obstore, and the connections.

    s3fs would close the sessions in the child, by an event loop that is not theirs, and complain. So they are kept.
    """

    def __init__(self) -> None:
        self.is_obstore_used = self.is_obstore_lost = False
        self.connections: dict[Hashable, Connection] = {}
        self.lock = threading.Lock()
        self._kept: list[Connection] = []
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self.is_obstore_lost |= self.is_obstore_used
        self._kept += self.connections.values()
        self.connections, self.lock = {}, threading.Lock()


fork = _Fork()
