"""Which patients a source holds: one case per leaf folder, volume file, archive, or row of a manifest; or one file."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from dskprep import storage
from dskprep.dicom.contents import SLICE_SUFFIXES, is_named_otherwise
from dskprep.errors import InfrastructureError, UsageError
from dskprep.formats import names
from dskprep.plain import in_one_line
from dskprep.source import idc, manifest, volumes
from dskprep.source.case import Case, digest, is_key, key_of, unused
from dskprep.source.heads import may_hold_dicom, plain_name, plain_size
from dskprep.source.inputs import ARCHIVE_SUFFIXES, archives, inputs, is_archive, is_hidden, is_marker, is_packed, stem
from dskprep.storage import Entry, Folder

MANIFEST_SUFFIXES = (".csv", ".parquet")
"""Names of files that list cases by key and URL."""
LICENCES = (None, "commercial")
"""Which licences may be asked for: any, or those that allow commercial use."""
MAX_OUTAGES = 20
"""Lines of a manifest in a row whose store fails, before that is the store's fault and not theirs."""


def where(source: str | os.PathLike[str]) -> str:
    """Return the URL of a source; of one in words for the Imaging Data Commons, that of the bucket that is read."""
    return idc.bucket_of(str(source)) if idc.is_in_words(source) else storage.absolute(source)


def cases(source: str, *, patient_folders: bool = False, licence: str | None = None) -> Iterator[Case]:
    """Yield the cases of a folder, an archive, or a manifest with the columns `key` and `url`, in a stable order.

    In a folder each leaf folder of DICOM files is a case, and each volume file; with `patient_folders` each folder
    directly in the source is one, with all below it. Of the other folders, those are cases in which some file may be
    DICOM. Each archive is a case of its own, and so is a source that is one DICOM or volume file, and each series that
    is asked for of the Imaging Data Commons (see `idc`). With the licence `commercial`, series are refused whose
    licence does not allow commercial use. Raises UsageError for an invalid manifest or another file,
    InfrastructureError if the source cannot be listed.
    """
    if licence not in LICENCES:
        raise UsageError(f"licence must be commercial, not {licence!r:.80}")
    found = _cases(source, patient_folders=patient_folders)
    return idc.commercial_only(found, source) if licence else found


def _cases(source: str, *, patient_folders: bool) -> Iterator[Case]:
    if patient_folders and (idc.is_in_words(source) or idc.is_manifest(source)):
        raise UsageError(f"{source:.200}: has series and no folders of patients; leave --patient-folders out")
    if idc.is_in_words(source):
        return idc.in_words(source)
    source = storage.absolute(source)
    if is_file(source, (idc.S5CMD_SUFFIX,)):
        return idc.in_manifest(source)
    if is_file(source, MANIFEST_SUFFIXES):
        lines = manifest.read(source)
        if isinstance(lines, manifest.Cohort):
            return idc.in_cohort(source, *lines)
        return _from_manifest(source, lines)
    if is_packed(source):
        return _from_archive(source)
    if not storage.is_folder(source) and (entry := storage.entry_of(source)):
        return _from_file(source, entry)
    return _from_tree(source, patient_folders=patient_folders)


def choose(
    source: str,
    *,
    only: str | None = None,
    limit: int | None = None,
    patient_folders: bool = False,
    licence: str | None = None,
) -> Iterator[Case]:
    """Return the cases of the source that are asked for. Raises UsageError at once if there are none."""
    found = cases(source, patient_folders=patient_folders, licence=licence)
    first = next(found, None)
    if first is None and not storage.exists(source):
        raise UsageError(f"{source}: there is no such folder; check the path")
    if first is None:
        raise UsageError(f"{source}: holds no patients; expected DICOM files, archives, volume files or a manifest")
    found = (c for c in itertools.chain([first], found) if only is None or fnmatch.fnmatchcase(c.key, only))
    first = next(found, None)
    if first is None:
        raise UsageError(f"no patient of {source} matches {only!r}")
    return itertools.islice(itertools.chain([first], found), limit)


def only_case(place: str | os.PathLike[str]) -> Case:
    """Return the one case of a folder, archive or file. Raises UsageError if it is none or several, or a dataset."""
    url = storage.absolute(place)
    if storage.exists(storage.join(url, "dataset.json")):
        raise UsageError(f"{place}: is a dataset; name the KEY of a volume in it too")
    if not storage.exists(url):
        raise UsageError(f"{place}: there is no such folder; check the path")
    found = list(itertools.islice(cases(url), 3))
    if len(found) != 1:
        such = f", such as {', '.join(case.url for case in found)}" if found else ""
        raise UsageError(
            f"{place}: expected one folder or archive of DICOM files, or one volume, found "
            f"{'several' if found else 'none'}{such}"
        )
    return found[0]


def is_file(url: str, suffixes: tuple[str, ...]) -> bool:
    """Tell whether a URL ends in one of the suffixes and is no folder of that name."""
    return url.lower().endswith(suffixes) and not storage.is_folder(url)


def files_of(url: str, *, is_archive: bool = False, is_deep: bool = False, is_single: bool = False) -> list[Entry]:
    """List the files of a case: an archive or a single file itself, or the entries of a folder that may be DICOM files.

    Beside the header of a volume is the file of its voxels. With `is_deep`, the subfolders of the folder count too,
    and volume files. The list is empty if there is nothing at the URL.
    """
    if is_single and names.has_own_header(url):
        return volumes.files_at(url)
    if is_archive or is_single:
        entry = storage.entry_of(url)
        return [entry] if entry else []
    if is_deep:
        return inputs(storage.listing_below(url))
    return volumes.split(url, inputs(storage.listing(url)))[1]


def typical(entries: Iterable[Entry]) -> Entry | None:
    """Return the file of median size among those not named as something else: most likely a slice."""
    found = sorted((plain_size(e), e.name, e) for e in entries if not is_named_otherwise(plain_name(e.name)))
    return found[len(found) // 2][-1] if found else None


def _case(
    key: str,
    url: str,
    entries: list[Entry],
    *,
    is_archive: bool = False,
    is_deep: bool = False,
    is_single: bool = False,
) -> Case:
    n_bytes, sample = sum(e.size for e in entries), typical(entries)
    return Case(key, url, digest(entries), len(entries), n_bytes, is_archive, is_deep, is_single, sample=sample)


def _from_tree(source: str, *, patient_folders: bool) -> Iterator[Case]:
    used: set[str] = set()
    folders = storage.walk(source)
    for folder in _whole(folders) if patient_folders else folders:
        if folder.path.endswith("/") or (patient_folders and folder.path.startswith("/")):
            yield from _nameless(folder, source, used)
        elif not is_hidden(folder.path):
            yield from _in_folder(folder, source, used, is_deep=patient_folders and bool(folder.path))


def _nameless(folder: Folder, source: str, used: set[str]) -> Iterator[Case]:
    """Yield a case that tells of a folder in a bucket without a name, to which no URL leads, if there are files."""
    if inputs(folder.entries) or archives(folder.entries):
        url = f"{source}/{folder.path if folder.path == '/' else f'{folder.path}/'}{folder.entries[0].name}"
        problem = f"{url}: expected a name of each folder, found nothing between two slashes; rename the object"
        yield Case(unused(key_of(folder.path), folder.path, used), url, digest([]), 0, 0, problem=problem)


def _whole(folders: Iterable[Folder]) -> Iterator[Folder]:
    """Merge each folder directly in the source with all folders below it, which come one after another."""
    for top, group in itertools.groupby(folders, key=lambda folder: _top_of(folder.path)):
        entries: list[Entry] = []
        for folder in group:
            below = f"{folder.path[len(top) + 1 :]}/" if folder.path != top else ""
            entries += [e._replace(name=below + e.name) for e in folder.entries]
        yield Folder(top, tuple(sorted(entries)), has_subfolders=False)


def _top_of(path: str) -> str:
    """Return the folder directly in the source that a folder lies in; of one without a name, the folder itself."""
    return path if path.startswith("/") else path.partition("/")[0]


def _in_folder(folder: Folder, source: str, used: set[str], *, is_deep: bool) -> Iterator[Case]:
    url = storage.join(source, folder.path) if folder.path else source
    entries, found = inputs(folder.entries), list[volumes.Volume]()
    if not is_deep:
        found, entries = volumes.split(url, entries)
    packed = archives(folder.entries)
    if folder.path and not (folder.has_subfolders or packed or found):
        is_case = not folder.entries or not all(is_marker(e.name) for e in folder.entries)
    else:  # what lies beside the patients is no patient, unless it is a scan
        is_case = may_hold_dicom(url, entries)
    if is_case:
        name = folder.path or PurePosixPath(source).name or "source"
        yield _case(unused(key_of(name), folder.path, used), url, entries, is_deep=is_deep)
    for volume in found:
        path = f"{folder.path}/{volume[0].name}" if folder.path else volume[0].name
        key = unused(key_of(names.stem(path)), path, used)
        yield _case(key, storage.join(source, path), list(volume), is_single=True)
    for entry in packed:
        path = f"{folder.path}/{entry.name}" if folder.path else entry.name
        key = unused(key_of(stem(path)), path, used)
        yield _case(key, storage.join(source, path), [entry], is_archive=True)


def _from_archive(source: str) -> Iterator[Case]:
    entry = storage.entry_of(source)
    if entry is None:
        raise UsageError(f"{source}: there is no such file")
    yield _case(key_of(stem(entry.name)), source, [entry], is_archive=True)


def _from_file(source: str, entry: Entry) -> Iterator[Case]:
    if names.is_volume(source):
        yield _case(key_of(names.stem(entry.name)), source, files_of(source, is_single=True), is_single=True)
        return
    if not may_hold_dicom(source.rpartition("/")[0], [entry]):
        raise UsageError(
            f"{source}: expected a folder, an archive ({' '.join(ARCHIVE_SUFFIXES)}), a manifest "
            f"({' '.join(MANIFEST_SUFFIXES)}), a volume ({' '.join(names.VOLUME_SUFFIXES)}) or a DICOM file, found a "
            "file of another kind"
        )
    name = PurePosixPath(plain_name(entry.name))
    key = key_of(name.stem if name.suffix.lower() in SLICE_SUFFIXES else name.name)
    yield _case(key, source, [entry], is_single=True)


def _from_manifest(source: str, lines: list[manifest.Line]) -> Iterator[Case]:
    """Yield the case of each line.

    A store that fails for all lines, or for many in a row, is no fault of theirs: raises InfrastructureError.
    """
    for key, *_ in lines:
        if not is_key(key):
            raise UsageError(
                f"{source}: the key {key!r:.200} cannot name a volume; use letters, digits and . _ = @ , -"
            )
    has_own_line: set[str] | None = None
    held: list[Case] = []  # until one line could be listed
    is_any_listed, n_in_a_row = False, 0
    for key, path, header in lines:
        case, outage = _from_line(source, key, path)
        if case.left_out:
            has_own_line = _own_archives(source, lines) if has_own_line is None else has_own_line
            left_out = tuple(name for name in case.left_out if storage.join(case.url, name) not in has_own_line)
            case = replace(case, left_out=left_out)
        case = replace(case, header=header)
        n_in_a_row = n_in_a_row + 1 if outage else 0
        is_any_listed |= not outage
        held.append(case)
        if n_in_a_row == MAX_OUTAGES or (outage and not is_any_listed and len(held) == len(lines)):
            raise InfrastructureError(
                f"{source}: expected folders and archives, found {n_in_a_row} lines in a row that cannot be "
                f"listed, the last one: {outage}; mend it, and run again"
            ) from outage
        if is_any_listed:
            yield from held
            held.clear()


def _from_line(source: str, key: str, path: str) -> tuple[Case, InfrastructureError | None]:
    """Return the case of a line of a manifest, and the error of its store if that cannot be listed."""
    url = _beside(source, path)
    try:
        url = storage.absolute(url)
        if is_packed(url):
            return _case(key, url, files_of(url, is_archive=True), is_archive=True), None
        listed = list(storage.listing_below(url))
        if not listed and (entries := files_of(url, is_single=True)):
            return _case(key, url, entries, is_single=True), None
        left_out = tuple(entry.name for entry in archives(listed))
        return replace(_case(key, url, inputs(listed), is_deep=True), left_out=left_out), None
    except Exception as error:  # a path that is none; and other file systems than ours raise whatever they like
        url = url if len(url) <= storage.MAX_CHARACTERS else f"{url[:200]}…"
        said = in_one_line(error) or type(error).__name__
        problem = f"{said if url in said else f'{url}: {said}'}; correct this line of the manifest, or mend its store"
        outage = error if isinstance(error, InfrastructureError) else None
        return Case(key, url, digest([]), 0, 0, problem=problem), outage


def _own_archives(source: str, lines: list[manifest.Line]) -> set[str]:
    """Return the URLs of the archives that have lines of their own."""
    found: set[str] = set()
    for _, path, _ in lines:
        if is_archive(path):
            with contextlib.suppress(UsageError):  # it costs its own line
                found.add(storage.absolute(_beside(source, path)))
    return found


def _beside(source: str, path: str) -> str:
    """Return the URL that a path in a manifest means."""
    return path if "://" in path or path.startswith("/") else storage.join(source.rpartition("/")[0], path)
