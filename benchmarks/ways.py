"""Ways to do one patient: the presets of dskprep, the recipes of 2017 straight from their rules, other libraries."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np

if TYPE_CHECKING:
    from dskprep.preparation.prepared import Prepared
    from dskprep.series.series import Series
    from dskprep.settings import PrepConfig


@dataclass
class Found:
    """What a way has made: an image, a mask, or neither yet; and what is needed to write them."""

    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    ml: float | None = None
    to_write: Any = None
    is_refused: bool = False


class Clock:
    """CPU seconds by stage, those of a stage within another the inner one's; stands in for dskprep's Stopwatch."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self._within = [0.0]

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        self._within.append(0.0)
        yield
        took = time.process_time() - start
        self.cpu[stage] = self.cpu.get(stage, 0.0) + took - self._within.pop()
        self._within[-1] += took

    def check(self) -> None:
        """Nothing is given up."""


Compute = Callable[[Path, Clock], Found]
Write = Callable[[Found, Path, Clock], None]


@dataclass(frozen=True)
class Way:
    """`load` imports what it needs, and returns how to compute and how to write (None: it only computes)."""

    load: Callable[[], tuple[Compute, Write | None]]
    against: str = ""
    """The way of 2017 that it is compared with."""
    is_slow: bool = False
    needs: str = ""


def prepared(folder: Path, settings: PrepConfig, clock: Clock) -> tuple[Prepared, Series]:
    """A folder's series, and what dskprep makes of it."""
    from dskprep.preparation import prepare
    from dskprep.source.found import read_series

    with clock("read"):
        read = read_series(str(folder), settings)
    return prepare.prepare(read, settings, clock), read  # type: ignore[arg-type]


def preset_way(name: str) -> Callable[[], tuple[Compute, Write]]:
    def load() -> tuple[Compute, Write]:
        from dskprep import settings as config
        from dskprep import storage
        from dskprep.dataset import omezarr

        settings = config.preset(name)

        def compute(folder: Path, clock: Clock) -> Found:
            made, _ = prepared(folder, settings, clock)
            if made.lungs is None:
                return Found(made.image.array, to_write=made)
            mask = made.lungs.mask
            return Found(made.image.array, mask.array, mask.voxel_ml * np.count_nonzero(mask.array), made)

        def write(found: Found, target: Path, clock: Clock) -> None:
            with clock("encode"):
                objects = omezarr.encode(found.to_write, settings, {})
            with clock("write"):
                storage.write_many(str(target), objects)

        return compute, write

    return load


def load_task() -> tuple[Compute, Write]:
    """All that a worker does: also listing, thumbnail, SHA-256 of every object, and the record."""
    from dskprep import settings as config
    from dskprep.source import cases
    from dskprep.worker import patient

    settings = config.preset("default")

    def compute(folder: Path, clock: Clock) -> Found:  # noqa: ARG001
        (case,) = (c for c in cases.cases(str(folder.parent)) if Path(c.url) == folder)
        return Found(to_write=patient.Job(case))

    def write(found: Found, target: Path, clock: Clock) -> None:  # noqa: ARG001
        outcome = patient.prepare_patient(found.to_write, target=str(target), config=settings, memory_bytes=16 << 30)
        assert outcome.records[0].is_written, outcome

    return compute, write


def _recipes_2017() -> Any:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import recipes_2017

    return recipes_2017


def straight_hu(folder: Path, *, padding: int | None) -> tuple[np.ndarray, list[float]]:
    """Steps 1 to 4 of the tutorial: HU and spacing."""
    import pydicom

    slices = [pydicom.dcmread(path) for path in common.slice_files(folder)]
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    thickness = abs(slices[0].ImagePositionPatient[2] - slices[1].ImagePositionPatient[2])
    slopes, intercepts = ([float(s[k].value) for s in slices] for k in ("RescaleSlope", "RescaleIntercept"))
    stored = np.stack([s.pixel_array for s in slices])
    image = _recipes_2017().hounsfield(stored, slopes, intercepts, padding=padding)
    return image, [float(thickness), *map(float, slices[0].PixelSpacing)]


def load_tutorial() -> tuple[Compute, Write]:
    """Steps 1 to 10, and both arrays as .npy: int16 and int8, the tutorial's last tip."""
    recipes = _recipes_2017()

    def compute(folder: Path, clock: Clock) -> Found:
        with clock("read"):
            hu, spacing = straight_hu(folder, padding=-2000)
        with clock("resample"):
            image = recipes.resample(hu, spacing)
        with clock("lungs"):
            mask = recipes.segment(image)
        return Found(image, mask, np.count_nonzero(mask) / 1000)

    return compute, write_npy


def load_luo() -> tuple[Compute, Write]:
    """Steps 1 to 5, 12 and 13, in float64 as that run had it."""
    import pydicom
    import way_of_2017

    def compute(folder: Path, clock: Clock) -> Found:
        with clock("read"):
            slices = [pydicom.dcmread(path) for path in common.slice_files(folder)]
        with clock("resample"):
            return Found(way_of_2017.prepare(slices))

    return compute, write_npy


def load_grt123() -> tuple[Compute, Write]:
    recipes = _recipes_2017()

    def compute(folder: Path, clock: Clock) -> Found:
        with clock("read"):
            hu, spacing = straight_hu(folder, padding=None)
        with clock("lungs"):
            found = recipes.grt123(hu, spacing)
        if found is None:
            return Found(is_refused=True)
        first, second = found.lungs
        ml = (np.count_nonzero(first) + np.count_nonzero(second)) * float(np.prod(spacing)) / 1000
        return Found(found.image, ml=ml)

    return compute, write_npy


def write_npy(found: Found, target: Path, clock: Clock) -> None:
    with clock("write"):
        for name, array in (("image", found.image), ("mask", found.mask)):
            if array is not None:
                np.save(target / f"{name}.npy", array)


def load_simpleitk() -> tuple[Compute, None]:
    """The series reader, linear to 1 mm, and the two largest airs inside the body."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def compute(folder: Path, clock: Clock) -> Found:
        with clock("read"):
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
            image = sitk.Cast(reader.Execute(), sitk.sitkInt16)
        with clock("resample"):
            size = [round(n * s) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
            image = sitk.Resample(
                image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), (1.0, 1.0, 1.0),
                image.GetDirection(), -1024, sitk.sitkInt16,
            )  # fmt: skip
        with clock("lungs"):
            pieces = sitk.RelabelComponent(sitk.ConnectedComponent(image < -400), minimumObjectSize=100_000)
            shapes = sitk.LabelShapeStatisticsImageFilter()
            shapes.Execute(pieces)
            inner = []
            for label in shapes.GetLabels():
                x, y, _, width, height, _ = shapes.GetBoundingBox(label)
                if x > 0 and y > 0 and x + width < size[0] and y + height < size[1]:
                    inner.append(label)
            mask = sitk.Image(size, sitk.sitkUInt8)
            mask.CopyInformation(image)
            for label in inner[:2]:
                mask = mask | sitk.Cast(pieces == label, sitk.sitkUInt8)
            image, mask = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(mask)
        return Found(image, mask, np.count_nonzero(mask) / 1000)

    return compute, None


def load_monai() -> tuple[Compute, None]:
    import logging

    import torch
    from monai.transforms import Compose, LoadImage, Orientation, Spacing

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    load = LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True)
    to_1_mm = Compose(
        [Orientation("LPS", labels=None), Spacing((1.0, 1.0, 1.0), mode="bilinear", dtype=torch.float32)], lazy=True
    )

    def compute(folder: Path, clock: Clock) -> Found:
        with clock("read"):
            image = load(str(folder))
        with clock("resample"):
            return Found(to_1_mm(image).numpy()[0])

    return compute, None


def load_torchio() -> tuple[Compute, None]:
    import SimpleITK as sitk
    import torch
    import torchio

    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    to_1_mm = torchio.Resample(1.0)

    def compute(folder: Path, clock: Clock) -> Found:
        with clock("read"):
            image = torchio.ScalarImage(folder)
            image.load()
        with clock("resample"):
            return Found(to_1_mm(image).numpy()[0])

    return compute, None


TUTORIAL, LUO, GRT123 = "tutorial of 2017, straight", "luo of 2017, straight", "grt123, straight"
WAYS = {
    "dskprep default": Way(preset_way("default"), TUTORIAL),
    "dskprep default, a worker's task": Way(load_task, TUTORIAL),
    "dskprep zuidhof": Way(preset_way("zuidhof"), TUTORIAL),
    "dskprep luo-2017": Way(preset_way("luo-2017"), LUO),
    "dskprep grt123": Way(preset_way("grt123"), GRT123),
    TUTORIAL: Way(load_tutorial, is_slow=True),
    LUO: Way(load_luo, is_slow=True),
    GRT123: Way(load_grt123, is_slow=True),
    "SimpleITK: read, resample, lungs": Way(load_simpleitk, needs="SimpleITK"),
    "MONAI: read, resample": Way(load_monai, needs="monai"),
    "TorchIO: read, resample": Way(load_torchio, needs="torchio"),
}
EQUALS = ("dskprep zuidhof", "dskprep luo-2017", "dskprep grt123")
"""These promise the result of the way that they are compared with."""
