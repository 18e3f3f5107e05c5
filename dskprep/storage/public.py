"""Buckets that anybody may read: those of the Imaging Data Commons (IDC), at Amazon and at Google.

They are read without credentials, each at its own endpoint, whatever is set for other buckets. So a source of IDC and
a target that needs credentials, at another store, go together, and a worker needs nothing but the URL.
"""

from __future__ import annotations

import os
from typing import NamedTuple

VARIABLE = "DSKPREP_IDC_ENDPOINT"
"""The environment variable with the endpoint of a mirror of one's own, which holds the buckets by the same names."""
PUBLIC_BUCKETS = {
    "s3": ("idc-open-data", "idc-open-data-two", "idc-open-data-cr"),
    "gs": ("idc-open-data", "idc-open-idc1", "idc-open-cr", "public-datasets-idc"),
}
"""The buckets by the scheme of their URLs. What Amazon has in the first three, Google has in its first three."""
_ENDPOINTS = {
    "s3": ("https://s3.us-east-1.amazonaws.com", "us-east-1"),
    "gs": ("https://storage.googleapis.com", "auto"),
}
"""Endpoint and region. Google's store speaks the protocol of S3 too (its XML API)."""


class PublicStore(NamedTuple):
    """Where public buckets lie."""

    endpoint: str
    region: str


def store_of(url: str) -> PublicStore | None:
    """Return where the bucket of a URL lies if it is public, else None."""
    scheme, _, place = url.partition("://")
    if place.partition("/")[0] not in PUBLIC_BUCKETS.get(scheme, ()):
        return None
    endpoint, region = _ENDPOINTS[scheme]
    return PublicStore(os.environ.get(VARIABLE) or endpoint, region)
