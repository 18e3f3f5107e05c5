"""Whole S3 objects, many at once, with the credentials of an s3fs file system. The only user of obstore.

A GET of 512 KiB costs obstore a seventh of the CPU that it costs s3fs, and that CPU is the
preprocessing's. Its synchronous calls release the GIL, so plain threads are enough. The environment
variable DSKPREP_S3_READER=s3fs makes s3fs read instead, with the same results.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec.asyn
import obstore
from aiohttp import ClientPayloadError
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

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


Get = Callable[[str, str], bytes]
"""One GET: the object of a key, if its ETag is the one given or none is given.

Raises FileNotFoundError if there is none such, PermissionError, or another OSError, after which it is tried again.
"""


class ObjectChanged(Exception):
    """An object is not the one that was listed."""


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
    return _by_s3fs(fs, bucket) if os.environ.get("DSKPREP_S3_READER") == "s3fs" else _by_obstore(fs, bucket)


def _by_obstore(fs: Any, bucket: str) -> Get:
    store = _store(fs, bucket)

    def get(key: str, etag: str) -> bytes:
        try:
            return bytes(obstore.get(store, key, options={"if_match": f'"{etag}"'} if etag else None).bytes())
        except (NotFoundError, FileNotFoundError, PreconditionError) as error:  # obstore raises both of the first
            raise FileNotFoundError(f"{key}: {_in_short(error)}") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise PermissionError(f"{key}: {_in_short(error)}") from error
        except BaseError as error:
            kind = PermissionError if _code(error) in EXPIRED else OSError
            raise kind(f"{key}: {_in_short(error)}") from error

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


def _store(fs: Any, bucket: str) -> S3Store:
    """The store of a bucket; kept on the file system whose credentials it uses, so both end together."""
    stores: dict[str, S3Store] = vars(fs).setdefault("_dskprep_stores", {})
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
