"""What a store cannot do, as errors of one line that name the place."""

from __future__ import annotations

import errno
import re

from dskprep.errors import InfrastructureError
from dskprep.plain import in_one_line
from dskprep.storage import local


class UnreadableFile(InfrastructureError):
    """One file cannot be read, while others of its folder may be.

    Of a bucket it is one in an archive, such as Glacier. What else refuses one object there, such as a policy, mostly
    refuses all of them, and nothing tells the two apart.
    """


def of_store(url: str, error: OSError) -> InfrastructureError:
    """Return the error to be raised for one that was met in the store of a URL."""
    where, why = _told(url, error)
    words = f"{where}: {why or error.strerror}"
    if isinstance(error, PermissionError) or error.errno in (errno.EACCES, errno.EPERM):
        words = f"{where}: permission denied{why and f' ({why})'}; check the credentials and the path's rights"
    return UnreadableFile(words) if isinstance(error, local.OneFile) else InfrastructureError(words)


def _told(url: str, error: OSError) -> tuple[str, str]:
    """Return where an error happened and what it says besides its kind: no path twice, and no name of a `.part`."""
    if not isinstance(error.filename, str) or not error.strerror:
        return url, in_one_line(error)
    path = re.sub(f"{local.UNFINISHED}$", "", error.filename)
    shorter, longer = sorted((path.rstrip("/") + "/", url.rstrip("/") + "/"), key=len)
    return (path, "") if longer.startswith(shorter) else (url, f"{error.strerror}: {path}")
