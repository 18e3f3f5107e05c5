"""How a process reaches Azure Blob Storage: obstore, with the settings and credentials that Azure's own tools take.

They are environment variables, most of which obstore reads itself: accounts and keys, shared access signatures (SAS),
service principals, workload identities, managed identities, and the login of the `az` program. Read here are connection
strings, and the two names that only `az` knows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast
from urllib.parse import urlsplit

import obstore
from obstore.store import AzureStore

from dskprep.storage import answers, connection
from dskprep.storage.answers import FAILURES, Hopeless
from dskprep.storage.clients import CONNECT_S, REQUEST_S, RETRY_S, SILENCE_S, Place
from dskprep.storage.connection import NOT_BY_OBSTORE, Connection

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
"""The variable with settings and credentials in one, as Azure's portal gives them; it goes before the others."""
ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
"""Variables that say where Azure's blobs are, in capitals: obstore takes small letters too."""
NAMES_OF_AZ = {"AZURE_STORAGE_ACCOUNT": "account_name", "AZURE_STORAGE_KEY": "account_key"}
"""Variables of the `az` program that obstore knows by other names only."""
ENVIRONMENT = ("AZURE_", "AZURITE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE")
"""What the names of the variables begin with that say how a container is reached."""

CONTACT_LIMITS: ClientConfig = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=5)}
"""Of the first request to a container."""
CONTACT_RETRIES: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=15)}
"""It has failed after 16 s; with a login that does not answer either, after as long."""
CONTACT_KEY = "dskprep-contact"
"""The first request asks for this blob. It need not exist: whatever is answered will do."""


class AzureConnection(Connection):
    """The containers of the account that the environment names."""

    def _first_contact(self, bucket: str) -> Place:
        try:
            store = _open_store(bucket, CONTACT_LIMITS, CONTACT_RETRIES)
            obstore.get(store, CONTACT_KEY)
        except FAILURES as error:
            problem = answers.to_os_error(error)
            if not answers.answer_to(error).status and not isinstance(problem, FileNotFoundError):
                raise problem from None
        return Place("", "", is_virtual=False)

    def _open(self, bucket: str, place: Place) -> AzureStore:  # noqa: ARG002
        limits: ClientConfig = {
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=SILENCE_S),
            "timeout": timedelta(seconds=REQUEST_S),
        }
        return _open_store(bucket, limits, {"max_retries": 6, "retry_timeout": timedelta(seconds=RETRY_S)})

    def has_any(self, bucket: str, prefix: str) -> bool:
        store = self.store(bucket)
        return self.send(lambda: bool(next(iter(obstore.list(store, prefix or None, chunk_size=1)), [])))

    def has_object(self, bucket: str, key: str) -> bool:
        store = self.store(bucket)
        try:
            self.by_head(bucket, key, lambda: obstore.head(store, key))
        except FileNotFoundError:
            return False
        return True

    def store(self, bucket: str) -> ObjectStore:
        if connection.fork.is_obstore_lost:
            raise Hopeless(
                "this process was forked from one that had read a bucket, and cannot read az:// itself; start it by "
                "spawn, as with multiprocessing_context='spawn' of a DataLoader"
            )
        return super().store(bucket)

    def send(self, request: Callable[[], T]) -> T:
        try:
            return super().send(request)
        except NOT_BY_OBSTORE as error:
            raise Hopeless(f"{error}; rename it") from None

    @property
    def fs(self) -> NoReturn:
        raise Hopeless("the name is no path: it has nothing, '.' or '..' between two slashes; rename it")


def connect() -> Connection:
    """Return this process's connection to Azure under its environment of now."""
    variables = sorted((n, value) for n, value in os.environ.items() if n.upper().startswith(ENVIRONMENT))
    about = json.dumps(variables).encode(errors="surrogateescape")
    return connection.connected(("azure", hashlib.sha256(about).digest()), AzureConnection)


def _open_store(container: str, limits: ClientConfig, retries: RetryConfig) -> AzureStore:
    """Open obstore's store of a container. Raises Hopeless if a setting cannot be used."""
    config = _settings()
    _refuse_secrets(config)
    options: ClientConfig = {"allow_http": True, **limits, **_trust()}
    try:
        return AzureStore(container, config=config, client_options=options, retry_config=retries)
    except (*FAILURES, ValueError) as error:  # before anything was sent
        problem = answers.to_os_error(error)
        raise Hopeless(str(problem)) from None


def _refuse_secrets(config: AzureConfig) -> None:
    """Raise Hopeless if an endpoint holds credentials, such as those of a SAS URL: each error of obstore repeats it."""
    endpoints = {name: value for name, value in os.environ.items() if name.upper() in ENDPOINTS}
    for name, endpoint in {**endpoints, CONNECTION_STRING: str(config.get("endpoint", ""))}.items():
        if _may_hold_secret(endpoint):
            raise Hopeless(
                f"{name}: expected an endpoint such as https://account.blob.core.windows.net, found one with a user or "
                "a query; give a SAS token as AZURE_STORAGE_SAS_TOKEN"
            )


def _may_hold_secret(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
    except ValueError:  # no URL, and its message would repeat it
        return True
    return bool(parts.query or parts.fragment) or "@" in parts.netloc


def _settings() -> AzureConfig:
    """Return the settings that obstore does not find in the environment by itself."""
    if text := os.environ.get(CONNECTION_STRING):
        return _parse(text)
    found = {setting: os.environ[name] for name, setting in NAMES_OF_AZ.items() if os.environ.get(name)}
    return cast("AzureConfig", found)


def _parse(text: str) -> AzureConfig:
    """Return the settings in a connection string. Raises Hopeless if it names no account. It is not repeated."""
    parts = dict(part.strip().split("=", 1) for part in text.split(";") if "=" in part)
    if parts.get("UseDevelopmentStorage", "").lower() == "true":
        return {"use_emulator": True}
    endpoint = parts.get("BlobEndpoint", "").rstrip("/")
    account = parts.get("AccountName") or (urlsplit(endpoint).hostname or "").partition(".")[0]
    if not account:
        raise Hopeless(f"{CONNECTION_STRING}: expected AccountName=… or BlobEndpoint=…, found neither; copy it anew")
    suffix = parts.get("EndpointSuffix", "core.windows.net")
    config: AzureConfig = {
        "account_name": account,
        "endpoint": endpoint or f"{parts.get('DefaultEndpointsProtocol', 'https')}://{account}.blob.{suffix}",
    }
    if key := parts.get("AccountKey"):
        config["account_key"] = key
    if signature := parts.get("SharedAccessSignature"):
        config["sas_key"] = signature.removeprefix("?")
    return config


def _trust() -> ClientConfig:
    """Return the option of obstore for certificates of a private CA, which the `az` program finds so too."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if not bundle:
        return {}
    try:
        return {"root_certificate": Path(bundle).read_bytes()}
    except OSError as error:
        raise Hopeless(
            f"REQUESTS_CA_BUNDLE: expected a file of certificates in PEM, found {bundle} ({error.strerror}); "
            "correct it, or unset it"
        ) from error
