"""Listings of S3 page by page, by botocore; each answer is looked at before it is believed.

An answer that is no listing, or leaves out where it goes on, would make a folder seem empty, or a part of it the whole.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from dskprep.storage.answers import Hopeless

if TYPE_CHECKING:
    from dskprep.storage.connection import Connection

ROOT = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?>(?><\?.*?\?>|<!--.*?-->)\s*)*<(?:\w+:)?(ListBucketResult|Error)\b", re.DOTALL
)
"""What an answer to a listing begins with."""
SHOWN_CHARACTERS = 60
"""So much is repeated of an answer that is no listing."""


def look_at_listings(client: Any, advice: str) -> None:
    """Let a client of botocore raise Hopeless for what is no listing, with this advice, or has no way to go on."""
    # by this name it comes before what botocore does itself, which is to parse it all, and ask again for what is no XML
    client.meta.events.register("before-parse.*.ListObjectsV2", functools.partial(_read, advice))
    client.meta.events.register("after-call.s3.ListObjectsV2", _check)


def _read(advice: str, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Read the objects of a page, and leave the rest of it to botocore, which takes many times as long for them."""
    body = response_dict["body"]
    if response_dict["status_code"] >= 300:
        return
    found = ROOT.match(body)
    if not found:
        said = " ".join(body[:1000].decode(errors="replace").split())[:SHOWN_CHARACTERS]
        raise Hopeless(
            f"expected a listing (ListBucketResult), found {said or 'nothing'}; a proxy or a page to log in may stand "
            f"before the store: {advice}"
        )
    try:
        root = ElementTree.fromstring(body)
        contents = _objects(root)
    except (ElementTree.ParseError, KeyError, ValueError):
        return  # botocore asks again for half an answer, and knows other words for a time
    if contents:
        response_dict["body"] = ElementTree.tostring(root)
        customized_response_dict["Contents"] = contents


def _objects(root: ElementTree.Element) -> list[dict[str, Any]]:
    """Take the objects out of a listing, and return them as botocore would.

    Raises KeyError or ValueError, and takes none out, if one says less, or in other words, than S3 does.
    """
    space = root.tag.removesuffix("ListBucketResult")  # of the names
    found = root.findall(f"{space}Contents")
    key, size, modified, tag = (space + name for name in ("Key", "Size", "LastModified", "ETag"))
    objects = []
    for each in found:
        said = {part.tag: part.text or "" for part in each}
        time = datetime.fromisoformat(said[modified])
        if time.tzinfo is None:
            raise ValueError
        objects.append({"Key": said[key], "Size": int(said[size]), "LastModified": time, "ETag": said.get(tag, "")})
    root[:] = [each for each in root if each.tag != f"{space}Contents"]
    return objects


def _check(parsed: dict[str, Any], **_: Any) -> None:
    """Some servers answer as to the first kind of listing (ListObjects, V1), which goes on in another way."""
    if parsed.get("IsTruncated") and not parsed.get("NextContinuationToken"):
        raise Hopeless(
            "expected a token in a listing that is not whole, found none (NextContinuationToken), so the rest of it is "
            "not seen; use a server that knows ListObjectsV2"
        )


def pages(s3: Connection, path: str, **more: str) -> Iterator[dict[str, Any]]:
    """Yield what is listed below a folder, as botocore says it.

    Raises Hopeless if the server gives a token that it has given before: it would never come to an end.
    """
    bucket, _, folder = path.partition("/")
    request = {"Bucket": bucket, "Prefix": f"{folder}/" if folder else "", **more}
    tokens: set[str] = set()
    while True:
        page = s3.read(lambda: s3.fs.call_s3("list_objects_v2", **request), path)
        yield page
        if not page.get("IsTruncated"):
            return
        token = page["NextContinuationToken"]
        if token in tokens:
            raise Hopeless(
                "expected another token on each page of a listing, found one for the second time; the server "
                "would list the same objects without end"
            )
        tokens.add(token)
        request["ContinuationToken"] = token
