"""dskprep turns a bucket or folder of chest CT DICOM into a training-ready zarr dataset."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dskprep.dataset.convert import to_nifti, to_sitk
    from dskprep.dataset.dataset import Dataset, StoredVolume, open_dataset
    from dskprep.dataset.patches import LungPatches, Patch
    from dskprep.dataset.verification import verify
    from dskprep.errors import DskprepError, InfrastructureError, Refusal, UsageError
    from dskprep.pipeline.account import Summary
    from dskprep.pipeline.cluster import connect, local_client
    from dskprep.pipeline.observer import Observer
    from dskprep.pipeline.run import run
    from dskprep.preparation.lungs.lungs import Lungs, find_lungs
    from dskprep.preparation.prepare import prepare
    from dskprep.preparation.prepared import Prepared
    from dskprep.preparation.resample import to_spacing
    from dskprep.series.series import Decoded, Series
    from dskprep.settings import PrepConfig, preset, read_config
    from dskprep.source.found import read_series
    from dskprep.volume import AIR_HU, PADDING, Volume

_HOMES = {
    "AIR_HU": "volume",
    "Dataset": "dataset.dataset",
    "Decoded": "series.series",
    "DskprepError": "errors",
    "InfrastructureError": "errors",
    "Lungs": "preparation.lungs.lungs",
    "LungPatches": "dataset.patches",
    "Observer": "pipeline.observer",
    "PADDING": "volume",
    "Patch": "dataset.patches",
    "PrepConfig": "settings",
    "Prepared": "preparation.prepared",
    "Refusal": "errors",
    "Series": "series.series",
    "StoredVolume": "dataset.dataset",
    "Summary": "pipeline.account",
    "UsageError": "errors",
    "Volume": "volume",
    "connect": "pipeline.cluster",
    "find_lungs": "preparation.lungs.lungs",
    "read_config": "settings",
    "local_client": "pipeline.cluster",
    "open_dataset": "dataset.dataset",
    "prepare": "preparation.prepare",
    "preset": "settings",
    "read_series": "source.found",
    "run": "pipeline.run",
    "to_nifti": "dataset.convert",
    "to_sitk": "dataset.convert",
    "to_spacing": "preparation.resample",
    "verify": "dataset.verification",
}

__all__ = [
    "AIR_HU",
    "PADDING",
    "Dataset",
    "Decoded",
    "DskprepError",
    "InfrastructureError",
    "LungPatches",
    "Lungs",
    "Observer",
    "Patch",
    "PrepConfig",
    "Prepared",
    "Refusal",
    "Series",
    "StoredVolume",
    "Summary",
    "UsageError",
    "Volume",
    "connect",
    "find_lungs",
    "local_client",
    "open_dataset",
    "prepare",
    "preset",
    "read_config",
    "read_series",
    "run",
    "to_nifti",
    "to_sitk",
    "to_spacing",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: pydicom, zarr and distributed are slow to import."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("dskprep")
    if name not in _HOMES:
        raise AttributeError(f"module 'dskprep' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dskprep.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), "__version__", *__all__])
