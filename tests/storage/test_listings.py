"""Stores that answer a listing wrongly: part of it is never taken for the whole, nor a page of a proxy for nothing."""

from __future__ import annotations

import http.server
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dskprep import storage
from dskprep.errors import InfrastructureError
from dskprep.source import cases
from dskprep.source.case import digest as case_digest
from dskprep.storage import azure, connection
from dskprep.synthetic.s3server import HOST

KEYS = [f"p{n:02}/{k:03}.dcm" for n in range(6) for k in range(500)]
PORTAL = b"<html><body>please log in</body></html>"
TIME = "2026-01-01T00:00:00.000Z"
LISTINGS: dict[str, Callable[[str], Any]] = {
    "walk": lambda url: [f"{f.path}/{e.name}" for f in storage.walk(url) for e in f.entries],
    "listing_below": lambda url: [entry.name for entry in storage.listing_below(url)],
    "folders": storage.folders,
    "listing": lambda url: storage.listing(f"{url}/p00"),
    "is_folder": storage.is_folder,
}


class Store:
    """A server of S3 and of Azure that holds KEYS in each bucket, lists them rightly, and then does as `fault` says.

    Within a `with` block. `fault` gets what was asked for, by name, and the right answer, and returns the one to send.
    """

    def __init__(self) -> None:
        self.fault: Callable[[dict[str, str], bytes], bytes] = lambda _, answer: answer
        self.page = 1000
        self.keys = KEYS
        self.n_lists = 0
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
                is_list = "list-type" in asked or asked.get("comp") == "list"
                store.n_lists += is_list
                body = store.fault(asked, store.answer(asked)) if is_list else b"<Error><Code>NoSuchKey</Code></Error>"
                self.send_response(200 if is_list else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

        self._server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://{HOST}:{self._server.server_port}"

    def __enter__(self) -> Store:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, asked: dict[str, str]) -> bytes:
        """List as S3 does, or Azure."""
        prefix, most = asked.get("prefix", ""), min(int(asked.get("max-keys", self.page)), self.page)
        after = asked.get("continuation-token") or asked.get("marker") or asked.get("start-after", "")
        found: list[str] = []
        for key in sorted(self.keys):
            head, slash, _ = key.removeprefix(prefix).partition("/")
            each = f"{prefix}{head}/" if slash and asked.get("delimiter") else key
            if key.startswith(prefix) and each > after and each not in found[-1:]:
                found.append(each)
        is_cut, found = len(found) > most, found[:most]
        if "comp" in asked:
            about = "<Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified><Etag>0</Etag>"
            about = f"<Properties>{about}<Content-Length>1</Content-Length><Content-Type>x</Content-Type></Properties>"
            each = "".join(f"<BlobPrefix><Name>{k}</Name></BlobPrefix>" if k.endswith("/") else
                           f"<Blob><Name>{k}</Name>{about}</Blob>" for k in found)  # fmt: skip
            text = f"<EnumerationResults><Blobs>{each}</Blobs><NextMarker>{found[-1] if is_cut else ''}</NextMarker>"
            return f"{text}</EnumerationResults>".encode()
        rest = f"<LastModified>{TIME}</LastModified><ETag>&quot;0&quot;</ETag><Size>1</Size>"
        each = "".join(f"<CommonPrefixes><Prefix>{k}</Prefix></CommonPrefixes>" if k.endswith("/") else
                       f"<Contents><Key>{k}</Key>{rest}</Contents>" for k in found)  # fmt: skip
        token = f"<NextContinuationToken>{found[-1]}</NextContinuationToken>" if is_cut else ""
        text = f"<Name>b</Name><KeyCount>{len(found)}</KeyCount><IsTruncated>{str(is_cut).lower()}</IsTruncated>"
        space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        return f'<?xml version="1.0"?><ListBucketResult {space}>{text}{token}{each}</ListBucketResult>'.encode()


@pytest.fixture
def store(settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:  # noqa: ARG001
    with Store() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", store.endpoint)
        yield store


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1",
        "AZURE_STORAGE_ACCOUNT_NAME": "me", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5", "NO_PROXY": HOST, "no_proxy": HOST,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(connection, "WAIT_S", 0.01)


def refused(listing: str, url: str = "s3://b") -> str:
    with pytest.raises(InfrastructureError) as caught:
        LISTINGS[listing](url)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def after_contact(fault: Callable[[dict[str, str], bytes], bytes]) -> Callable[[dict[str, str], bytes], bytes]:
    """All but requests for a single key, as the first one to a bucket is."""
    return lambda asked, answer: answer if asked.get("max-keys") == "1" else fault(asked, answer)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_a_store_that_lists_rightly_is_listed_whole(scheme: str) -> None:
    assert LISTINGS["walk"](f"{scheme}://b") == LISTINGS["listing_below"](f"{scheme}://b") == KEYS
    assert storage.folders(f"{scheme}://b") == [f"p{n:02}" for n in range(6)]
    assert len(storage.listing(f"{scheme}://b/p03")) == 500


def test_a_listing_costs_a_request_for_each_page(store: Store) -> None:
    storage.meet("s3://b")
    for listing, n_pages in {"listing_below": 3, "folders": 1, "listing": 1, "is_folder": 1}.items():
        store.n_lists = 0
        LISTINGS[listing]("s3://b")
        assert store.n_lists == n_pages, listing
    store.n_lists = 0
    assert list(storage.listing_below("s3://b/none")) == []
    assert store.n_lists == 1


# an answer that is no listing


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("is_from_the_start", [True, False])
def test_a_page_of_a_proxy_is_no_empty_folder(store: Store, listing: str, is_from_the_start: bool) -> None:
    if not is_from_the_start:
        storage.meet("s3://b")
    store.fault = lambda *_: PORTAL
    said = refused(listing)
    assert f"expected a listing (ListBucketResult), found {PORTAL.decode()}; a proxy or a page to log in may" in said


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><html><br>log in</html>", b"", b"{}", PORTAL * 100, b"<!--a-->" * 60]
)
def test_whatever_is_no_listing_is_one_short_line(store: Store, page: bytes) -> None:
    storage.meet("s3://b")
    store.fault = lambda *_: page
    said = refused("listing_below")
    assert f"expected a listing (ListBucketResult), found {page[:20].decode() or 'nothing'}" in said
    assert len(said) < 300


def portal_instead_of_more(asked: dict[str, str], answer: bytes) -> bytes:
    return PORTAL if "continuation-token" in asked else answer


def test_a_page_of_a_proxy_is_not_the_end_of_a_listing(store: Store) -> None:
    store.fault = portal_instead_of_more
    assert "expected a listing (ListBucketResult), found <html>" in refused("listing_below")


def test_a_page_of_a_proxy_loses_no_folder_of_those_listed_together(store: Store) -> None:
    """Each has less than a page, and is listed by itself where the listing of several ends after a page."""
    store.keys = [f"p{n}/{k:03}.dcm" for n in range(6) for k in range(300)]
    store.fault = portal_instead_of_more
    assert LISTINGS["walk"]("s3://b") == store.keys


def test_an_error_that_came_as_200_is_asked_again(store: Store) -> None:
    storage.meet("s3://b")
    answers = [b"<Error><Code>InternalError</Code><Message>again</Message></Error>"]
    store.fault = lambda _, answer: answers.pop() if answers else answer
    assert LISTINGS["listing_below"]("s3://b") == KEYS
    assert not answers


# a listing that does not say where it goes on, or says it again


def first_page(store: Store, asked: dict[str, str]) -> bytes:
    """Answer as if there was no token."""
    return store.answer({name: value for name, value in asked.items() if name not in ("continuation-token", "marker")})


def without_token(_asked: dict[str, str], answer: bytes) -> bytes:
    start, _, rest = answer.partition(b"<NextContinuationToken>")
    return start + rest.partition(b"</NextContinuationToken>")[2] if rest else start


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("is_forked", [False, True])
def test_the_first_page_is_not_taken_for_the_whole(
    store: Store, listing: str, is_forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that know the first kind of listing alone (V1) answer so. The first contact shows it."""
    monkeypatch.setattr(connection.fork, "is_obstore_lost", is_forked)
    store.fault = without_token
    assert "expected a token in a listing that is not whole, found none (NextContinuationToken)" in refused(listing)


@pytest.mark.parametrize("listing", ["walk", "listing_below", "folders"])
def test_the_first_page_is_not_taken_for_the_whole_when_the_first_contact_shows_nothing(
    store: Store, listing: str
) -> None:
    """As where a bucket may be listed in part only."""
    store.keys = [f"p{n:05}/x" for n in range(1100)] if listing == "folders" else KEYS
    store.fault = after_contact(without_token)
    if listing == "walk":  # each patient is one page, though several together are not
        assert LISTINGS["walk"]("s3://b") == KEYS
        store.keys = [f"p00/{n:04}.dcm" for n in range(1001)]
    assert "expected a token in a listing that is not whole" in refused(listing)


@pytest.mark.parametrize("page", [100, 300, 999])
def test_a_page_that_does_not_say_where_a_listing_goes_on_loses_nothing(store: Store, page: int) -> None:
    """Whatever a server's pages hold, each folder is listed whole, or the listing is refused."""
    store.page = page
    store.keys = [f"p{n:02}/{k:02}.dcm" for n in range(12) for k in range(47)]
    store.fault = after_contact(without_token)
    assert LISTINGS["walk"]("s3://b") == store.keys


@pytest.mark.parametrize("listing", ["walk", "listing_below", "folders"])
@pytest.mark.parametrize("n_pages", [1, 2])
def test_a_token_that_repeats_is_an_error_and_no_listing_without_end(store: Store, listing: str, n_pages: int) -> None:
    """The server goes in a circle of so many pages."""
    store.page = 100
    store.keys = [f"p{n:05}/x" for n in range(300)] if listing == "folders" else [f"p00/{n:03}" for n in range(600)]
    n_later = 0

    def fault(asked: dict[str, str], answer: bytes) -> bytes:
        nonlocal n_later
        n_later += "continuation-token" in asked
        return answer if n_later % n_pages else first_page(store, asked)

    store.fault = after_contact(fault)
    assert "expected another token on each page of a listing, found one for the second time" in refused(listing)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "RETRY_S", 0.1)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("listing", ["walk", "listing_below", "folders", "is_folder"])
def test_in_azure_a_page_of_a_proxy_is_no_empty_folder(store: Store, listing: str) -> None:
    store.fault = lambda *_: PORTAL
    refused(listing, "az://b")


@pytest.mark.usefixtures("short_waits")
def test_in_azure_a_marker_that_repeats_is_an_error(store: Store) -> None:
    store.page = 100
    store.fault = lambda asked, _: first_page(store, asked)
    assert "found one blob twice in a listing" in refused("listing_below", "az://b/p00")


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("patient_folders", [False, True])
def test_files_in_a_folder_without_a_name_are_read_or_named(
    store: Store, *, is_first: bool, patient_folders: bool
) -> None:
    store.keys = ["s/p1/1.dcm", "s/p2//1.dcm", "s/p2//2.dcm", "s/p4//sub/1.dcm"]
    store.keys += ["s//1.dcm", "s//p3/1.dcm"] * is_first
    found = list(cases.cases("s3://bucket/s", patient_folders=patient_folders))
    for case in found:  # what a worker lists is what the client listed
        assert case.problem or case_digest(cases.files_of(case.url, is_deep=case.is_deep)) == case.digest
    told = {case.problem.partition(": expected a name")[0].removeprefix("s3://bucket/s/") for case in found} - {""}
    read = {case.url.removeprefix("s3://bucket/s/") for case in found if not case.problem}
    if patient_folders:
        assert read == {"p1", "p2", "p4"}
        assert told == ({"/1.dcm", "/p3/1.dcm"} if is_first else set())
    else:
        assert read == {"p1", "p4//sub", *["/p3"] * is_first}
        assert told == {"p2//1.dcm", *["/1.dcm"] * is_first}
