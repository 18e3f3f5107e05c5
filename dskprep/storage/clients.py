"""The clients of S3: s3fs, which finds settings and credentials as the AWS tools do, and obstore with what it found."""

from __future__ import annotations

import copy
import functools
import os
import re
import ssl
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import fsspec.asyn
from aiobotocore.session import AioSession
from botocore.loaders import create_loader
from fsspec.exceptions import FSTimeoutError
from obstore.store import S3Store

from dskprep import redaction
from dskprep.plain import in_one_line
from dskprep.storage import answers, credential_program, s3_pages
from dskprep.storage.answers import FAILURES, Hopeless, Unanswered
from dskprep.storage.public import PublicStore
from dskprep.storage.s3_settings import s3_settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig

CONNECT_S, SILENCE_S, REQUEST_S, RETRY_S = 5.0, 20.0, 120.0, 60.0
"""obstore's limits in seconds: to connect, between two bytes, for a whole object, and until the last retry."""
S3FS_ROUNDS = 3
"""Tries of s3fs around botocore's own. The waits of both multiply, so there are fewer than s3fs's default of 5."""
CONTACT_LIMITS = {"connect_timeout": 5, "read_timeout": 5, "retries": {"total_max_attempts": 3, "mode": "standard"}}
"""Of the first request to a bucket, times in seconds: it has failed after 18."""
CONTACT_S = 25.0
"""Longest wait for its whole answer, in seconds; each of the limits above begins anew with every byte."""
CREDENTIALS_FOR = timedelta(minutes=5)
"""How long obstore uses credentials before it asks botocore, which renews them, for those of now."""


@dataclass(frozen=True)
class Place:
    """Where the requests for a bucket go."""

    endpoint: str
    region: str
    is_virtual: bool
    """Whether the host's name holds that of the bucket, which then is not in the path."""


@dataclass(frozen=True)
class Credentials:
    """What requests are signed with; `method` is botocore's word for where it was found, "" in the settings of s3fs."""

    access_key: str
    secret_key: str
    token: str | None
    method: str

    def __repr__(self) -> str:
        return f"Credentials(method={self.method!r})"  # no traceback shows a secret


def open_s3fs(limits: dict[str, Any] | None = None, *, public: PublicStore | None = None) -> Any:
    """Open a file system of s3fs under the settings and credentials of this process as they are now.

    A public store is opened without credentials, at its own endpoint.

    Raises Hopeless if a setting is wrong or names what is not there.
    """
    from s3fs.core import set_custom_error_handler  # slow to import, and not needed for folders

    advice_for = functools.partial(answers.advice_for, is_public=public is not None)
    try:
        settings = s3_settings(public)
        settings["config_kwargs"] |= copy.deepcopy(limits or {})
        fs = fsspec.filesystem("s3", **settings)
        fs.retries = 1 if limits else S3FS_ROUNDS
        fs.session = _session_of(fs)
        fs.connect()
    except Exception as error:  # a wrong setting may raise whatever it likes
        said = in_one_line(error) or type(error).__name__
        raise Hopeless(f"{said}; {advice_for(said)}") from error
    if not re.match(r"https?://[^/]", endpoint := fs.s3.meta.endpoint_url):
        raise Hopeless(f"Invalid endpoint: {endpoint}; {advice_for('Invalid endpoint')}")
    _trust(fs)
    s3_pages.look_at_listings(fs.s3, advice_for(""))
    fs.s3.meta.events.register("before-send.s3", _withhold)
    set_custom_error_handler(_is_throttled)
    return fs


def _session_of(fs: Any) -> AioSession:
    """Open the session that s3fs would open, with a limit for programs that give credentials.

    Sessions share what they read of botocore's models, most of the CPU time of a new client.
    """
    session = AioSession(**fs.kwargs)
    session.register_component("data_loader", _models(session.get_config_variable("data_path")))
    for profile in session.full_config["profiles"].values():
        if program := profile.get("credential_process"):
            profile["credential_process"] = credential_program.within_limit(program)
    return session


@functools.cache
def _models(folders: str | None) -> Any:
    """Return what reads the models of services, each file once; `folders` are those of AWS_DATA_PATH."""
    return create_loader(folders)


def close(fs: Any) -> None:
    """Close a file system of s3fs; the garbage collector might do so in a forked child, which would complain."""
    fsspec.asyn.sync(fs.loop, fs.s3.close)


def _withhold(request: Any, **_: Any) -> None:
    """Let nothing repeat what a request of botocore's is signed with, whatever answers it."""
    signed = re.search(r"Credential=([^/,\s]+)", str(request.headers.get("Authorization", "")))
    token = request.headers.get("X-Amz-Security-Token")
    redaction.withhold(token.decode() if isinstance(token, bytes) else token, key_id=signed and signed[1])


def _is_throttled(error: Exception) -> bool:
    """Tell s3fs to retry what it does not know to be a request to slow down."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    return code in ("429", "TooManyRequests", "Throttling", "ThrottlingException", "RequestLimitExceeded")


def first_contact(bucket: str, *, public: PublicStore | None = None) -> Place:
    """Ask a bucket for its first object, within CONTACT_LIMITS and CONTACT_S; return where the request went in the end.

    Whatever is answered will do, but for what cannot be a listing. Raises Unanswered if nothing is answered, Hopeless
    if no request can be sent, or no listing can be believed.
    """
    fs = open_s3fs(CONTACT_LIMITS, public=public)
    sent: list[Any] = []
    fs.s3.meta.events.register("before-send.s3.ListObjectsV2", lambda request, **_: sent.append(request))
    try:
        fsspec.asyn.sync(fs.loop, fs._call_s3, "list_objects_v2", Bucket=bucket, MaxKeys=1, timeout=CONTACT_S)
    except FSTimeoutError as error:
        said = f"no whole answer came from {fs.s3.meta.endpoint_url} within {CONTACT_S:g} s"
        raise Unanswered(f"{said}; {answers.advice_for(said, is_public=public is not None)}") from error
    except FAILURES as error:
        if not answers.answer_to(error).status:
            raise answers.to_os_error(error, is_public=public is not None) from error
    finally:
        close(fs)
    return _place_of(sent[-1], bucket, fs.s3.meta.region_name)


def _place_of(request: Any, bucket: str, region: str) -> Place:
    """Return where a listing of a bucket was sent; `region` is the one to take if the request is not signed."""
    url = urllib.parse.urlsplit(request.url)
    signed = str(request.headers.get("Authorization", ""))
    if found := re.search(r"Credential=[^/]+/\d+/([^/]+)/s3/", signed.removeprefix("b'")):
        region = found[1]
    above, name = url.path.rstrip("/").rsplit("/", 1) if "/" in url.path.rstrip("/") else ("", "")
    is_virtual = urllib.parse.unquote(name) != bucket
    return Place(f"{url.scheme}://{url.netloc}{url.path.rstrip('/') if is_virtual else above}", region, is_virtual)


def open_obstore(fs: Any, bucket: str, place: Place) -> S3Store:
    """Open obstore's store of a bucket, with the credentials and the certificates of s3fs."""
    options: ClientConfig = {
        "allow_http": place.endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=SILENCE_S),
        "timeout": timedelta(seconds=REQUEST_S),
        **_trust(fs),
        **_proxy(fs),
    }
    return S3Store(
        bucket,
        aws_endpoint_url_s3=place.endpoint,
        region=place.region,
        virtual_hosted_style_request=place.is_virtual,
        skip_signature=bool(fs.anon),
        request_payer="RequestPayer" in fs.req_kw | fs.s3_additional_kwargs,
        credential_provider=None if fs.anon else _provider(fs),
        client_options=options,
        retry_config={"max_retries": 6, "retry_timeout": timedelta(seconds=RETRY_S)},
    )


def credentials_of(fs: Any) -> Credentials:
    """Return what s3fs signs with now; botocore renews it where it knows when that expires."""
    key, secret, token = _given(fs)
    if key:
        redaction.withhold(secret, token, key_id=key)
        return Credentials(key, secret, token, "")
    found = fsspec.asyn.sync(fs.loop, fs.session.get_credentials)
    if found is None:
        raise Hopeless(f"Unable to locate credentials; {answers.advice_for('No credentials')}")
    now = fsspec.asyn.sync(fs.loop, found.get_frozen_credentials)
    redaction.withhold(now.secret_key, now.token, key_id=now.access_key)
    return Credentials(now.access_key, now.secret_key, now.token, found.method)


def _given(fs: Any) -> tuple[Any, Any, Any]:
    """Return key, secret and token out of the settings of s3fs, which do not change."""
    options = fs.client_kwargs
    return (
        fs.key or options.get("aws_access_key_id"),
        fs.secret or options.get("aws_secret_access_key"),
        fs.token or options.get("aws_session_token"),
    )


def _provider(fs: Any) -> Callable[[], Any]:
    """Make the function by which obstore asks for credentials: it returns those that s3fs would sign with now."""

    def provide() -> dict[str, Any]:
        now = credentials_of(fs)
        expires_at = datetime.now(UTC) + CREDENTIALS_FOR
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": expires_at,
        }

    return provide


def _trust(fs: Any) -> ClientConfig:
    """Return the options of obstore for the certificates that s3fs trusts.

    Raises Hopeless if they cannot be read, which botocore does for http:// too.
    """
    named = {
        "verify in FSSPEC_S3": fs.client_kwargs.get("verify"),
        "AWS_CA_BUNDLE": os.environ.get("AWS_CA_BUNDLE"),
        "ca_bundle in the profile": fs.session.get_config_variable("ca_bundle"),
        "REQUESTS_CA_BUNDLE": os.environ.get("REQUESTS_CA_BUNDLE"),
    }
    where, bundle = next(((name, value) for name, value in named.items() if value is not None), ("", True))
    if bundle is False:
        return {"allow_invalid_certificates": True}
    if bundle is True:
        return {}
    try:
        ssl.create_default_context(cafile=bundle)
        content = Path(bundle).read_bytes()
    except OSError as error:
        raise Hopeless(
            f"{where}: expected a file of certificates in PEM, found {bundle or 'nothing'} "
            f"({error.strerror or error}); correct it, or unset it"
        ) from error
    return {} if fs.s3.meta.endpoint_url.startswith("http://") else {"root_certificate": content}


def _proxy(fs: Any) -> ClientConfig:
    """Return the options of obstore for a proxy in the settings of s3fs; those in the environment both find."""
    config = fs.s3.meta.config
    proxy = (config.proxies or {}).get(urllib.parse.urlsplit(fs.s3.meta.endpoint_url).scheme)
    bundle = (config.proxies_config or {}).get("proxy_ca_bundle")
    if not proxy:
        return {}
    return {"proxy_url": proxy, "proxy_ca_certificate": Path(bundle).read_text()} if bundle else {"proxy_url": proxy}
