"""Who and when, without identity: keyed digests of what DICOM calls patients, studies and frames of reference.

The key of a dataset is random and lies in its `identity.json`, written once: with it, whoever knows an identifier can
look it up, and nobody else can try all of them. With the environment variable DSKPREP_IDENTITY_KEY the user's own key
is taken and not stored, so that several datasets agree, or nobody can look anything up once it is thrown away.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hmac
import itertools
import json
import os
import secrets
from collections.abc import Sequence

from dskprep import storage
from dskprep.dataset import store
from dskprep.dataset.record import to_json
from dskprep.errors import DamagedDataset, InfrastructureError, UsageError
from dskprep.keys import FURTHER

FILE = "identity.json"
VARIABLE = "DSKPREP_IDENTITY_KEY"
"""The environment variable with a key of the user's own."""
LEAST_CHARACTERS = 16
"""Fewest characters of such a key."""
HEX_DIGITS = 16
"""Digits of a digest: 64 bits, so that 10 million patients of a dataset have different ones."""
INSTANCE_BYTES = 6
"""Bytes of the digest of a SOPInstanceUID."""
LOOKED_AT = 1000
"""Records of volumes that are looked at for a digest, where the key is gone; those of early versions have none."""
NO_INSTANCE = bytes(INSTANCE_BYTES)
"""What stands in its place where a slice has none."""


class Identities:
    """Makes the digests of a dataset."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def digest(self, kind: str, *identifiers: str) -> str | None:
        """Return the digest of identifiers of that kind, as 16 hexadecimal digits; None if all of them are empty."""
        if not any(identifiers):
            return None
        return self._of(kind, *identifiers).hex()[:HEX_DIGITS]

    def hashed_key(self, key: str) -> str:
        """Return the key, in a dataset with hashed keys, of what would have this key in another one."""
        case, mark, further = key.partition(FURTHER)
        return f"{self.digest('volume', case)}{mark}{further}"

    def instances(self, uids: Sequence[str]) -> str | None:
        """Return the digests of the SOPInstanceUIDs of slices in their order, joined, in base64; None if there is none.

        Where several slices have one UID, as those of a multi-frame object, each is there once, and they are sorted.
        """
        known = [self.instance(uid) for uid in uids if uid]
        in_order = [self.instance(uid) if uid else NO_INSTANCE for uid in uids]
        digests = in_order if len(set(known)) == len(known) else sorted(set(known))
        return base64.b64encode(b"".join(digests)).decode() if known else None

    def instance(self, uid: str) -> bytes:
        """Return the digest of one SOPInstanceUID, as it stands in `instances`."""
        return self._of("instance", uid)[:INSTANCE_BYTES]

    @property
    def fingerprint(self) -> str:
        """What tells keys apart, and does not tell the key."""
        return self._of("key", "dskprep").hex()[:HEX_DIGITS]

    def _of(self, kind: str, *identifiers: str) -> bytes:
        message = "\0".join((kind, *identifiers)).encode(errors="surrogateescape")
        return hmac.digest(self._key, message, "sha256")


def split_instances(instances: str | None) -> set[bytes]:
    """Return the digests that `Identities.instances` has joined."""
    return set(_digests_in(instances)) - {NO_INSTANCE}


def slice_numbers(instances: str | None) -> dict[bytes, int]:
    """Return the index of the slice of each digest; empty if they are sorted, as earlier versions had all of them."""
    digests = _digests_in(instances)
    return {} if digests == sorted(digests) else {digest: k for k, digest in enumerate(digests)}


def _digests_in(instances: str | None) -> list[bytes]:
    joined = base64.b64decode(instances or "")
    return [joined[i : i + INSTANCE_BYTES] for i in range(0, len(joined), INSTANCE_BYTES)]


class _OtherKey(InfrastructureError):
    """The key of the dataset is not known in this process, or it is another one."""


def begin(target: str) -> Identities:
    """Give a dataset its key, if it has none, check that it is the one in use here, and return what `of` does.

    Raises UsageError if the user's key is too short or not that of the dataset; DamagedDataset as `of` does.
    """
    try:
        return of(target)
    except _OtherKey as error:
        raise UsageError(str(error)) from error


@functools.lru_cache(maxsize=8)
def for_run(target: str, run: str | None, fingerprint: str = "") -> Identities:
    """Return what makes the digests of a dataset, read once for each run in a process: see `of`.

    Between two runs a dataset may be deleted, and another one begun in its place, with another key. Raises
    InfrastructureError if what this process sees at the target is not the dataset with the `fingerprint` of the run.
    """
    del run
    if fingerprint and (problem := missed(target, fingerprint)):
        raise InfrastructureError(problem)
    return of(target)


def missed(target: str, fingerprint: str) -> str:
    """Return what is wrong if this process does not see the dataset with that fingerprint at the target, or ""."""
    found = fingerprint_of(target)
    if found == fingerprint:
        return ""
    what = "another dataset" if found else f"no {FILE}"
    return (
        f"{target}: expected the dataset of this run, found {what} on the host {os.uname().nodename}; mount the same "
        "disk there, or give it the same store"
    )


def check_there(target: str) -> None:
    """Raise InfrastructureError if a dataset that has begun in a folder is gone, as where its disk was unmounted.

    A bucket is not asked, where each look is a request.
    """
    if not storage.is_bucket(target) and not storage.exists(storage.join(target, FILE)):
        raise InfrastructureError(
            f"{target}: {FILE} is not there any more; look whether the disk is still mounted, and run again"
        )


def of(target: str) -> Identities:
    """Return what makes the digests of a dataset; it begins with the first of them.

    Raises InfrastructureError if the key is the user's own, and is not known in this process or another one here;
    DamagedDataset if the file cannot be read, or is gone while records have digests.
    """
    where, own = storage.join(target, FILE), os.environ.get(VARIABLE)
    try:
        content = storage.read_metadata(where)
    except FileNotFoundError:
        if _has_digests(target) and not storage.exists(where):
            raise DamagedDataset(
                f"{where}: is gone, and records have digests that were made with its key; put the original back, or "
                "begin another dataset: with another key one patient would count as two"
            ) from None
        key = secrets.token_bytes(32) if own is None else _own_key(own)
        stored = {"key": key.hex()} if own is None else {}
        storage.create(where, to_json({"fingerprint": Identities(key).fingerprint, **stored}))
        content = storage.read_metadata(where)  # another process may have been faster
    return _check(content, where, None if own is None else _own_key(own))


def fingerprint_of(target: str) -> str:
    """Return the fingerprint of the key of a dataset, which tells datasets apart; "" if it has none."""
    try:
        return str(json.loads(storage.read_metadata(storage.join(target, FILE)))["fingerprint"])
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedDataset(f"{target}/{FILE}: is damaged; put the original back") from error


def _check(content: bytes, where: str, own: bytes | None) -> Identities:
    try:
        found = json.loads(content)
        fingerprint, stored = found["fingerprint"], bytes.fromhex(found.get("key", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedDataset(f"{where}: is damaged; put the original back") from error
    if not stored and own is None:
        raise _OtherKey(
            f"{where}: the key of this dataset is its owner's; set {VARIABLE} to it, here and on every worker"
        )
    identities = Identities(stored if own is None else own)
    if identities.fingerprint != fingerprint:
        raise _OtherKey(
            f"{where}: expected the key of fingerprint {fingerprint!s:.32}, found another one"
            f"{'' if own is None else f' in {VARIABLE}'}; set it to the dataset's, or unset it"
        )
    return identities


def _has_digests(target: str) -> bool:
    """Tell whether something was made with a key: the names of volumes, or a digest in the record of one of them.

    The record of what was not written has none, and there may be thousands of those.
    """
    names = store.record_names(target)
    if (first := next(names, None)) is None:
        return False
    if store.has_hashed_keys(target):
        return True
    written = (name for name in itertools.chain([first], names) if name.status == "written")
    for name in itertools.islice(written, LOOKED_AT):
        with contextlib.suppress(DamagedDataset, FileNotFoundError):
            record = store.read_record(target, name)
            if record.patient or record.study or record.frame_of_reference or record.instances:
                return True
    return False


def _own_key(text: str) -> bytes:
    if len(text.strip()) < LEAST_CHARACTERS:
        raise UsageError(f"{VARIABLE}: expected a key of {LEAST_CHARACTERS} characters or more, found a shorter one")
    return text.strip().encode(errors="surrogateescape")
