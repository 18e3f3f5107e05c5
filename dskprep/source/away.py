"""A source that is away, as a disk that was unmounted: no fault of the patients in it, nor of the labels."""

from __future__ import annotations

from dskprep import storage
from dskprep.errors import InfrastructureError


def check(url: str) -> None:
    """Raise InfrastructureError if the folder in which something was listed is gone, or has nothing in it any more.

    An empty folder is what an unmounted disk leaves. A bucket is not asked: one that is away says so itself.
    """
    if storage.is_bucket(url):
        return
    above, *_ = storage.above(url)
    first = next(storage.walk(above), None)
    if first is None or not (first.entries or first.has_subfolders):
        raise InfrastructureError(
            f"{above}: expected {url.rpartition('/')[2]} in it, as it was listed, found "
            f"{'no such folder' if first is None else 'an empty folder'}; mount it or put it back"
        )
