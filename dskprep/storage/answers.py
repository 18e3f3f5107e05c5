"""What a failed request to a bucket means: one kind of OSError, in the server's words, with what to do about it."""

from __future__ import annotations

import re
from typing import NamedTuple

from aiohttp import ClientPayloadError
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as EndpointError
from fsspec.exceptions import FSTimeoutError
from obstore import exceptions

from dskprep.redaction import redacted
from dskprep.storage import public
from dskprep.storage.local import OneFile

FAILURES = (exceptions.BaseError, BotoCoreError, ClientError, ClientPayloadError, OSError)
"""What obstore, s3fs and the libraries below them raise for a failed request."""
UNANSWERED = (EndpointError, HTTPClientError, ClientPayloadError, FSTimeoutError)
"""Those of botocore and aiohttp where no answer came, or not all of it."""

GONE_TYPES = (FileNotFoundError, exceptions.NotFoundError, exceptions.PreconditionError)
"""What is raised for an object that does not exist, or not with the ETag asked for."""
DENIED_TYPES = (PermissionError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
"""What is raised where the credentials do not suffice."""
GONE = {"NoSuchBucket", "NoSuchKey", "404", "PreconditionFailed", "412", "ContainerNotFound", "BlobNotFound"}
"""S3's codes for the same, and Azure's; some servers send the status alone."""
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed", "InvalidToken"}
"""S3's codes, some with status 400, for credentials that are not accepted any more."""
STALE = EXPIRED | {"InvalidAccessKeyId", "InvalidClientTokenId", "SignatureDoesNotMatch", "AuthFailure"}
"""S3's codes for credentials that were replaced, or never were right; not for rights that are lacking."""
ARCHIVED = {"InvalidObjectState", "BlobArchived"}
"""S3's and Azure's codes for an object in a class of storage from which it must be restored, such as Glacier."""
TRIED_AGAIN = {"408", "429", "RequestTimeout", "OperationAborted"}
"""The codes and statuses 4xx that may pass."""

ADVICE = (
    ("Invalid endpoint", "expected one such as https://host:9000; correct AWS_ENDPOINT_URL, or the profile"),
    (
        "Unable to locate credentials|No credentials|Partial credentials|could not be found",
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    ),
    ("retrieving credentials|SSO", "mend what the profile gets its credentials from"),
    (
        "Malformed.*region|PermanentRedirect|TemporaryRedirect|IllegalLocation|without LOCATION|"
        "(?<![\\w.])30[1278](?![\\w.])",
        "name the region of the bucket by AWS_DEFAULT_REGION, or in the profile",
    ),
    ("(?i)MicrosoftAzure.*(certificate|UnknownIssuer)", "name the file of its CA's certificate by REQUESTS_CA_BUNDLE"),
    ("(?i)certificate|UnknownIssuer", "name the file of its CA's certificate by AWS_CA_BUNDLE"),
    (
        "(?i)checksum|trailer|STREAMING-|content-?md5",
        "set AWS_REQUEST_CHECKSUM_CALCULATION and AWS_RESPONSE_CHECKSUM_VALIDATION to when_required",
    ),
    ("Invalid bucket name|InvalidResourceName|OutOfRangeInput", "correct the URL"),
    ("Account must be specified", "set AZURE_STORAGE_ACCOUNT_NAME, or AZURE_STORAGE_CONNECTION_STRING"),
    (
        "MicrosoftAzure.*(token request|command failed)|Azure Cli",
        "set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING, or "
        "AZURE_USE_AZURE_CLI=true after az login",
    ),
    ("Invalid Access Key", "correct AZURE_STORAGE_ACCOUNT_KEY"),
    ("MicrosoftAzure", "check AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT and the network"),
)
"""What to do, by what the server or the library says."""
DEFAULT_ADVICE = "check the endpoint (AWS_ENDPOINT_URL), region and network"
ADVICE_ON_PUBLIC = (
    ("Invalid endpoint", f"expected one such as https://host:9000; correct {public.VARIABLE}"),
    ("(?i)certificate|UnknownIssuer", "name the file of its CA's certificate by AWS_CA_BUNDLE"),
)
"""The same for public buckets, for which no other setting holds."""
DEFAULT_ON_PUBLIC = f"check the network, and {public.VARIABLE} if a mirror is named there"


class Hopeless(OSError):
    """A request that fails again however often it is sent."""


class Unanswered(OSError):
    """A request to which no whole answer came."""


class Answer(NamedTuple):
    """What a server answered to a failed request; empty where it did not say, all of it where no answer came."""

    status: str
    code: str
    said: str


def answer_to(error: BaseException) -> Answer:
    """Return the answer that an error of obstore, botocore or s3fs stands for."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(cause, ClientError):
        about = cause.response.get("Error", {})
        status = str(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        return Answer(status, about.get("Code", ""), about.get("Message", ""))
    if not isinstance(error, exceptions.BaseError):
        return Answer("", "", "")
    patterns = (r"status code: (\d+)", "<Code>([^<]*)", r"<Message>([^<\n]*)")
    return Answer(*(match[1] if (match := re.search(pattern, str(error))) else "" for pattern in patterns))


def to_os_error(error: Exception, *, is_public: bool = False) -> OSError:
    """Convert to FileNotFoundError, FileExistsError, PermissionError, OneFile, Unanswered, Hopeless or another OSError.

    All that is known, but for secrets, is in its text. obstore's types say little about a failed listing, but its text
    holds the status and the server's code.
    """
    if isinstance(error, (Hopeless, Unanswered)) or (type(error) is OSError and error.errno is None):
        return error  # it is one of ours, and says what to do
    status, code, said = answer = answer_to(error)
    text = redacted(f"{code}: {said}" if code and said else _text_of(error))
    if isinstance(error, exceptions.AlreadyExistsError):
        return FileExistsError(text)
    if isinstance(error, GONE_TYPES) or code in GONE:
        return FileNotFoundError(text)
    if code in ARCHIVED:
        return OneFile(f"{text}; restore it, or copy it to a class of storage that can be read at once")
    if isinstance(error, DENIED_TYPES) or code in EXPIRED or status in ("401", "403"):
        return PermissionError(text)
    text = f"{text}; {advice_for(text, is_public=is_public)}"
    if isinstance(error, UNANSWERED) or (isinstance(error, exceptions.BaseError) and not status):
        return Unanswered(text)
    is_refused = status.startswith(("3", "4")) and TRIED_AGAIN.isdisjoint(answer)
    return Hopeless(text) if is_refused or isinstance(error, BotoCoreError) else OSError(text)


def advice_for(text: str, *, is_public: bool = False) -> str:
    """Return what to do about a failure, by its text. Names in URLs say nothing: a port may look like a status."""
    text = re.sub(r"\w+://\S+", "", text)
    known, otherwise = (ADVICE_ON_PUBLIC, DEFAULT_ON_PUBLIC) if is_public else (ADVICE, DEFAULT_ADVICE)
    return next((advice for pattern, advice in known if re.search(pattern, text)), otherwise)


def _text_of(error: Exception) -> str:
    """Return what an error says in one line: of obstore's, what it begins with, and the innermost cause."""
    text = str(error).strip() or type(error).__name__
    if not isinstance(error, exceptions.BaseError):
        return " ".join(text.split())
    first, _, debug = text.partition("\n")
    causes = re.findall(r'"([^"]*)"|(?:InvalidCertificate|AlertReceived)\(\s*(\w+)', debug)
    cause = " ".join(causes[-1][0].split() or [causes[-1][1]]) if causes else ""
    return f"{first}: {cause}" if cause and cause not in first else first
