"""dskprep turns a bucket or folder of chest CT DICOM into a training-ready zarr dataset.

The stub `__init__.pyi` lists the public names, each with the module it comes from. A name is imported when it is first
used: pydicom, zarr and distributed are slow to import.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_import_name, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("dskprep")
    if name not in __all__:
        raise AttributeError(f"module 'dskprep' has no attribute {name!r}")
    return _import_name(name)


def __dir__() -> list[str]:
    return sorted({*globals(), "__version__", *__all__})
