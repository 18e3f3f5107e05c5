"""What no message, record, log or traceback may repeat: credentials, by their values and by where they stand.

A store that refuses a request may repeat what was sent. AWS answers ExpiredToken with the token, and
SignatureDoesNotMatch with the whole request; a proxy may show its headers.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from urllib.parse import quote, unquote

WITHHELD = "[withheld]"
"""Stands where a secret stood."""
LEAST_CHARACTERS = 8
"""A shorter value is not looked for: it may be a word of its own."""
LEAST_IN_ID = 16
"""Characters of an access key's name on AWS, at least; a shorter one, of another store, may be a name of a bucket."""
MOST_KEPT = 64
"""Values that are remembered: credentials of a process that runs for weeks are renewed every hour."""

HARMLESS = "Code Message Key BucketName Bucket Resource Region Endpoint RequestId HostId Condition Method".split()
"""Elements of a store's answer that are repeated; whatever else stands there is not."""
_ERROR = re.compile(r"<Error(?:\s[^<>]{0,200})?>(?=\s*<)(.*?)(?:</Error>|\Z)", re.DOTALL)
_HARMLESS = re.compile(rf"<({'|'.join(HARMLESS)})>[^<]*</\1>")
_ELEMENT = re.compile(
    r"<(Token-\d+|CanonicalRequest\w*|StringToSign\w*|Signature\w*|(?:AWS)?AccessKeyId|Secret\w*|SessionToken|"
    r"AuthenticationErrorDetail|x-amz-security-token|Authorization)>.*?(?:</\1>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
"""Elements that hold what was sent, or what it was signed with, also outside of an `Error`."""
_TO_END_OF_LINE = re.compile(r"((?:proxy-)?authorization\\?[\"']?\s*[:=]\s*)[^\r\n\\<]+", re.IGNORECASE)
_NAMED = re.compile(
    r"(x-(?:amz|goog)-(?:security-token|signature|credential)\\?[\"']?\s*[:=]\s*\\?[\"']?"
    r"|\baws_(?:secret_access_key|session_token|access_key_id)\s{0,8}=\s{0,8}"
    r"|\b(?:sig|signature|credential|accountkey|sharedaccesssignature|client_secret|password|"
    r"secret_access_key|session_token|access_key_id|awsaccesskeyid)=)[^\s\\\"'<>&,;]+",
    re.IGNORECASE,
)
"""Headers, parts of a query and of a connection string, and their values."""
_FIELD = re.compile(
    r"(\\{0,8}[\"'][\w-]{0,30}(?:secret(?:_?access)?(?:_?key)?|token|passw(?:or)?d|signature|assertion"
    r"|(?:access|account|api|private|storage|shared_?access)_?key(?:_?id)?)\\{0,8}[\"']\s{0,8}[:=]\s{0,8})"
    r"(\\{0,8}[\"']).*?(?:\2|\Z)",
    re.IGNORECASE | re.DOTALL,
)
"""Fields of JSON, and of what Python shows, and their values: whatever a program prints of the credentials it got."""
_SCHEME = re.compile(r"\b(Bearer\s+|SharedKey(?:Lite)?\s+\w+:)[\w.~+/=-]{8,}")
_USER = re.compile(r"(\w://|\bendpoint: )(?:[^/\s:@\"'<>]*:(?!\d+/)[^\s@\"'<>]{0,300}|[^/\s@\"'<>]*)@")
"""Users of URLs. A secret may hold a slash, if what follows a colon is no port."""

_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSW|(?:ACCESS|ACCOUNT|STORAGE|MASTER|IDENTITY|SAS)_KEY|CONNECTION_STRING|_PROXY$", re.IGNORECASE
)
_PLACE_NAME = re.compile(r"_(?:FILE|DIR|PATH|URI|URL|ENDPOINT)$", re.IGNORECASE)
"""What a variable of the environment is called that holds a secret, and what one that says where there is one."""
_RUN = re.compile(r"[A-Za-z0-9]{16,}")
"""A part of a key or token that is spelled the same however the rest is escaped."""
_PART = re.compile(r"(?:AccountKey|SharedAccessSignature)=([^;]+)|://[^/@]*?:([^@]+)@")
"""The secrets in a connection string, and in the URL of a proxy."""

_kept: dict[str, None] = {}
_lock = threading.Lock()


def withhold(*secrets: str | None, key_id: str | None = None) -> None:
    """Remember secrets, and the name of an access key, which `redacted` takes out of what is said from now on."""
    least = dict.fromkeys(secrets, LEAST_CHARACTERS) | {key_id: LEAST_IN_ID}
    with _lock:
        for value, n_characters in least.items():
            if value and len(value) >= n_characters:
                _kept.pop(value, None)
                _kept[value] = None
        for oldest in list(_kept)[:-MOST_KEPT]:
            del _kept[oldest]


def redacted(text: str) -> str:
    """Return a text without the secrets in it.

    These are the values given to `withhold` and those of the environment, as they are and escaped for a URL; and
    whatever stands where credentials do in an answer of a store, a header, a query or a URL.
    """
    with _lock:
        values = {*_kept, *_of_environment()}
    spelled = {form for value in values for form in (value, quote(value, safe=""), quote(value), unquote(value))}
    spelled.update(run for value in values for run in _RUN.findall(value))  # how else it is escaped, or if it is cut
    for value in sorted(spelled, key=len, reverse=True):  # one may hold another
        text = text.replace(value, WITHHELD)
    if "<" in text:
        text = _ERROR.sub(lambda found: f"<Error>{''.join(m[0] for m in _HARMLESS.finditer(found[1]))}</Error>", text)
        text = _ELEMENT.sub(rf"<\1>{WITHHELD}</\1>", text)
    text = _TO_END_OF_LINE.sub(rf"\1{WITHHELD}", text)
    text = _NAMED.sub(rf"\1{WITHHELD}", text)
    text = _FIELD.sub(rf"\1\2{WITHHELD}\2", text)
    text = _SCHEME.sub(rf"\1{WITHHELD}", text)
    return _USER.sub(rf"\1{WITHHELD}@", text)


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) < LEAST_CHARACTERS or not _SECRET_NAME.search(name) or _PLACE_NAME.search(name):
            continue
        parts = [one or other for one, other in _PART.findall(value)]
        yield from (part for part in parts if len(part) >= LEAST_CHARACTERS)
        is_id = name.upper().endswith("_ID")
        if not name.upper().endswith("PROXY") and len(value) >= (LEAST_IN_ID if is_id else LEAST_CHARACTERS):
            yield value
