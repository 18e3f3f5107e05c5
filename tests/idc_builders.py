"""Series of the Imaging Data Commons (IDC): real rows of its table, and synthetic files in their place in the buckets.

The literals were read off the table by hand, so that they are a truth of their own.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import NamedTuple

import tiny


class Known(NamedTuple):
    """What the table of IDC says of a series."""

    collection: str
    patient: str
    study: str
    uid: str
    uuid: str
    n_files: int
    bucket: str
    licence: str

    @property
    def key(self) -> str:
        path = (self.collection, self.patient, self.study, self.uid)
        whole, digest = "__".join(path), hashlib.sha256("/".join(path).encode()).hexdigest()
        return whole if len(whole) <= 160 else f"{whole[:151]}_{digest[:8]}"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.uuid}"


MML = Known(
    "cmb_mml",
    "MSB-00440",
    "1.3.6.1.4.1.14519.5.2.1.94990223805180674150137197024366058716",
    "1.3.6.1.4.1.14519.5.2.1.277655583581683229687067163742589025389",
    "d06f7cbd-a519-4540-8670-ca4ef0e59818",
    12,
    "idc-open-data",
    "CC BY 4.0",
)
PD1 = Known(
    "anti_pd_1_lung",
    "PD-1-Lung-00008",
    "1.3.6.1.4.1.14519.5.2.1.3098.5025.250428620518331683410004851932",
    "1.3.6.1.4.1.14519.5.2.1.3098.5025.179676489976506799599635826111",
    "61db97b1-e716-45c5-98d1-1b9bfd2d4be4",
    10,
    "idc-open-data-two",
    "CC BY 3.0",
)
RICORD = Known(
    "midrc_ricord_1a",
    "MIDRC-RICORD-1A-419639-001155",
    "1.2.826.0.1.3680043.10.474.419639.353966238934030118695272640193",
    "1.2.826.0.1.3680043.10.474.419639.824181134122693879457063002765",
    "3b8f11e1-4348-4f6b-8896-e48e89f7eaab",
    10,
    "idc-open-data-cr",
    "CC BY-NC 4.0",
)
"""Its licence does not allow commercial use."""
SEG = "a1e77e5c-299f-49ef-a659-f4484e0cedd2"
"""The UUID of a segmentation of LIDC-IDRI-0001."""
OF_ANOTHER_RELEASE = "ddc6f171-42e7-4dc5-8797-0507382c4785"
"""The UUID of a version of a series that was replaced after release 4."""
GOOGLES = {
    "idc-open-data": "idc-open-data",
    "idc-open-data-two": "idc-open-idc1",
    "idc-open-data-cr": "idc-open-cr",
}


def files(series: Known, seed: int = 0) -> dict[str, bytes]:
    """As many files as a series of IDC has, each under the UUID of an instance, as they lie in a bucket."""
    made = tiny.series(seed, n=series.n_files)
    return {f"{uuid.uuid5(uuid.NAMESPACE_OID, series.uid + name)}.dcm": made[name] for name in made}


def manifest(*series: Known | str) -> bytes:
    """A manifest for s5cmd, as the portal of IDC writes it; of a text, the UUID in the first bucket."""
    urls = [s.url if isinstance(s, Known) else f"s3://idc-open-data/{s}" for s in series]
    head = "# To download the files in this manifest, run\n# s5cmd --no-sign-request run manifest.s5cmd\n"
    return (head + "".join(f"cp {url}/* .\n" for url in urls)).encode()
