"""Batches of random patches, read ahead: those of a volume at once, each of its chunks fetched and decoded once.

A window is a run of patches that are read together. Threads fetch the chunks that its patches touch, by ranged reads,
decode them, and copy each into all patches that it touches; then it is dropped. The next window is read while batches
are made of the last one. Requests and decoding release the GIL, so all this goes on beside a training step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dskprep.dataset.ahead import ahead
from dskprep.dataset.shards import Array, Target
from dskprep.errors import UsageError
from dskprep.reading.item_columns import ItemColumns
from dskprep.reading.normalized import normalize_into
from dskprep.storage.threads import Threads

if TYPE_CHECKING:
    from dskprep.reading.draws import AnyPatch, Draws, Spot
    from dskprep.reading.training import TorchStream

Batch = dict[str, Any]

THREADS = 16
"""Requests and chunks at once."""
REQUEST_BYTES = 2**22
"""Bytes of chunks after which a further request is made: others are decoded meanwhile."""
MAX_BATCHES = 10**9
"""Most batches before the one that a stream goes on with; their windows are counted one by one."""
WINDOWS = 3
"""That are in memory at once: one is read, one is read or made into batches, and the last batches of one before."""


@dataclass(frozen=True, eq=False)
class Stream:
    """An endless sequence of batches of random patches.

    A batch is a dictionary. `image` and each mask are arrays (patches, 1, z, y, x), `key` is a list, `center_mm`
    (patches, 3) is in LPS mm (x, y, z); `is_positive` and the columns of joined tables are as in the items of
    `as_torch`. `state` is a small dictionary for JSON: a stream that is made with `resume=state` goes on after that
    batch, with the very same patches.

    The order depends on the seed and on the numbers that the stream was made with, never on `memory` or threads. The
    patches are those of `draws`, one after another. Iterating again begins anew.

    Attributes
    ----------
    draws
        The patches, so ordered that those of a few volumes come together.
    batch, memory, resume
        As in `Draws.stream`.

    Examples
    --------
    >>> for batch in dataset.stream(64, 16, seed=1):  # doctest: +SKIP
    ...     loss = step(batch["image"], batch["lungs"])
    ...     save(model, batch["state"])
    >>> stream = dataset.stream(64, 16, seed=1, resume=state)  # doctest: +SKIP
    """

    draws: Draws[AnyPatch]
    batch: int
    memory: int
    resume: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"expected batches of one patch or more, found {self.batch}")
        ItemColumns(self.draws, "state")
        if self.resume is not None:
            self._check(self.resume)

    def _check(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise UsageError(f"expected the state of a batch, a dictionary, found {state!r:.40}")
        if state.get("of") != self._digest:
            raise UsageError("the state is that of another stream: its dataset, seed, size or options are others")
        for name, least in (("batches", 0), ("parts", 1)):
            n = state.get(name)
            if not isinstance(n, (int, np.integer)) or not least <= n <= MAX_BATCHES:
                raise UsageError(f"expected {least} to {MAX_BATCHES} as {name} of the state, found {n!r:.40}")

    def __repr__(self) -> str:
        begins = f", from batch {self.resume['batches']} on" if self.resume else ""
        return f"<Stream: batches of {self.batch} of {self.draws!r}{begins}>"

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(self.n_done(parts=1))

    def n_done(self, parts: int) -> int:
        """Return how many batches lie before the first one. Raises UsageError if the state is of other workers."""
        state = self.resume or {"batches": 0, "parts": parts}
        if state["parts"] != parts:
            raise UsageError(f"the state is that of a stream read in {state['parts']} parts, not {parts}: take as many")
        return int(state["batches"])

    def state(self, n_batches: int, parts: int) -> dict[str, Any]:
        """Return the state after so many batches of all parts together."""
        return {"batches": n_batches, "parts": parts, "of": self._digest}

    def as_torch(self, n: int, *, rank: int = 0, ranks: int = 1) -> TorchStream:
        """Return a `torch.utils.data.IterableDataset` of `n` batches per epoch: see `TorchStream`.

        Raises UsageError if torch is not installed.
        """
        try:
            from dskprep.reading.training import TorchStream
        except ImportError as error:
            raise UsageError("torch is not installed: see pytorch.org for the build that fits your machine") from error
        return TorchStream(self, n, rank, ranks)

    def batches(self, n_done: int, part: int = 0, parts: int = 1, workers: int = 1) -> Iterator[Batch]:
        """Yield the batches of one part after the first `n_done` of it; it has each `parts`-th window.

        The memory is that of so many workers together. Raises DamagedDataset if an object is gone or damaged.
        """
        patch_bytes = math.prod(self.draws.size) * sum(dtype.itemsize for dtype in self.dtypes.values())
        most = max(1, self.memory // workers // WINDOWS // patch_bytes)
        runs = self._runs(n_done * self.batch, part, parts, most)
        columns, room = ItemColumns(self.draws, "state"), Room(self.dtypes, (most, *self.draws.size))
        reading = Threads(THREADS, "stream")
        filling, making = (Threads(2, "stream") for _ in range(2))
        try:
            windows = ahead(runs, lambda run: filling.submit(Window, self.draws, run, room, reading), 2)
            patches = ((window, place) for window in windows for place in range(len(window.spots)))
            parts_of_batches = iter(lambda: [*itertools.islice(patches, self.batch)], [])
            made = ahead(parts_of_batches, lambda some: making.submit(self._make, some, columns), 2)
            for number, batch in enumerate(made, n_done + 1):
                yield batch | {"state": self.state(number, parts)}
        finally:
            for threads in (reading, filling, making):
                threads.shutdown(cancel_futures=True)

    def _runs(self, skipped: int, part: int, parts: int, most: int) -> Iterator[range]:
        """Yield the numbers that are read at once: windows, or equal pieces of those that memory does not hold."""
        for ordinal in itertools.count(part, parts):
            window = self.draws.window(ordinal)
            n_pieces = -(-len(window) // most)
            ends = [window.start + len(window) * i // n_pieces for i in range(n_pieces + 1)]
            for start, end in itertools.pairwise(ends):
                n_skipped = min(skipped, end - start)
                skipped -= n_skipped
                if start + n_skipped < end:
                    yield range(start + n_skipped, end)

    def _make(self, patches: list[tuple[Window, int]], columns: ItemColumns) -> Batch:
        spots = [window.spots[place] for window, place in patches]
        volumes = [self.draws.volume(spot.key) for spot in spots]
        images = [window.arrays["image"][place] for window, place in patches]
        if self.draws.normalized and volumes[0].is_to_normalize:
            image = np.empty((len(spots), *self.draws.size), np.float32)
            for one, normalized in zip(images, image, strict=True):
                normalize_into(one, normalized)
        else:
            image = np.stack(images)
        masks = {name: np.stack([window.arrays[name][place] for window, place in patches]) for name in self.draws.masks}
        middles = [volume.to_patient(spot.index) for volume, spot in zip(volumes, spots, strict=True)]
        item: Batch = columns.of_batch([spot.key for spot in spots])
        item |= {name: mask[:, None] for name, mask in {"image": image, **masks}.items()}
        item |= {"key": [spot.key for spot in spots], "center_mm": np.stack(middles)}
        return item | {name: np.array([spot.flags[name] for spot in spots]) for name in spots[0].flags}

    @cached_property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        image = self.draws.volume(self.draws.keys[0]).shards().dtype
        return {"image": image} | dict.fromkeys(self.draws.masks, np.dtype(np.uint8))

    @cached_property
    def _digest(self) -> str:
        fields = [(f.name, getattr(self.draws, f.name)) for f in dataclasses.fields(self.draws) if f.name != "dataset"]  # type: ignore[arg-type]
        about = (type(self.draws).__name__, fields, self.draws.keys, self.batch)
        return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


class Room:
    """Memory for windows, used again and again: to get it anew would cost more than to copy voxels into it."""

    def __init__(self, dtypes: dict[str, np.dtype[Any]], shape: tuple[int, ...]) -> None:
        self._dtypes, self._shape = dtypes, shape
        self._free: list[dict[str, NDArray[Any]]] = []

    def take(self, window: Window) -> dict[str, NDArray[Any]]:
        """Return an array for the image and for each mask; they are free again when nobody has the window any more."""
        try:
            arrays = self._free.pop()
        except IndexError:
            arrays = {name: np.empty(self._shape, dtype) for name, dtype in self._dtypes.items()}
        weakref.finalize(window, self._free.append, arrays)
        return arrays


class Window:
    """Patches that are read at once. Creating it reads them, by the threads given."""

    def __init__(self, draws: Draws[AnyPatch], numbers: range, room: Room, threads: Threads) -> None:
        self._draws, self._lock = draws, threading.Lock()
        self.spots = self._find(numbers, threads)
        self.arrays = room.take(self)
        of_volume: dict[str, list[int]] = defaultdict(list)
        for place, spot in enumerate(self.spots):
            of_volume[spot.key].append(place)
        reads = itertools.chain.from_iterable(_map(threads, self._reads, of_volume.items()))
        _map(threads, lambda read: read(), reads)

    def _find(self, numbers: range, threads: Threads) -> list[Spot]:
        """Return where the patches lie; a volume is opened by one thread."""
        of_volume: dict[str, list[int]] = defaultdict(list)
        for number in numbers:
            of_volume[self._draws.home(number)].append(number)
        found = _map(threads, lambda some: [(number, self._draws.spot(number)) for number in some], of_volume.values())
        spots = dict(itertools.chain.from_iterable(found))
        return [spots[number] for number in numbers]

    def _reads(self, of_volume: tuple[str, list[int]]) -> list[Callable[[], None]]:
        """Prepare the patches of a volume; return what is to be called to read them."""
        key, places = of_volume
        volume = self._draws.volume(key)
        firsts = {place: self._draws.first(self.spots[place].index) for place in places}
        reads = self._reads_of(
            volume.shards(), [Target(firsts[place], self.arrays["image"][place]) for place in places]
        )
        for mask, labels in self._draws.stored_masks(volume).items():
            for place in places if labels != ("lungs",) else ():
                self.arrays[mask][place] = 0
            for label in labels:
                touched = [p for p in places if self._draws.touches(volume, label, self.spots[p].index)]
                targets = [Target(firsts[place], self.arrays[mask][place]) for place in touched]
                reads += self._reads_of(volume.shards(label), targets, label) if targets else []
        return reads

    def _reads_of(self, array: Array, targets: list[Target], label: str = "") -> list[Callable[[], None]]:
        is_union = label not in ("", "lungs")
        outside = None if label else self._draws.outside
        if targets and array.dtype != targets[0].box.dtype:  # copied, its values would be cut to those that fit
            raise UsageError(
                f"{array.url}: expected {targets[0].box.dtype}, as in the other volumes, found {array.dtype}; leave it "
                "out, as by `where`"
            )
        pieces = array.pieces(targets, outside, most_bytes=REQUEST_BYTES, is_union=is_union)
        return [partial(array.fill_in, piece, self._lock if is_union else None) for piece in pieces]


def _map(threads: Threads, function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    return [future.result() for future in [threads.submit(function, value) for value in values]]
