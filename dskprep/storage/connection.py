"""How obstore reaches a bucket: credentials, time limits, retries, errors, and what a fork breaks."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import fsspec.asyn
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as EndpointError
from obstore import exceptions
from obstore.store import S3Store

T = TypeVar("T")

ATTEMPTS = 4
"""Tries per request, on top of obstore's own: a body may break off, which obstore does not retry."""
WAIT_S = 0.5
"""Wait before the second try, in seconds; doubled before each further one."""
DEADLINE_S = 180.0
"""Seconds from the start of a call after which none of its requests is tried again."""
CONNECT_S, SILENCE_S, REQUEST_S, RETRY_S = 5.0, 20.0, 120.0, 60.0
"""obstore's limits in seconds: to connect, between two bytes, for a whole object, and until the last retry."""
CREDENTIALS_FOR = timedelta(minutes=5)
"""How long credentials are used before botocore, which renews them, is asked again."""

GONE_TYPES = (FileNotFoundError, exceptions.NotFoundError, exceptions.PreconditionError)
"""What obstore raises for an object that does not exist, or not with the ETag asked for."""
DENIED_TYPES = (PermissionError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
"""What obstore and s3fs raise where the credentials do not suffice."""
GONE = {"NoSuchBucket", "NoSuchKey", "404", "PreconditionFailed", "412"}
"""S3's codes for the same; some servers send the status alone."""
EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "InvalidToken"}
"""S3's codes, some with status 400, for credentials that will not be accepted again."""
RETRIED = (exceptions.BaseError, ClientError, EndpointError, HTTPClientError, ClientPayloadError, OSError)
"""What obstore, botocore and aiohttp raise for a failed request; not botocore's errors about missing credentials."""


class _Forked(Exception):
    """This process was forked from one that had used obstore."""


NOT_BY_OBSTORE = (_Forked, exceptions.InvalidPathError, ValueError)
"""After one of these, s3fs does it. obstore raises the last two for keys that are no paths: in a listing, in a read."""


def retry(request: Callable[[], T], where: str, deadline: float | None = None) -> T:
    """Repeat a request until it succeeds, at most ATTEMPTS times, and not after the deadline (by `time.monotonic`).

    Raises FileNotFoundError or PermissionError at once, and another OSError after the last try. NOT_BY_OBSTORE passes.
    """
    deadline = deadline or time.monotonic() + DEADLINE_S
    attempt, wait_s = 1, WAIT_S
    while True:
        try:
            return request()
        except NOT_BY_OBSTORE:
            raise
        except RETRIED as error:
            problem = _as_os_error(error)
            if isinstance(problem, (FileNotFoundError, PermissionError)):
                raise type(problem)(f"{where}: {problem}") from error
            if attempt == ATTEMPTS or time.monotonic() + wait_s > deadline:
                raise OSError(f"{where}: could not be read in {attempt} tries: {problem}") from error
        time.sleep(wait_s)
        attempt, wait_s = attempt + 1, 2 * wait_s


def _as_os_error(error: Exception) -> OSError:
    """Convert to a FileNotFoundError, a PermissionError, or another OSError, with what the server said.

    obstore's types say little about a failed listing, but its text holds the status and S3's code.
    """
    text = str(error).strip()
    if isinstance(error, ClientError):
        status = str(error.response["ResponseMetadata"]["HTTPStatusCode"])
        code, said = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    else:
        found = [re.search(pattern, text) for pattern in (r"status code: (\d+)", "<Code>([^<]*)", "<Message>([^<]*)")]
        status, code, said = (match[1] if match else "" for match in found)
    kind: type[OSError] = OSError
    if isinstance(error, GONE_TYPES) or code in GONE:
        kind = FileNotFoundError
    elif isinstance(error, DENIED_TYPES) or code in EXPIRED or status in ("401", "403"):
        kind = PermissionError
    return kind((f"{code}: {said}" if code and said else text.partition("\n")[0])[:200])


def store(fs: Any, bucket: str) -> S3Store:
    """Return obstore's store of a bucket; it is kept on the file system whose credentials it uses, to end with it."""
    if fork.is_obstore_lost:
        raise _Forked
    fork.is_obstore_used = True
    stores: dict[str, S3Store] = vars(fs).setdefault("_dskprep_stores", {})
    if bucket not in stores:
        meta = fs.s3.meta
        stores[bucket] = S3Store(
            bucket,
            endpoint=meta.endpoint_url,
            region=meta.region_name,
            virtual_hosted_style_request=False,
            skip_signature=bool(fs.anon),
            request_payer="RequestPayer" in fs.req_kw,
            credential_provider=None if fs.anon else _credentials(fs),
            client_options={
                "allow_http": not meta.endpoint_url.startswith("https://"),
                "connect_timeout": timedelta(seconds=CONNECT_S),
                "read_timeout": timedelta(seconds=SILENCE_S),
                "timeout": timedelta(seconds=REQUEST_S),
            },
            retry_config={"max_retries": 6, "retry_timeout": timedelta(seconds=RETRY_S)},
        )
    return stores[bucket]


def _credentials(fs: Any) -> Callable[[], Any]:
    """Make the function by which obstore asks for credentials: it returns those that s3fs would sign with now."""
    resolved = fsspec.asyn.sync(fs.loop, fs.session.get_credentials) if not fs.key else None

    def provide() -> dict[str, Any]:
        now = fsspec.asyn.sync(fs.loop, resolved.get_frozen_credentials) if resolved else (fs.key, fs.secret, fs.token)
        expires_at = datetime.now(UTC) + CREDENTIALS_FOR
        return {"access_key_id": now[0], "secret_access_key": now[1], "token": now[2], "expires_at": expires_at}

    return provide


class _Fork:
    """What a process that was forked cannot use of its parent's: obstore, and the file systems of s3fs.

    fsspec drops the latter in the child, where an event loop that is not theirs would close their sessions, and
    complain. So they are kept.
    """

    def __init__(self) -> None:
        self.is_obstore_used = self.is_obstore_lost = False
        self._kept: dict[int, Any] = {}
        os.register_at_fork(before=self._keep_file_systems, after_in_child=self._lose_obstore)

    def _keep_file_systems(self) -> None:
        if s3fs := sys.modules.get("s3fs.core"):
            self._kept |= {id(fs): fs for fs in s3fs.S3FileSystem._cache.values()}

    def _lose_obstore(self) -> None:
        self.is_obstore_lost |= self.is_obstore_used


fork = _Fork()
