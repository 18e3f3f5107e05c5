"""What four readers say of the nodules of a phantom, as the XML of LIDC-IDRI."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from dskprep.synthetic.phantom import Nodule, Phantom

READERS = 4
RATINGS = "subtlety internalStructure calcification sphericity margin lobulation spiculation texture malignancy".split()
"""The nine ratings, in the order of the files."""
LEAST_MM = 3.0
"""Diameter from which on a nodule is outlined and rated; a smaller one is only a point."""


def readings_xml(phantom: Phantom, series_uid: str, *, seed: int) -> bytes:
    """Return the readings of a series. Readers differ by about a pixel; the fourth overlooks every third nodule."""
    rng = np.random.default_rng([seed, 8])
    root = ElementTree.Element("LidcReadMessage", uid="1.3.6.1.4.1.14519.5.2.1", xmlns="http://www.nih.gov")
    header = ElementTree.SubElement(root, "ResponseHeader")
    ElementTree.SubElement(header, "SeriesInstanceUid").text = series_uid
    for reader in range(READERS):
        session = ElementTree.SubElement(root, "readingSession")
        for number, nodule in enumerate(phantom.nodules):
            if reader < READERS - 1 or number % 3:
                _add_nodule(session, phantom, nodule, f"nodule {number + 1}", rng)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _add_nodule(
    session: ElementTree.Element, phantom: Phantom, nodule: Nodule, name: str, rng: np.random.Generator
) -> None:
    """Add what one reader says of a nodule."""
    mark = ElementTree.SubElement(session, "unblindedReadNodule")
    ElementTree.SubElement(mark, "noduleID").text = name
    volume = phantom.volume
    slice_mm, row_mm, _ = volume.spacing
    k, row, column = volume.to_index(nodule.center_mm)
    radius_mm = max(nodule.radius_mm + rng.normal(0, 0.3 * row_mm), row_mm)
    is_small = 2 * nodule.radius_mm < LEAST_MM
    if not is_small:
        ratings = ElementTree.SubElement(mark, "characteristics")
        for rating in RATINGS:
            ElementTree.SubElement(ratings, rating).text = str(int(rng.integers(1, 6)))
    reach = 0 if is_small else int(radius_mm / slice_mm)
    for slice_ in range(max(0, round(k) - reach), min(len(volume.array) - 1, round(k) + reach) + 1):
        beyond_mm = abs(slice_ - k) * slice_mm
        radius = 0.0 if is_small else np.sqrt(max(radius_mm**2 - beyond_mm**2, 0.0)) / row_mm
        pixels = [(round(column), round(row))] if is_small else _circle(row, column, max(radius, 1.0) + 1)
        _add_outline(mark, float(volume.to_patient((slice_, 0, 0))[2]), pixels)


def _circle(row: float, column: float, radius: float) -> list[tuple[int, int]]:
    """Return the pixels (column, row) along a circle, one after another; the nodule lies inside of them."""
    angles = np.arange(0, 2 * np.pi, 0.2 / radius)
    path: NDArray[np.int64] = np.rint(
        np.stack([column + radius * np.cos(angles), row + radius * np.sin(angles)], axis=1)
    ).astype(np.int64)
    is_new = np.r_[True, (np.diff(path, axis=0) != 0).any(1)]
    return [(int(x), int(y)) for x, y in path[is_new]]


def _add_outline(mark: ElementTree.Element, z_mm: float, pixels: list[tuple[int, int]]) -> None:
    outline = ElementTree.SubElement(mark, "roi")
    ElementTree.SubElement(outline, "imageZposition").text = f"{z_mm:.4f}"
    ElementTree.SubElement(outline, "imageSOP_UID").text = ""
    ElementTree.SubElement(outline, "inclusion").text = "TRUE"
    for x, y in pixels:
        edge = ElementTree.SubElement(outline, "edgeMap")
        ElementTree.SubElement(edge, "xCoord").text = str(x)
        ElementTree.SubElement(edge, "yCoord").text = str(y)
