"""dskprep turns a bucket or folder of chest CT DICOM into a training-ready zarr dataset."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dskprep.account import Summary
    from dskprep.cluster import connect, local_client
    from dskprep.config import PrepConfig, preset, read_config
    from dskprep.dataset import Dataset, StoredVolume, open_dataset
    from dskprep.errors import DskprepError, InfrastructureError, Refusal, UsageError
    from dskprep.exchange import to_nifti, to_sitk
    from dskprep.lungs import Lungs, find_lungs
    from dskprep.patches import LungPatches, Patch
    from dskprep.pipeline import run
    from dskprep.prepared import Prepared
    from dskprep.reading import read_series
    from dskprep.resample import to_spacing
    from dskprep.series import Series
    from dskprep.steps import prepare
    from dskprep.verification import verify
    from dskprep.volume import AIR_HU, PADDING, Volume

_HOMES = {
    "AIR_HU": "volume",
    "Dataset": "dataset",
    "DskprepError": "errors",
    "InfrastructureError": "errors",
    "Lungs": "lungs",
    "LungPatches": "patches",
    "PADDING": "volume",
    "Patch": "patches",
    "PrepConfig": "config",
    "Prepared": "prepared",
    "Refusal": "errors",
    "Series": "series",
    "StoredVolume": "dataset",
    "Summary": "account",
    "UsageError": "errors",
    "Volume": "volume",
    "connect": "cluster",
    "find_lungs": "lungs",
    "read_config": "config",
    "local_client": "cluster",
    "open_dataset": "dataset",
    "prepare": "steps",
    "preset": "config",
    "read_series": "reading",
    "run": "pipeline",
    "to_nifti": "exchange",
    "to_sitk": "exchange",
    "to_spacing": "resample",
    "verify": "verification",
}

__all__ = [
    "AIR_HU",
    "PADDING",
    "Dataset",
    "DskprepError",
    "InfrastructureError",
    "LungPatches",
    "Lungs",
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
