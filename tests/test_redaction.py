"""What a store repeats of a refused request is in nothing that is said, whoever says it."""

from __future__ import annotations

import base64
import logging
import traceback
from urllib.parse import quote

import pytest

from dskprep import plain, redaction
from dskprep.redaction import redacted, withhold

TOKEN = "IQoJb3JpZ2luX2VjEJr//////////wEaCXVzLWVhc3QtMSJHMEUCIQ+Dq8=="
SIGNED = (
    "AWS4-HMAC-SHA256 Credential=AKIAQQQQQQQQQQQQQQQQ/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, "
    "Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
)
OF_AWS = (  # as in the reference of S3's errors
    'Server returned non-2xx status code: 400 Bad Request: <?xml version="1.0"?>\n<Error><Code>SignatureDoesNotMatch'
    "</Code><Message>The request signature does not match.</Message><Token-0>TOKEN</Token-0><AWSAccessKeyId>"
    "AKIAQQQQQQQQQQQQQQQQ</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256\n2026</StringToSign><SignatureProvided>5d672d79"
    "</SignatureProvided><CanonicalRequest>GET\n/b/k\nx-amz-security-token:TOKEN\n\nhost</CanonicalRequest>"
    "<CanonicalRequestBytes>47 45 54</CanonicalRequestBytes><RequestId>44425877</RequestId></Error>"
)


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        (OF_AWS, "TOKEN"),
        (OF_AWS, "AKIAQQQQQQQQQQQQQQQQ"),
        (OF_AWS, "5d672d79"),
        (OF_AWS, "47 45 54"),
        (OF_AWS.partition("</Token-0>")[0], "TOKEN"),  # it was cut
        ("<Refusal><Token-0>TOKEN</Token-0></Refusal>", "TOKEN"),
        (f"The authorization header is malformed: {SIGNED}", "AKIAQQQQQQQQQQQQQQQQ"),
        (f"The authorization header is malformed: {SIGNED}", "5d672d79"),
        (f"Authorization: {SIGNED}", "5d672d79"),
        ('{"authorization": "Bearer eyJhbGciOiJSUzI1NiJ9.e30.c2ln"}', "eyJhbGci"),
        ("refused Bearer eyJhbGciOiJSUzI1NiJ9.e30.c2ln", "eyJhbGci"),
        ("Authorization: SharedKey account:3bVzaG9ydA==", "3bVzaG9ydA"),
        ('headers: {"x-amz-security-token": "IQoJb3JpZ2lu"}', "IQoJb3JpZ2lu"),
        ("https://a.blob.core.windows.net/c/b?sv=2024&sig=aGVsbG8%3D&se=2026", "aGVsbG8"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIA%2F2026&X-Amz-Signature=5d67", "5d67"),
        ("DefaultEndpointsProtocol=https;AccountName=a;AccountKey=Zm9vYmFy==;x", "Zm9vYmFy"),
        ('{"Code": "Success", "AccessKeyId": "ASIAX", "SecretAccessKey" : "wJal/rXU", "Token": "IQo"}', "wJal/rXU"),
        ('{"Code": "Success", "AccessKeyId": "ASIAX", "SecretAccessKey" : "wJal/rXU", "Token": "IQo"}', "IQo"),
        (r'said "{\"access_token\": \"eyJ0\\/eXAi\", \"expires_in\": 3599}"', "eXAi"),
        ("{'aws_secret_access_key': 'wJal/rXU'}", "wJal/rXU"),
        ('{"client_secret": "Q~8abc", "x": 1}', "Q~8abc"),
        ('{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\nMIIE', "MIIE"),  # it was cut
        ("line 2: aws_secret_access_key = wJal/rXU", "wJal/rXU"),
        ("cannot connect to http://user:pa55@proxy.example:3128", "pa55"),
        ("cannot connect to http://user:pa/55@proxy.example:3128", "55@"),
        ("az://account:abc/pa55==@container/x: not found", "pa55"),
        ("Invalid endpoint: user:pa55@host; expected one such as https://host:9000", "pa55"),
    ],
)
def test_what_stands_where_credentials_do_is_not_repeated(said: str, secret: str) -> None:
    assert secret in said
    assert secret not in redacted(said)


def test_what_is_no_answer_of_a_store_is_kept_whole() -> None:
    said = "expected <Error: found 3> in <Errors> of p1; then important words"
    assert redacted(said) == said


@pytest.mark.parametrize("said", ["\\" * 300_000 + '"' * 300_000, "a://b:" * 50_000])
def test_what_repeats_takes_no_time(said: str) -> None:
    assert redacted(said) == said


def test_what_helps_is_kept() -> None:
    found = redacted(OF_AWS)
    for words in ("400 Bad Request", "SignatureDoesNotMatch", "The request signature does not match.", "44425877"):
        assert words in found
    fields = '{"NextToken": 3, "Key": "a/b.dcm", "key": "p1", "status": "failed", "tokens": "two"}'
    assert redacted(fields) == fields
    plain_words = "s3://bucket/a@b/key=1: expected 3 at https://host:9000/a@b?c=1, found a token, a password and 2 < 3"
    assert redacted(plain_words) == plain_words


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("AWS_SESSION_TOKEN", TOKEN, TOKEN),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPx", "wJalrXUtnFEMI/K7MDENG+bPx"),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("FSSPEC_S3_SECRET", "wJalrXUtnFEMI", "wJalrXUtnFEMI"),
        ("AZURE_CLIENT_SECRET", "Q~8abcdefgh", "Q~8abcdefgh"),
        ("AZURE_STORAGE_SAS_TOKEN", "sv=2024&se=aGVs%3D", "sv=2024&se=aGVs%3D"),
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=a;AccountKey=Zm9vYmFyCg==", "Zm9vYmFyCg=="),
        ("https_proxy", "http://user:correct-horse@proxy:3128", "correct-horse"),
    ],
)
def test_secrets_of_the_environment_are_not_repeated_in_any_spelling(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, secret: str
) -> None:
    said = f"refused {secret}, {quote(secret)} and {quote(secret, safe='')}"
    monkeypatch.delenv(name, raising=False)
    assert secret in redacted(said)
    monkeypatch.setenv(name, value)
    found = redacted(said)
    assert not any(form in found for form in (secret, quote(secret), quote(secret, safe="")))


@pytest.mark.parametrize("escaped", ["%2f", r"\/", r"\u002f", "&#47;"])
def test_a_secret_that_is_escaped_in_some_other_way_or_cut_shows_no_more_than_its_ends(
    monkeypatch: pytest.MonkeyPatch, escaped: str
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "IQoJb3JpZ2luX2VjEAIa/CXVzLWVhc3QtMSJHMEUCIQDx/y8=")
    said = redacted(f"IQoJb3JpZ2luX2VjEAIa{escaped}CXVzLWVhc3QtMSJHMEUCIQDx{escaped}y8")
    assert not any(run in said for run in ("IQoJb3", "CXVzLW", "CIQDx"))


def test_names_of_files_and_short_words_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/secrets/token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "minio")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "radiology")
    assert redacted("s3://radiology/minio, /run/secrets/token") == "s3://radiology/minio, /run/secrets/token"


def test_credentials_that_a_process_was_given_are_withheld_and_the_oldest_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redaction, "_kept", {})
    names = [base64.b16encode(bytes([n]) * 8).decode() for n in range(redaction.MOST_KEPT + 1)]
    for name in names:
        withhold(name, None, key_id="short")
    assert redacted(f"{names[-1]} short") == "[withheld] short"
    assert redacted(names[0]) == names[0]
    assert len(redaction._kept) == redaction.MOST_KEPT


def test_messages_tracebacks_of_all_causes_and_logs_go_through_the_same_door() -> None:
    try:
        try:
            raise OSError(OF_AWS)
        except OSError as error:
            error.add_note(SIGNED)
            raise ValueError(f"refused: {OF_AWS}") from error
    except ValueError as error:
        caught = error
    record = plain._Escaped("dskprep", logging.ERROR, "p", 1, "%s", (OF_AWS,), (ValueError, caught, None))
    assert "TOKEN" in "".join(traceback.format_exception(caught))
    said = [plain.words_of(caught), plain.in_one_line(caught), plain.traceback_of(caught), record.getMessage()]
    for text in [*said, record.exc_text or ""]:
        assert "SignatureDoesNotMatch" in text
        assert "TOKEN" not in text
        assert "AKIAQQQQ" not in text
