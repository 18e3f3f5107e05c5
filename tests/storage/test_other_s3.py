"""Other people's S3: private certificates, other regions, proxies, and stores that demand or lack something.

Each works, by obstore and by s3fs, or is one line that says what to do.
"""

from __future__ import annotations

import configparser
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.config
import numpy as np
import pytest
import tiny
from front_s3 import HOST, FrontS3, private_ca

import dskprep
from dskprep import storage
from dskprep.errors import InfrastructureError
from dskprep.storage import connection
from dskprep.synthetic.s3server import S3Server

pytestmark = pytest.mark.s3

FILES = {f"{i:02}": bytes([i]) * 20_000 for i in range(4)}


def keys_of(server: S3Server) -> tuple[str, str]:
    return server.environment["AWS_ACCESS_KEY_ID"], server.environment["AWS_SECRET_ACCESS_KEY"]


@pytest.fixture
def front(s3_server: S3Server, s3_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FrontS3]:  # noqa: ARG001
    with FrontS3(s3_server.endpoint, *keys_of(s3_server)) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        yield front


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed, which makes the certificates")
    return private_ca(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def private(
    s3_server: S3Server,
    s3_environment: None,  # noqa: ARG001
    certificates: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FrontS3]:
    """A store with TLS, whose certificate is that of a private CA."""
    with FrontS3(s3_server.endpoint, *keys_of(s3_server), certificates[1]) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        yield front


@pytest.fixture
def place(s3_server: S3Server) -> str:
    return f"{s3_server.make_bucket('others')}/{uuid.uuid4().hex}"


@pytest.fixture(params=["obstore", "after a fork"], autouse=True)
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.fork, "is_obstore_lost", request.param == "after a fork")


def configure(path: Path, monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    parser = configparser.ConfigParser()
    parser["profile scans"] = values
    with path.open("w") as file:
        parser.write(file)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    monkeypatch.setenv("AWS_PROFILE", "scans")


def own_settings(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """As `FSSPEC_S3` or a file of fsspec's configuration would say."""
    monkeypatch.setitem(fsspec.config.conf, "s3", values)


def use(place: str) -> None:
    """Write, list, read, look at and delete."""
    storage.write_many(place, FILES)
    entries = tiny.timeless(storage.listing(place))
    assert dict(storage.read_many(place, entries)) == FILES
    assert [tiny.timeless(folder.entries) for folder in storage.walk(place)] == [entries]
    assert storage.read_ranges(f"{place}/01", [(3, 10), (15_000, 15_005)]) == [FILES["01"][:7], FILES["01"][:5]]
    assert tiny.timeless([storage.entry_of(f"{place}/02")]) == entries[2:3]
    assert storage.read_head(f"{place}/03", 5) == FILES["03"][:5]
    assert storage.create(f"{place}/new", b"x")
    assert not storage.exists(f"{place}/absent")
    storage.delete(place, ["new", "00"])
    assert [entry.name for entry in storage.listing_below(place)] == ["01", "02", "03"]


def refused(place: str) -> str:
    """Return the one line in which all of it ends."""
    lines = set()
    for request in (
        lambda: storage.listing(place),
        lambda: storage.entry_of(f"{place}/01"),
        lambda: list(storage.walk(place)),
        lambda: storage.write_many(place, {"x": b"1"}),
    ):
        with pytest.raises(InfrastructureError) as caught:
            request()
        assert len(str(caught.value).splitlines()) == 1
        lines.add(str(caught.value))
    return min(lines, key=len)


# certificates


@pytest.mark.parametrize("by", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "profile", "settings"])
def test_a_private_ca_is_trusted_where_it_is_named(
    place: str,
    private: FrontS3,
    certificates: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    by: str,
) -> None:
    if by == "profile":
        configure(tmp_path / "config", monkeypatch, ca_bundle=str(certificates[0]))
    elif by == "settings":
        own_settings(monkeypatch, client_kwargs={"verify": str(certificates[0])})
    else:
        monkeypatch.setenv(by, str(certificates[0]))
    use(place)
    assert private.log


def test_a_private_ca_that_is_not_named_is_one_line(place: str, private: FrontS3) -> None:
    said = refused(place)
    assert "certificate verify failed" in said
    assert said.endswith("name the file of its CA's certificate by AWS_CA_BUNDLE")
    assert not private.log


@pytest.mark.slow
@pytest.mark.parametrize("found", ["nothing", "a folder", "no certificate"])
@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize("by", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "profile", "settings"])
def test_a_bundle_that_is_none_is_one_line_with_its_name_and_path(
    place: str, private: FrontS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str, scheme: str, by: str
) -> None:
    bundle = tmp_path / "ca.pem"
    if found == "a folder":
        bundle.mkdir()
    elif found == "no certificate":
        bundle.write_text(found)
    if scheme == "http":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    name = {"profile": "ca_bundle in the profile", "settings": "verify in FSSPEC_S3"}.get(by, by)
    if by == "profile":
        configure(tmp_path / "config", monkeypatch, ca_bundle=str(bundle))
    elif by == "settings":
        own_settings(monkeypatch, client_kwargs={"verify": str(bundle)})
    else:
        monkeypatch.setenv(by, str(bundle))
    assert f"{name}: expected a file of certificates in PEM, found {bundle} (" in refused(place)
    assert not private.log


# regions and addresses


@pytest.mark.parametrize("names_region", ["header", "body"])
def test_a_bucket_in_another_region_is_found_there(place: str, front: FrontS3, names_region: str) -> None:
    front.region, front.names_region = "eu-west-3", names_region
    use(place)
    rejected = [entry for entry in front.log if entry["status"] in (301, 400)]
    by_obstore = [entry for entry in front.log if "object_store" in entry["agent"]]
    assert bool(by_obstore) != connection.fork.is_obstore_lost
    assert all(entry["region"] == "eu-west-3" for entry in by_obstore)  # it goes there straight away
    assert len(rejected) <= 1 + len(FILES)  # the first contact, and what s3fs writes at first


def test_a_region_that_is_not_said_is_one_line(place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch) -> None:
    front.region, front.names_region = "eu-west-3", ""
    said = refused(place)
    assert "the region 'us-east-1' is wrong; name the region of the bucket by AWS_DEFAULT_REGION" in said
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    use(place)


@pytest.mark.parametrize("by", ["profile", "settings"])
def test_buckets_may_be_in_the_name_of_the_host(
    place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    """The names are not looked up: the requests go through a proxy."""
    front.domain = "store.test"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.test")
    monkeypatch.setenv("HTTP_PROXY", front.endpoint)
    monkeypatch.setenv("http_proxy", front.endpoint)
    if by == "profile":
        configure(tmp_path / "config", monkeypatch, s3="\naddressing_style = virtual")
    else:
        own_settings(monkeypatch, config_kwargs={"s3": {"addressing_style": "virtual"}})
    use(place)
    assert {entry["host"] for entry in front.log} == {"others.store.test"}


def test_an_endpoint_may_have_a_path(place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{front.endpoint}/")
    use(place)


# proxies


@pytest.mark.parametrize("by", ["environment", "settings"])
def test_a_proxy_is_used(place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.test")
    if by == "environment":
        monkeypatch.setenv("HTTP_PROXY", front.endpoint)
        monkeypatch.setenv("http_proxy", front.endpoint)
    else:
        own_settings(monkeypatch, config_kwargs={"proxies": {"http": front.endpoint}})
    use(place)
    assert all(entry["is_proxied"] for entry in front.log)


def test_tls_goes_through_a_proxy(
    place: str,
    private: FrontS3,
    front_as_proxy: FrontS3,
    certificates: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificates[0]))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, front_as_proxy.endpoint)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    use(place)
    assert {entry["method"] for entry in front_as_proxy.log} == {"CONNECT"}
    n_tunnels = len(front_as_proxy.log)
    assert n_tunnels
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, HOST)
    use(f"{place}/straight")
    assert len(front_as_proxy.log) == n_tunnels
    assert private.log


@pytest.fixture
def front_as_proxy(s3_server: S3Server) -> Iterator[FrontS3]:
    with FrontS3(s3_server.endpoint, *keys_of(s3_server)) as front:
        yield front


def test_a_proxy_that_is_not_there_is_one_line(place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.test")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://{HOST}:9")
    said = refused(place)
    assert "proxy" in said.lower()
    assert f"{HOST}:9" in said
    assert not front.log


# what stores demand, and what they do not know


def test_the_requester_pays_where_the_settings_say_so(
    place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.needs = {method: {"x-amz-request-payer": "requester"} for method in ("GET", "HEAD", "PUT", "POST")}
    assert "permission denied (AccessDenied: Access Denied: x-amz-request-payer must be requester)" in refused(place)
    own_settings(monkeypatch, requester_pays=True)
    use(place)


def test_objects_are_encrypted_by_the_key_of_the_settings(
    place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.needs = {
        "PUT": {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "k7"}
    }
    with pytest.raises(InfrastructureError, match=r"AccessDenied.* x-amz-server-side-encryption must be aws:kms"):
        storage.write_many(place, FILES)
    own_settings(monkeypatch, s3_additional_kwargs={"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k7"})
    use(place)


def test_a_store_that_knows_no_checksums(
    place: str, private: FrontS3, certificates: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificates[0]))
    private.takes_checksums = False
    with pytest.raises(InfrastructureError, match=r"TRAILER is not supported; set AWS_REQUEST_CHECKSUM_CALCULATION"):
        storage.write_many(place, FILES)
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, "when_required")
    storage.write_many(place, FILES)
    assert dict(storage.read_many(place, storage.listing(place))) == FILES


def test_a_public_store_is_read_without_credentials(
    place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(place)
    front.keys, front.refusal = {"": ""}, (403, "AccessDenied")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(InfrastructureError, match=r"set AWS_PROFILE.*FSSPEC_S3_ANON=true for a public bucket"):
        storage.listing(place)
    own_settings(monkeypatch, anon=True)
    assert dict(storage.read_many(place, storage.listing(place))) == {name: FILES[name] for name in ("01", "02", "03")}


def test_an_object_in_an_archive_costs_itself(place: str, front: FrontS3) -> None:
    storage.write_many(place, FILES)
    front.archived = {"02"}
    entries = storage.listing(place)
    with pytest.raises(storage.UnreadableFile, match=r"/02.*InvalidObjectState.*restore it, or copy it"):
        dict(storage.read_many(place, entries))
    found = dict(storage.read_each(place, entries))
    assert isinstance(found.pop("02"), storage.UnreadableFile)
    assert found == {name: content for name, content in FILES.items() if name in found}
    assert len(found) == len(entries) - 1
    front.archived = set(FILES)
    all_of_them = list(storage.read_each(place, entries))
    assert [name for name, _ in all_of_them] == [entry.name for entry in entries]
    assert all(isinstance(content, storage.UnreadableFile) for _, content in all_of_them)


@pytest.mark.slow
def test_a_patient_in_an_archive_costs_itself(place: str, front: FrontS3, tmp_path: Path) -> None:
    scans = tiny.write_patients(tmp_path / "in", ["a", "b", "c"])
    for name in "abc":
        storage.write_many(f"{place}/{name}", {f"{name}-{f.name}": f.read_bytes() for f in Path(scans, name).iterdir()})
    front.archived = {f"b-{min(f.name for f in Path(scans, 'b').iterdir())}"}
    account = dskprep.run(place, str(tmp_path / "out")).account
    assert (account.counts["written"], account.counts["failed"]) == (2, 1)
    record = dskprep.open_dataset(str(tmp_path / "out")).index.set_index("key").loc["b"]
    assert (record["status"], record["reason"]) == ("failed", "InfrastructureError")
    assert "InvalidObjectState" in record["message"]
    assert "restore it" in record["message"]
    front.archived = set()
    again = dskprep.run(place, str(tmp_path / "out"), retry="failed").account
    assert (again.counts["written"], again.counts["failed"]) == (3, 0)


# settings of the user's own


def test_own_settings_go_before_ours_but_for_the_cache(
    place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none-of-mine")
    own_settings(
        monkeypatch,
        endpoint_url=front.endpoint,
        use_listings_cache=True,
        client_kwargs={"region_name": "eu-west-3", "aws_access_key_id": key, "aws_secret_access_key": secret},
        config_kwargs={"user_agent_extra": "of-my-own"},
    )
    use(place)
    assert {(entry["key"], entry["region"]) for entry in front.log} == {(key, "eu-west-3")}
    assert any("of-my-own" in entry["agent"] for entry in front.log)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"anon": "False"}, "FSSPEC_S3: expected true or false for anon, found 'False'"),
        ({"config_kwargs": "x"}, "FSSPEC_S3: expected a JSON object for config_kwargs, found another"),
        ({"secret": "x", "key": 5}, "FSSPEC_S3: expected a text for key, found a value of type int"),
        ({"client_kwargs": {"aws_secret_access_key": ["x"]}}, "aws_secret_access_key in client_kwargs, found a value"),
        ({"config_kwargs": {"read_timeuot": 5}}, "read_timeuot"),
        ({"nonsense": 1}, "nonsense"),
        ({"profile": "nobody"}, "The config profile (nobody) could not be found; set AWS_PROFILE"),
        ({"s3_additional_kwargs": {"SSECustomerKey": "x"}}, "keys of your own (SSE-C) are not supported"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(
    place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str
) -> None:
    own_settings(monkeypatch, **settings)
    assert said in refused(place)
    assert not front.log


@pytest.mark.parametrize("value", ['{"key": "hush",}', '["hush"]'])
def test_settings_that_are_no_json_object_are_one_line(
    place: str, front: FrontS3, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """They may name the key of KMS, without which nothing may be written."""
    monkeypatch.setenv("FSSPEC_S3", value)
    said = refused(place)
    assert "FSSPEC_S3: expected a JSON object, found none; correct it, or unset it" in said
    assert "hush" not in said
    assert not front.log


# requests


def test_parts_that_lie_close_come_in_one_request_and_those_far_apart_do_not(place: str, front: FrontS3) -> None:
    content = np.random.default_rng(0).bytes(4_000_000)
    storage.write_many(place, {"object": content})
    ranges = [(900, 950), (100, 200), (150, 180), (5000, 5001), (3_900_000, 3_900_100), (3_900_100, 3_900_200)]
    front.log.clear()
    assert storage.read_ranges(f"{place}/object", ranges) == [content[start:end] for start, end in ranges]
    assert len([entry for entry in front.log if entry["method"] == "GET"]) == 2
