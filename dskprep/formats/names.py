"""Which files are volumes, and which of them hold the voxels of a header, by their names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Names of files that are a volume, or the header of one."""
HEADER_SUFFIXES = (".nhdr", ".mhd")
"""Names of headers whose voxels usually are in a file of their own."""
DATA_SUFFIXES = (".raw", ".zraw", ".raw.gz", ".raw.bz2")
"""Names of the files that hold the voxels of such headers."""


def is_volume(name: str) -> bool:
    return name.lower().endswith(VOLUME_SUFFIXES)


def has_own_header(name: str) -> bool:
    """Tell whether a name is that of a header whose voxels usually are in a file of their own."""
    return name.lower().endswith(HEADER_SUFFIXES)


def is_part(name: str) -> bool:
    """Tell whether a file is a volume or may hold the voxels of one."""
    return name.lower().endswith(VOLUME_SUFFIXES + DATA_SUFFIXES)


def parts_of(names: Iterable[str]) -> set[str]:
    """Return the names of volumes, and, if a header without voxels is among them, of files that may hold these."""
    names = list(names)
    is_wanted = is_part if any(map(has_own_header, names)) else is_volume
    return set(filter(is_wanted, names))


def stem(name: str) -> str:
    """Return a name without the suffix that makes it a volume or its voxels.

    >>> stem("p1/ct.nii.gz"), stem("1.2.840.mhd"), stem("1.2.840.zraw")
    ('p1/ct', '1.2.840', '1.2.840')
    """
    found = [suffix for suffix in VOLUME_SUFFIXES + DATA_SUFFIXES if name.lower().endswith(suffix)]
    return name[: -len(max(found, key=len))] if found else name


def beside(header: str, data_file: str) -> str:
    """Return the name of the voxels that a header names, relative to the same folder as the header's own name.

    >>> beside("scans/a.mhd", "./a.raw"), beside("a.mhd", "../../etc/passwd"), beside("a.mhd", "s3://bucket/a.raw")
    ('scans/a.raw', '', '')
    """
    path = data_file.replace("\\", "/")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(header), path))
    is_elsewhere = "://" in path or path.startswith(("/", "~")) or path[1:2] == ":" or place.startswith("..")
    return "" if is_elsewhere else place
