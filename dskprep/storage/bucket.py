"""Reading and listing S3, many requests at once, with the credentials of an s3fs file system. The only user of obstore.

obstore costs a fraction of the CPU that s3fs costs (a third for a GET of 512 KiB, a fifteenth for a key in
a listing), and that CPU is the preprocessing's. Its synchronous calls release the GIL, so plain threads are
enough. The environment variable DSKPREP_S3_READER=s3fs makes s3fs do it instead, with the same results; it
does so anyway for keys that obstore cannot name (`a//b`).
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import fsspec.asyn
import obstore
from aiohttp import ClientPayloadError
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

T = TypeVar("T")

THREADS = 16
ATTEMPTS = 4
"""Tries of one object, beside obstore's own of one request: a body may break off."""

WAIT_S = 0.5
"""Before the second try; doubled before each further one."""

DEADLINE_S = 180.0
"""For the objects of one call together: after it no object is tried again."""

CONNECT_S, SILENCE_S, REQUEST_S, RETRY_S = 5.0, 20.0, 120.0, 60.0
"""Longest wait for a connection, for the next byte, for one whole object, and until the last retry of a request."""

CREDENTIALS_FOR = timedelta(minutes=5)
"""How long credentials are used before botocore, which renews them, is asked again."""

EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "InvalidToken"}
"""Codes, some with status 400, after which the same credentials cannot do."""

DENIED_TYPES = (PermissionDeniedError, UnauthenticatedError)
DENIED = re.compile(r"status code: 40[13]\b")


Get = Callable[[str, str], bytes]
"""One GET: the object of a key, if its ETag is the one given or none is given.

Raises FileNotFoundError if there is none such, PermissionError, or another OSError, after which it is tried again.
"""


class ObjectChanged(Exception):
    """An object is not the one that was listed."""


class OddKeys(Exception):
    """A listing holds keys that are no paths."""


class Listed(NamedTuple):
    """One object of a listing: its key, size in bytes, ETag, and when it was written (seconds since 1970)."""

    key: str
    size: int
    etag: str
    modified_s: float


def read_objects(fs: Any, bucket: str, objects: Sequence[tuple[str, int, str]]) -> Iterator[bytes]:
    """The content of objects given as (key, size, ETag), in that order.

    Raises ObjectChanged if one was replaced or removed since, PermissionError, or OSError if one
    cannot be read.
    """
    get = _engine(fs, bucket)
    deadline = time.monotonic() + DEADLINE_S
    with ThreadPoolExecutor(THREADS, thread_name_prefix="s3read") as threads:
        futures = [threads.submit(_read_listed, get, *o, deadline) for o in objects]
        try:
            for i, future in enumerate(futures):
                yield future.result()
                futures[i] = None  # type: ignore[call-overload]
        finally:
            threads.shutdown(cancel_futures=True)


def read_object(fs: Any, bucket: str, key: str) -> bytes:
    """One object, whatever its size and ETag. Raises FileNotFoundError, PermissionError, or OSError."""
    return _read(_engine(fs, bucket), key, None, "", time.monotonic() + DEADLINE_S)


def read_ranges(fs: Any, bucket: str, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of one object, each from its first byte to before its last; near ones in one request, several at once.

    Raises FileNotFoundError, PermissionError, or OSError.
    """
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if uses_obstore():
                parts = obstore.get_ranges(_store(fs, bucket), key, starts=starts, ends=ends)
            else:
                parts = fs.cat_ranges([f"{bucket}/{key}"] * len(ranges), starts, ends, on_error="raise")
        except (NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(f"{key}: {_in_short(error)}") from error
        except BaseError as error:
            problem = _as_os_error(error, key)
        except (ClientPayloadError, TimeoutError) as error:
            problem = OSError(f"{key}: {_in_short(error)}")
        else:
            found = [bytes(part) for part in parts]
            if [len(part) for part in found] == [end - start for start, end in ranges]:
                return found
            problem = OSError(f"{key}: is shorter than expected")
        if isinstance(problem, PermissionError) or attempt == ATTEMPTS:
            break
        time.sleep(WAIT_S * 2 ** (attempt - 1))
    raise problem


def _read_listed(get: Get, key: str, size: int, etag: str, deadline: float) -> bytes:
    try:
        return _read(get, key, size, etag, deadline)
    except FileNotFoundError as error:
        raise ObjectChanged(f"{key}: is not there any more as it was listed") from error


def _read(get: Get, key: str, size: int | None, etag: str, deadline: float) -> bytes:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            content = get(key, etag)
            if size is None or len(content) == size:
                return content
            problem = OSError(f"{key}: expected {size} bytes, received {len(content)}")
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            problem = error
        wait_s = WAIT_S * 2 ** (attempt - 1)
        if attempt == ATTEMPTS or time.monotonic() + wait_s > deadline:
            break
        time.sleep(wait_s)
    raise OSError(f"{key}: could not be read in {attempt} tries: {_in_short(problem)}") from problem


def _engine(fs: Any, bucket: str) -> Get:
    return _by_obstore(fs, bucket) if uses_obstore() else _by_s3fs(fs, bucket)


def _by_obstore(fs: Any, bucket: str) -> Get:
    store = _store(fs, bucket)

    def get(key: str, etag: str) -> bytes:
        try:
            return bytes(obstore.get(store, key, options={"if_match": f'"{etag}"'} if etag else None).bytes())
        except (NotFoundError, FileNotFoundError, PreconditionError) as error:  # obstore raises both of the first
            raise FileNotFoundError(f"{key}: {_in_short(error)}") from error
        except ValueError:  # a key that is no path
            return _by_s3fs(fs, bucket)(key, etag)
        except BaseError as error:
            raise _as_os_error(error, key) from error

    return get


def _by_s3fs(fs: Any, bucket: str) -> Get:
    async def whole(key: str, condition: dict[str, str]) -> bytes:
        client = await fs.set_session()
        answer = await client.get_object(Bucket=bucket, Key=key, **fs.req_kw, **condition)
        async with answer["Body"] as body:
            return await body.read()  # type: ignore[no-any-return]

    def get(key: str, etag: str) -> bytes:
        try:
            return bytes(fsspec.asyn.sync(fs.loop, whole, key, {"IfMatch": f'"{etag}"'} if etag else {}))
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            kind: type[OSError] = OSError
            if code in ("404", "412", "NoSuchKey", "PreconditionFailed"):
                kind = FileNotFoundError
            elif code in EXPIRED or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (401, 403):
                kind = PermissionError
            raise kind(f"{key}: {_in_short(error)}") from error
        except (BotoCoreError, ClientPayloadError) as error:
            raise OSError(f"{key}: {_in_short(error)}") from error

    return get


def list_folder(fs: Any, bucket: str, folder: str) -> tuple[list[str], list[Listed]]:
    """The folders and the objects directly in a folder ("" or a path), by their full keys, sorted.

    Raises OddKeys if obstore cannot name them, FileNotFoundError if there is no such bucket,
    PermissionError, or OSError.
    """

    def once() -> tuple[list[str], list[Listed]]:
        found = obstore.list_with_delimiter(_store(fs, bucket), folder or None)
        return sorted(found["common_prefixes"]), _listed(found["objects"], folder)

    return _tried(once, folder)


def list_below(fs: Any, bucket: str, folder: str, limit: int) -> list[Listed] | None:
    """The objects below a folder, sorted by key; None if there are more than `limit`. Raises as `list_folder`."""

    def once() -> list[Listed] | None:
        found: list[Listed] = []
        for page in obstore.list(_store(fs, bucket), folder, chunk_size=1000):
            found += _listed(page, folder)
            if len(found) > limit:
                return None
        return [o for o, after in itertools.zip_longest(found, found[1:]) if not _is_marker(fs, bucket, o, after)]

    return _tried(once, folder)


def uses_obstore() -> bool:
    return os.environ.get("DSKPREP_S3_READER") != "s3fs" and not _fork.lost_obstore


class _Fork:
    """What a fork does to S3: the threads of obstore and of s3fs do not come along.

    obstore, once used, hangs in a forked child, which therefore reads with s3fs. s3fs begins anew there by itself,
    but its old file systems would be closed by the wrong event loop: they are kept instead.
    """

    def __init__(self) -> None:
        self.uses_obstore = self.lost_obstore = False
        self._of_parents: list[Any] = []
        self._at_fork: list[Any] = []
        os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def _before(self) -> None:
        s3fs = sys.modules.get("s3fs.core")
        self._at_fork = list(s3fs.S3FileSystem._cache.values()) if s3fs else []

    def _in_parent(self) -> None:
        self._at_fork = []

    def _in_child(self) -> None:
        self.lost_obstore |= self.uses_obstore
        self._of_parents += self._at_fork
        self._at_fork = []


_fork = _Fork()


def _tried(once: Callable[[], T], folder: str) -> T:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return once()
        except InvalidPathError as error:
            raise OddKeys(f"{folder}: {_in_short(error)}") from error
        except BaseError as error:
            problem = _as_os_error(error, folder)
            if isinstance(problem, (FileNotFoundError, PermissionError)) or attempt == ATTEMPTS:
                raise problem from error
        time.sleep(WAIT_S * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returned or raised")


def _listed(objects: Iterable[Any], folder: str) -> list[Listed]:
    """Without the folder's own marker, an empty object that consoles make."""
    return [
        Listed(o["path"], o["size"], (o["e_tag"] or "").strip('"'), o["last_modified"].timestamp())
        for o in objects
        if o["path"] != folder
    ]


def _is_marker(fs: Any, bucket: str, listed: Listed, after: Listed | None) -> bool:
    """Whether this is the empty object `path/` that marks a folder; obstore drops the slash."""
    if listed.size:
        return False
    if after and after.key.startswith(f"{listed.key}/"):
        return True
    try:
        fs.call_s3("head_object", Bucket=bucket, Key=listed.key)
    except FileNotFoundError:
        return True
    return False


def _as_os_error(error: BaseError, where: str) -> OSError:
    """obstore's types say little of a failed listing; the status and the code in its text do."""
    kind: type[OSError] = OSError
    if isinstance(error, NotFoundError) or _code(error) == "NoSuchBucket":
        kind = FileNotFoundError
    elif isinstance(error, DENIED_TYPES) or _code(error) in EXPIRED or DENIED.search(str(error)):
        kind = PermissionError
    return kind(f"{where}: {_in_short(error)}" if where else _in_short(error))


def _store(fs: Any, bucket: str) -> S3Store:
    """The store of a bucket; kept on the file system whose credentials it uses, so both end together."""
    stores: dict[str, S3Store] = vars(fs).setdefault("_dskprep_stores", {})
    _fork.uses_obstore = True
    if bucket not in stores:
        meta = fs.s3.meta
        is_https = meta.endpoint_url.startswith("https://")
        stores[bucket] = S3Store(
            bucket,
            endpoint=meta.endpoint_url,
            region=meta.region_name,
            virtual_hosted_style_request=False,
            skip_signature=bool(fs.anon),
            request_payer="RequestPayer" in fs.req_kw,
            credential_provider=None if fs.anon else _credentials(fs),
            client_options={
                "allow_http": not is_https,
                "connect_timeout": timedelta(seconds=CONNECT_S),
                "read_timeout": timedelta(seconds=SILENCE_S),
                "timeout": timedelta(seconds=REQUEST_S),
            },
            retry_config={"max_retries": 6, "retry_timeout": timedelta(seconds=RETRY_S)},
        )
    return stores[bucket]


def _credentials(fs: Any) -> Callable[[], Any]:
    """What obstore calls when it needs credentials: those that s3fs would sign with now."""
    resolved = fsspec.asyn.sync(fs.loop, fs.session.get_credentials) if not fs.key else None

    def provide() -> dict[str, Any]:
        if resolved is None:
            key, secret, token = fs.key, fs.secret, fs.token
        else:
            frozen = fsspec.asyn.sync(fs.loop, resolved.get_frozen_credentials)
            key, secret, token = frozen.access_key, frozen.secret_key, frozen.token
        return {
            "access_key_id": key,
            "secret_access_key": secret,
            "token": token,
            "expires_at": datetime.now(UTC) + CREDENTIALS_FOR,
        }

    return provide


def _code(error: BaseException) -> str:
    """The error code that the server gave, if any."""
    found = re.search(r"<Code>([^<]*)</Code>", str(error))
    return found[1] if found else ""


def _in_short(error: BaseException) -> str:
    """What the server said, else the first line of the error."""
    text = str(error).strip()
    said = re.search(r"<Message>([^<]*)</Message>", text)
    return f"{_code(error)}: {said[1]}"[:200] if _code(error) and said else text.partition("\n")[0][:200]
