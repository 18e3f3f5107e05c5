"""Read a label object of any kind."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from pydicom.config import disable_value_validation
from pydicom.uid import UID

from dskprep import storage
from dskprep.dicom.header import read_object
from dskprep.dicom.parts import MAX_INFLATED_BYTES, inflated
from dskprep.dicom.sniff import HEAD_BYTES, begins_as_dicom, compression_of, decompress, decompressed_head
from dskprep.errors import Refusal, UsageError
from dskprep.formats.read import is_volume
from dskprep.labels import outlines
from dskprep.labels.attributes import one_line, refuse_if_more
from dskprep.labels.lidc import Lidc
from dskprep.labels.mask import Mask, check_names
from dskprep.labels.outlines import CLASSES as STRUCTURE_SETS
from dskprep.labels.outlines import MAX_CONTOURS, MAX_ROIS
from dskprep.labels.points import Points
from dskprep.labels.rtstruct import RtStruct
from dskprep.labels.seg import CLASSES as SEGMENTATIONS
from dskprep.labels.seg import MAX_SEGMENTS, Seg
from dskprep.labels.seg_pixels import MAX_FRAMES
from dskprep.labels.values import Labels

OTHER_SEGMENTATIONS = {f"1.2.840.10008.5.1.4.1.1.66.{n}" for n in (5, 8)}
"""SOP classes of segmentations that are labels, and not read: Surface and Height Map Segmentation."""
TABLE_SUFFIXES = (".csv", ".parquet")
"""Names of tables of points."""
ITEMS = {
    b"\x62\x00\x04\x00": (MAX_SEGMENTS, "segments"),  # SegmentNumber
    b"\x20\x00\x13\x91": (MAX_FRAMES, "frames"),  # PlanePositionSequence
    b"\x06\x30\x26\x00": (MAX_ROIS, "ROIs"),  # ROIName
    b"\x06\x30\x50\x00": (MAX_CONTOURS, "contours"),  # ContourData
}
"""Tags, in little endian, that stand once in each item of a sequence, and how many there may be.

They are counted in the bytes first, because pydicom needs a minute for 10^6 items.
"""


def read_labels(source: str | Path | bytes, *, name: str = "", names: Mapping[int, str] | None = None) -> Labels:
    """Read a label object: DICOM SEG or RTSTRUCT, LIDC-IDRI XML, NIfTI, NRRD or MetaImage, CSV or Parquet.

    Which of them it is, is told by its bytes; a table, by its name.

    Parameters
    ----------
    source
        A path or URL, or the bytes themselves.
    name
        What to call the bytes in messages; of a mask volume, also what to call its label.
    names
        Names of the values of a mask volume.

    Returns
    -------
    Labels
        Its `segments`, its `points`, and the `links` to the images that it belongs to. `labels.at(grid)` places it in
        the image whose slices lie on that grid, and `draw(segment, grid)` draws a segment on any grid.

    Raises
    ------
    UsageError
        `names` are none.
    Refusal
        `no-label`, `label-unknown`, `label-damaged`, `label-too-large`, `label-empty`.

    Examples
    --------
    >>> table = dskprep.read_labels(b"seriesuid,coordX,coordY,coordZ\\n1.2.3,-10,20,5.5\\n", name="nodules.csv")
    >>> table.points[["x", "y", "z"]].to_numpy().tolist()
    [[-10.0, 20.0, 5.5]]

    The outlines of LIDC-IDRI are pixels of its slices, and need their grid before they can be drawn on any other.

    >>> series = dskprep.read_series("/data/lidc_0001")  # doctest: +SKIP
    >>> labels = dskprep.read_labels("/data/069.xml").at(series.grid)  # doctest: +SKIP
    >>> labels.draw(labels.named("nodule-1")[0], dskprep.prepare(series).image.grid).ml  # doctest: +SKIP
    6.7
    """
    check_names(names or {})
    if isinstance(source, bytes):
        return _read(source, one_line(name or "the bytes"), names or {})
    url = storage.absolute(source)
    try:
        content = storage.read(url)
    except FileNotFoundError as error:
        raise UsageError(f"{url}: there is no such file; check the path") from error
    return _read(content, one_line(name or Path(str(source)).name), names or {})


def _read(content: bytes, where: str, names: Mapping[int, str]) -> Labels:
    head = content[:HEAD_BYTES]
    if compression_of(head):
        head = decompressed_head(content[: 4 * HEAD_BYTES], HEAD_BYTES)
    if is_volume(head):
        return Mask(content, where, names)
    if begins_as_dicom(head):
        try:
            content = decompress(content, MAX_INFLATED_BYTES) if compression_of(content) else content
        except ValueError as error:
            raise Refusal("label-damaged", f"{where}: cannot be decompressed ({one_line(error)})") from error
        return _read_dicom(content, where)
    if where.lower().endswith(TABLE_SUFFIXES) or head[:4] == b"PAR1":
        return Points(content, where)
    if head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")[:1] == b"<":
        return Lidc(content, where)
    raise Refusal(
        "label-unknown",
        f"{where}: expected DICOM SEG or RTSTRUCT, LIDC-IDRI XML, NIfTI, NRRD, MetaImage, or a table whose name ends "
        f"in .csv or .parquet, found {len(content)} bytes of something else",
    )


def _read_dicom(content: bytes, where: str) -> Labels:
    try:
        content = inflated(content)
        plain = outlines.split(content, where)
        rest = plain[0] if plain else content
        for tag, (most, what) in ITEMS.items():
            refuse_if_more(rest.count(tag), most, what, where)
        header, pixels = read_object(rest)
        kind = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
        with warnings.catch_warnings(action="ignore"), disable_value_validation():
            if kind in SEGMENTATIONS:
                return Seg(header, pixels, where)
            if kind in STRUCTURE_SETS:
                return RtStruct(header, plain[1] if plain else outlines.of_header(header), where)
    except Refusal:
        raise
    except Exception as error:  # whatever a damaged byte leads pydicom to
        raise Refusal("label-damaged", f"{where}: cannot be read as DICOM: {one_line(error)}") from error
    is_known = UID(kind).name != kind and header.get("SOPInstanceUID")  # else its class may be damaged
    is_aside = is_known and kind not in OTHER_SEGMENTATIONS
    reason = "no-label" if is_aside else "label-unknown" if kind else "label-damaged"
    found = f"{one_line(UID(kind).name)} ({one_line(kind)})" if is_known else one_line(kind) or "none"
    raise Refusal(reason, f"{where}: expected a SEG or RTSTRUCT, found an object of class {found}")
