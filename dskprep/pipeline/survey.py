"""The series of a whole source, whose each is and how it fits the rules of `[select]`, in a temporary database.

Each series is listed first. Then one header is read of each of which neither a table nor an earlier run tells enough.
The database lies on disk, so memory stays flat however many series there are.
"""

from __future__ import annotations

import fnmatch
import json
import pickle
import sqlite3
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from dskprep import storage
from dskprep.dataset.identity import Identities
from dskprep.dataset.seen import Seen
from dskprep.dicom.description import Identity
from dskprep.errors import InfrastructureError, UsageError
from dskprep.pipeline import hashed_keys
from dskprep.selecting import SLICES, Chosen, Select, order_of
from dskprep.source import peek
from dskprep.source.case import Case
from dskprep.source.cases import MAX_OUTAGES
from dskprep.storage.threads import Threads

AT_ONCE = 16
"""Headers that are read at the same time."""
BLOCK = 512
"""Series that are in memory while their headers are read."""
DOLLARS_PER_GET = 0.4e-6
"""Price of a request to S3 Standard, us-east-1."""

PLAIN, UNREAD, WAITING, DUE, KNOWN, LOST = range(6)
"""What a series is: no choice; one whose header is to be read; one that waits; one that is chosen; one that an earlier
run refused; one that was chosen and refused."""

AND = "+"
"""Stands between the digests of a study and its patient."""

_TABLES = """
    PRAGMA journal_mode = OFF;
    CREATE TABLE series (
        n INTEGER PRIMARY KEY, key TEXT, digest TEXT, is_wanted INT, state INT, family TEXT, scores TEXT, tie TEXT,
        chosen BLOB, body BLOB
    );
    CREATE TABLE seen (key TEXT, digest TEXT, family TEXT, scores TEXT, tie TEXT, PRIMARY KEY (key, digest));
    CREATE TABLE older (name TEXT PRIMARY KEY, family TEXT);
"""


class Asked(NamedTuple):
    """Which cases of a source are asked for: those whose key matches `only`, and of these the first `limit`."""

    only: str | None = None
    limit: int | None = None


def marked(cases: Iterable[Case], only: str | None) -> Iterator[Case]:
    """Mark the cases that are asked for, by their keys: those may be hashed later."""
    for case in cases:
        yield replace(case, is_asked=only is None or fnmatch.fnmatchcase(case.key, only))


class Rival(NamedTuple):
    """One series of a family, which is a study or a patient."""

    n: int
    key: str
    digest: str
    is_wanted: bool
    state: int
    family: str
    scores: tuple[float, ...]
    uid_sha256: str

    @property
    def order(self) -> tuple[Any, ...]:
        """What the series of a family are sorted by."""
        return *order_of(self.scores, self.uid_sha256), self.key


def family_name(per: str, study: str | None, patient: str | None) -> str | None:
    """Return what a study of a patient, or a patient, is called: the digests of both, or of the patient."""
    if per == "patient":
        return patient
    return study and f"{study}{AND}{patient or ''}"


class Survey:
    """The series of one source. Make it, then `take` the cases, once."""

    def __init__(self, select: Select, min_slices: int, identities: Identities, note: Callable[[str], None]) -> None:
        self._select, self._min_slices, self._identities, self._note = select, min_slices, identities, note
        # a temporary file without a name, which is deleted with it, and needs no transactions
        self._tables = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._tables.executescript(_TABLES)
        weakref.finalize(self, self._tables.close)

    def take(self, cases: Iterable[Case], asked: Asked, seen: Iterable[Seen]) -> bool:
        """List all cases, and find out whose they are; `seen` is what an earlier run has read. Return if more was read.

        Raises UsageError if no case is asked for, InfrastructureError if they do not fit on the disk.
        """
        with _full_disk_named():
            n_wanted = 0
            for n, case in enumerate(cases):
                is_wanted = case.is_asked and (asked.limit is None or n_wanted < asked.limit)
                n_wanted += is_wanted
                self._add(n, case, is_wanted)
            if not n_wanted:
                raise UsageError(f"no patient matches {asked.only!r}")
            self._tables.execute("CREATE INDEX by_family ON series (family)")
            self._tables.execute("CREATE INDEX by_key ON series (key)")
            self._remember(seen)
            has_read = self._read_headers()
            for table in ("series", "seen"):  # UPDATE … FROM is not known to SQLite before 3.33
                newer = f"(SELECT older.family FROM older WHERE older.name = {table}.family)"
                self._tables.execute(
                    f"UPDATE {table} SET family = {newer} WHERE family IN (SELECT older.name FROM older)"
                )
            return has_read

    def families(self) -> Iterator[tuple[str, list[Rival]]]:
        """Yield the name of each family, and its series, the best first."""
        names = [
            name for (name,) in self._tables.execute("SELECT DISTINCT family FROM series WHERE family IS NOT NULL")
        ]
        for name in names:
            yield name, self.family(name)

    def family(self, name: str) -> list[Rival]:
        """Return the series of a family, the best first."""
        columns = "n, key, digest, is_wanted, state, family, scores, tie"
        rows = self._tables.execute(f"SELECT {columns} FROM series WHERE family = ?", [name])
        found = (Rival(*row) for row in rows)
        return sorted((r._replace(scores=tuple(json.loads(str(r.scores)))) for r in found), key=lambda r: r.order)

    def family_of(self, key: str, digest: str | None = None) -> str | None:
        """Return the family of a series that is chosen, with that input digest if it matters; None if it is no such."""
        chosen = f"SELECT family, digest FROM series WHERE key = ? AND state = {DUE} AND family IS NOT NULL"
        row = self._tables.execute(chosen, [key]).fetchone()
        return str(row[0]) if row and digest in (None, row[1]) else None

    def set(self, n: int, state: int, chosen: Chosen | None = None) -> None:
        """Say what has become of a series, and why it was chosen."""
        why = pickle.dumps(chosen) if chosen else None
        self._tables.execute("UPDATE series SET state = ?, chosen = ? WHERE n = ?", [state, why, n])

    def case(self, n: int) -> Case:
        """Return the case of a series, and why it was chosen."""
        return _case_of(*self._tables.execute("SELECT body, chosen FROM series WHERE n = ?", [n]).fetchone())

    def due(self) -> Iterator[Case]:
        """Yield what is asked for and no choice, or chosen, or was refused before, in the order of the listing."""
        states = f"state IN ({PLAIN}, {DUE}, {KNOWN}) AND is_wanted"
        for row in self._tables.execute(f"SELECT body, chosen FROM series WHERE {states} ORDER BY n"):
            yield _case_of(*row)

    def count(self, state: int) -> int:
        """Count the series in a state that are asked for."""
        n: int = self._tables.execute(f"SELECT count(*) FROM series WHERE state = {state} AND is_wanted").fetchone()[0]
        return n

    def older_names(self) -> Iterator[tuple[str, str]]:
        """Yield what older versions called families, if that differs, and what they are called."""
        yield from self._tables.execute("SELECT name, family FROM older")

    def seen(self) -> Iterator[Seen]:
        """Yield what headers have said, now or in earlier runs."""
        rows = self._tables.execute("SELECT key, digest, family, scores, tie FROM seen ORDER BY key, digest")
        for key, digest, family, scores, tie in rows:
            yield Seen(key, digest, family, json.loads(scores), tie)

    def _add(self, n: int, case: Case, is_wanted: bool) -> None:
        found, state = None, PLAIN
        if peek.may_be_one(case):
            found = peek.by_table(case)
            state = WAITING if found and peek.is_enough(case, self._select.columns) else UNREAD
        body = pickle.dumps(replace(case, header=()) if state == UNREAD else case.bare())
        self._tables.execute(
            "INSERT INTO series (n, key, digest, is_wanted, state, body) VALUES (?, ?, ?, ?, ?, ?)",
            [n, case.key, case.digest, is_wanted, state, body],
        )
        if found:
            self._place(n, state, found)

    def _place(self, n: int, state: int, found: peek.Peeked | None) -> None:
        """Note whose a series is, and how it fits; one without a header, too short or nobody's is no choice."""
        family = found and self._family_name(found.identity)
        if found is None or family is None or float(found.texts[SLICES]) < self._min_slices:
            self._note_family(n, PLAIN, None, None, None)
        else:
            scores = json.dumps(self._select.scores(found.texts))
            self._note_family(n, state, family, scores, found.uid_sha256)

    def _family_name(self, who: Identity) -> str | None:
        digest, per = self._identities.digest, self._select.per
        study = digest("study", who.study)
        of_issuer = family_name(per, study, digest("patient", who.patient, who.issuer) if who.patient else None)
        if per == "patient" or not (who.patient and who.issuer):
            return of_issuer
        # the issuer does not part a study (see `peek.group_of`), as it did in older versions
        name = family_name(per, study, digest("patient", who.patient, ""))
        if name:
            self._tables.execute("INSERT OR IGNORE INTO older VALUES (?, ?)", [of_issuer, name])
        return name

    def _note_family(self, n: int, state: int, family: str | None, scores: str | None, tie: str | None) -> None:
        self._tables.execute(  # a table that says whose a series is, is believed
            "UPDATE series SET state = ?, family = iif(?2 IS NULL, NULL, coalesce(family, ?2)), scores = ?, tie = ? "
            "WHERE n = ?",
            [state, family, scores, tie, n],
        )

    def _remember(self, seen: Iterable[Seen]) -> None:
        """Place the series whose headers an earlier run has read; and those that are alone in a table."""
        for one in seen:
            is_of_these_rules = one.family is None or len(one.scores) == len(self._select.prefer)
            if is_of_these_rules and (self._select.per == "patient" or AND in (one.family or AND)):
                self._keep(one)  # older versions noted no patient beside a study
        self._tables.execute(
            f"UPDATE series SET state = iif(seen.family IS NULL, {PLAIN}, {WAITING}), family = seen.family, "
            "scores = seen.scores, tie = seen.tie FROM seen "
            f"WHERE series.key = seen.key AND series.digest = seen.digest AND series.state = {UNREAD}"
        )
        self._tables.execute(
            f"UPDATE series SET state = {WAITING} WHERE state = {UNREAD} AND family IN "
            "(SELECT family FROM series WHERE family IS NOT NULL GROUP BY family HAVING count(*) = 1)"
        )

    def _keep(self, one: Seen) -> None:
        row = [*one[:3], json.dumps(one.scores), one.uid_sha256]
        self._tables.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", row)

    def _read_headers(self) -> bool:
        """Read the headers that are missing; return whether there are any."""
        n_unread = self._tables.execute(f"SELECT count(*) FROM series WHERE state = {UNREAD}").fetchone()[0]
        if not n_unread:
            return False
        first = _case_of(*self._tables.execute(f"SELECT body FROM series WHERE state = {UNREAD} LIMIT 1").fetchone())
        cost = f": {n_unread} requests, ${n_unread * DOLLARS_PER_GET:.2f} on S3" if storage.is_bucket(first.url) else ""
        self._note(f"[select] reads one header of each of {n_unread} series before any is prepared{cost}")
        n_lost = n_in_a_row = 0
        rows = self._tables.execute(f"SELECT n, body FROM series WHERE state = {UNREAD} ORDER BY n")
        with Threads(AT_ONCE, "survey") as threads, warnings.catch_warnings(action="ignore"):
            while block := rows.fetchmany(BLOCK):
                cases = [_case_of(body) for _, body in block]
                for (n, _), case, found in zip(block, cases, threads.map(_peek, cases), strict=True):
                    self._tables.execute("UPDATE series SET body = ? WHERE n = ?", [pickle.dumps(case.bare()), n])
                    is_lost = isinstance(found, InfrastructureError)
                    n_lost, n_in_a_row = n_lost + is_lost, n_in_a_row + 1 if is_lost else 0
                    if isinstance(found, InfrastructureError):
                        self._place(n, WAITING, None)
                        said = (
                            hashed_keys.without_names(found, "its header cannot be read") if case.is_hashed else found
                        )
                        example = f"{case.key}: {said}"
                        if n_in_a_row == MAX_OUTAGES:
                            raise said from None
                        continue
                    self._place(n, WAITING, found)
                    family, scores, tie = self._tables.execute(
                        "SELECT family, scores, tie FROM series WHERE n = ?", [n]
                    ).fetchone()
                    self._keep(Seen(case.key, case.digest, family, json.loads(scores or "[]"), tie))
        if n_lost:
            self._note(
                f"[select] {n_lost} headers cannot be read, such as that of {example}; these series are prepared as if "
                "they had no rivals"
            )
        return True


def _peek(case: Case) -> peek.Peeked | InfrastructureError | None:
    try:
        return peek.by_header(case)
    except InfrastructureError as error:  # a file that may not be read costs its own series
        return error


def _case_of(body: bytes, chosen: bytes | None = None) -> Case:
    case: Case = pickle.loads(body)
    return replace(case, chosen=pickle.loads(chosen)) if chosen else case


@contextmanager
def _full_disk_named() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise InfrastructureError(
            f"the list of series does not fit into the temporary folder ({error}); make room there, or set TMPDIR to "
            "another folder"
        ) from error
