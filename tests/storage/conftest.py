"""What all tests of storage share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import s3fs

from dskprep.storage import connection


@pytest.fixture(autouse=True)
def own_connections() -> Iterator[None]:
    """A test opens its own connections, under its limits, and leaves none."""
    s3fs.S3FileSystem.clear_instance_cache()
    connection.fork.connections.clear()
    yield
    s3fs.S3FileSystem.clear_instance_cache()
    connection.fork.connections.clear()
