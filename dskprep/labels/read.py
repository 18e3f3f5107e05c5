"""Read a label object of any kind."""

from __future__ import annotations

import os
from pathlib import Path

from dskprep import storage
from dskprep.dicom.header import read_object
from dskprep.dicom.sniff import HEAD_BYTES, begins_as_dicom, compression_of, decompress
from dskprep.errors import Refusal
from dskprep.labels import rtstruct, seg
from dskprep.labels.attributes import one_line
from dskprep.labels.values import Labels


def read_labels(content: bytes, where: str) -> Labels:
    if begins_as_dicom(content[:HEAD_BYTES]):
        header, pixels = read_object(content)
        if str(header.get('SOPClassUID')) in rtstruct.CLASSES: return rtstruct.RtStruct(header, where)
        return seg.Seg(header, pixels, where)
