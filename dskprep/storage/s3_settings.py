"""The settings of s3fs: dskprep's, with those of the user's own (`FSSPEC_S3` and its like) laid over them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from typing import Any

import fsspec.config

from dskprep.storage.public import PublicStore

S3_SETTINGS: dict[str, Any] = {
    "use_listings_cache": False,  # the cache never expires and remembers absence
    "config_kwargs": {
        "retries": {"max_attempts": 4, "mode": "standard"},
        "max_pool_connections": 32,
        "connect_timeout": 5,
        "read_timeout": 30,
    },
}
"""Settings of s3fs, and of botocore below it; times in seconds. A user's own go before those in `config_kwargs`."""
SWITCHES = ("anon", "requester_pays", "use_ssl", "cache_regions")
"""Options of s3fs that are true or false; any other word would count as true."""
TABLES = ("client_kwargs", "config_kwargs", "s3_additional_kwargs")
"""Options of s3fs that are JSON objects."""
TEXTS = ("key", "secret", "token", "endpoint_url", "profile")
TEXTS_OF_CLIENT = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "endpoint_url", "region_name")
"""Options of s3fs that are texts, and those in its `client_kwargs`. botocore would fail while it signs a request."""
OF_ALL_STORES = ("config_kwargs", "profile")
"""Options of s3fs that hold for public stores too; of `client_kwargs` so does `verify`."""
ENVIRONMENT = ("AWS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_")
"""What the names of the variables begin with that say how a bucket is reached."""


def s3_settings(public: PublicStore | None = None) -> dict[str, Any]:
    """Return the settings to open s3fs with, for a public store without credentials.

    Raises ValueError for a setting of the user's own that cannot be used.
    """
    own = _own()
    for variable in ("FSSPEC_S3", "FSSPEC_S3A"):
        if variable in os.environ and not _is_object(os.environ[variable]):  # fsspec passes over it
            raise ValueError(f"{variable}: expected a JSON object, found none; correct it, or unset it")
    for name in SWITCHES:
        if not isinstance(own.get(name, False), bool):
            raise ValueError(f"FSSPEC_S3: expected true or false for {name}, found {own[name]!r}")
    for name in TABLES:
        if not isinstance(own.get(name, {}), dict):
            raise ValueError(f"FSSPEC_S3: expected a JSON object for {name}, found another value")
    texts = {name: own.get(name) for name in TEXTS}
    texts |= {f"{name} in client_kwargs": own.get("client_kwargs", {}).get(name) for name in TEXTS_OF_CLIENT}
    for name, value in texts.items():
        if not isinstance(value, (str, type(None))):  # it may be a secret, and is not repeated
            raise ValueError(f"FSSPEC_S3: expected a text for {name}, found a value of type {type(value).__name__}")
    if "SSECustomerKey" in own.get("s3_additional_kwargs", {}):
        raise ValueError("FSSPEC_S3: keys of your own (SSE-C) are not supported; use SSE-KMS, or SSE-S3")
    config = S3_SETTINGS["config_kwargs"] | own.get("config_kwargs", {})
    if public:
        own = _anonymous(own, public)
    settings = own | S3_SETTINGS | {"config_kwargs": config, "skip_instance_cache": True, "asynchronous": False}
    return copy.deepcopy(settings)  # botocore writes into what it is given


def _anonymous(own: dict[str, Any], public: PublicStore) -> dict[str, Any]:
    """Return the settings of the user's own that hold for public stores too: no credentials, no payment."""
    kept = {name: value for name, value in own.items() if name in OF_ALL_STORES}
    verify = {name: value for name, value in own.get("client_kwargs", {}).items() if name == "verify"}
    client = verify | {"region_name": public.region}
    return kept | {"anon": True, "endpoint_url": public.endpoint, "client_kwargs": client}


def fingerprint() -> bytes:
    """Return a digest of all that says how buckets are reached, but for the files of the AWS tools."""
    variables = sorted((n, value) for n, value in os.environ.items() if n.upper().startswith(ENVIRONMENT))
    about = json.dumps([variables, _own(), S3_SETTINGS], sort_keys=True, default=repr)
    return hashlib.sha256(about.encode(errors="surrogateescape")).digest()


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _own() -> dict[str, Any]:
    conf = fsspec.config.conf
    return {**conf.get("s3", {}), **conf.get("s3a", {})}
