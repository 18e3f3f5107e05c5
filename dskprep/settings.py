"""Settings: one frozen value, read from TOML, with a digest."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dskprep.errors import UsageError
from dskprep.volume import Triple

RECIPES = {
    "default": ("spacing_mm", "smooth", "lungs", "lung_margin_mm", "steps", "on_gap", "max_gap_slices"),
    "zuidhof": ("spacing_mm", "fill_lungs", "dtype"),
    "luo-2017": ("spacing_mm", "dtype"),
    "grt123": (),
}
"""The recipes, and the settings that each of them uses."""

COMMON = ("recipe", "min_slices", "chunk", "zstd_level")
"""The settings that all recipes use."""

DTYPES = {"zuidhof": ("int16", "float32", "float64"), "luo-2017": ("float64", "float32")}
"""How a recipe's image may be stored, its own way first: int16 is HU, floats are normalized and centred."""

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""package.module:function"""


@dataclass(frozen=True)
class PrepConfig:
    """What is done to every series of a dataset.

    Raises UsageError if a value is out of range, or set for a recipe that does not use it.
    """

    recipe: str = "default"
    """What is done: `default`, or a recipe of 2017 as it was (see docs/recipes.md)."""
    spacing_mm: Triple = (1.0, 1.0, 1.0)
    """Distance between voxel centres of the output along (z, y, x)."""
    smooth: bool = True
    """Smooth along an axis that shrinks, so that fine structure does not alias."""
    lungs: bool | str = True
    """Find the lungs and write their mask; or the import path of a function that finds them."""
    lung_margin_mm: float = 0.0
    """Grow the lung mask by this much on every side."""
    steps: tuple[str, ...] = ()
    """Import paths of functions that the resampled image goes through, in this order, before it is written."""
    fill_lungs: bool = True
    """Take what lies within the lungs of a slice, such as vessels, into the mask (recipe zuidhof)."""
    dtype: str = ""
    """How the image of a recipe is stored; empty for the recipe's own way."""
    min_slices: int = 10
    """A series with fewer slices is refused."""
    on_gap: str = "refuse"
    """What becomes of a series that misses slices between its ends: `refuse` or `interpolate`."""
    max_gap_slices: int = 1
    """With `interpolate`, the most slices in a row that may be missing; more are refused."""
    chunk: int = 64
    """Edge of a zarr chunk in voxels; chunks lie together in shards."""
    zstd_level: int = 1
    """Level of blosc's zstd."""

    def __post_init__(self) -> None:
        _check(self.recipe in RECIPES, "recipe", f"one of {', '.join(RECIPES)}", self.recipe)
        for field in dataclasses.fields(self):
            if field.name not in self.used() and getattr(self, field.name) != field.default:
                raise _unused(field.name, self.recipe)
        spacing = tuple(self.spacing_mm) if isinstance(self.spacing_mm, (list, tuple)) else ()
        _check(
            len(spacing) == 3 and all(_is_number(s) and 0.1 <= s <= 10 for s in spacing),
            "spacing_mm",
            "three numbers (z, y, x) from 0.1 to 10",
            self.spacing_mm,
        )
        object.__setattr__(self, "spacing_mm", tuple(float(s) for s in spacing))
        _check(isinstance(self.smooth, bool), "smooth", "true or false", self.smooth)
        _check(
            isinstance(self.lungs, bool) or _is_import_path(self.lungs),
            "lungs",
            "true or false, or the import path of a function (package.module:function)",
            self.lungs,
        )
        _check(
            _is_number(self.lung_margin_mm) and 0 <= self.lung_margin_mm <= 100,
            "lung_margin_mm",
            "a number from 0 to 100",
            self.lung_margin_mm,
        )
        object.__setattr__(self, "lung_margin_mm", float(self.lung_margin_mm))
        _check(
            isinstance(self.steps, (list, tuple)) and all(_is_import_path(step) for step in self.steps),
            "steps",
            "a list of import paths (package.module:function)",
            self.steps,
        )
        object.__setattr__(self, "steps", tuple(self.steps))
        _check(isinstance(self.fill_lungs, bool), "fill_lungs", "true or false", self.fill_lungs)
        if self.recipe in DTYPES:
            known = DTYPES[self.recipe]
            _check(self.dtype in ("", *known), "dtype", f"one of {', '.join(known)}", self.dtype)
            object.__setattr__(self, "dtype", self.dtype or known[0])
        _check(
            _is_int(self.min_slices) and self.min_slices >= 2,
            "min_slices",
            "a whole number, 2 or more",
            self.min_slices,
        )
        _check(self.on_gap in ("refuse", "interpolate"), "on_gap", "'refuse' or 'interpolate'", self.on_gap)
        _check(
            _is_int(self.max_gap_slices) and 1 <= self.max_gap_slices <= 5,
            "max_gap_slices",
            "a whole number from 1 to 5",
            self.max_gap_slices,
        )
        _check(_is_int(self.chunk) and 16 <= self.chunk <= 256, "chunk", "a whole number from 16 to 256", self.chunk)
        _check(
            _is_int(self.zstd_level) and 1 <= self.zstd_level <= 9,
            "zstd_level",
            "a whole number from 1 to 9",
            self.zstd_level,
        )

    @property
    def fillable_slices(self) -> int:
        """The most slices in a row that are interpolated: 0 if a gap is refused."""
        return self.max_gap_slices if self.on_gap == "interpolate" else 0

    @property
    def may_stream(self) -> bool:
        """Whether a slice is done with once it is resampled, so that a native volume need not be held."""
        return self.recipe == "default"

    def used(self) -> tuple[str, ...]:
        """Names of the settings that count for this recipe."""
        return (*COMMON, *RECIPES[self.recipe])

    @property
    def own_functions(self) -> tuple[str, ...]:
        """The import paths among the settings."""
        return (*self.steps, *((self.lungs,) if isinstance(self.lungs, str) else ()))

    def as_dict(self) -> dict[str, Any]:
        """The settings that count, as plain JSON values."""
        values = {name: getattr(self, name) for name in self.used()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def digest(self) -> str:
        """SHA-256 over the sorted settings, 16 hexadecimal digits."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_dict(values: dict[str, Any], where: str) -> PrepConfig:
    """Make settings from parsed values; `where` names their origin in errors.

    Raises UsageError for an unknown key (naming the nearest one) or a value out of range.
    """
    known = [field.name for field in dataclasses.fields(PrepConfig)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise UsageError(f"{where}: unknown setting {key!r}{hint}")
    try:
        config = PrepConfig(**values)
        for key in values:
            if key not in config.used():
                raise _unused(key, config.recipe)
        return config
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def read_config(path: str | Path) -> PrepConfig:
    """Read settings from a TOML file."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the settings: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    return from_dict(values, str(path))


def presets() -> list[str]:
    """Names of the presets that come with dskprep."""
    return sorted(p.name.removesuffix(".toml") for p in _preset_folder().iterdir() if p.name.endswith(".toml"))


def preset(name: str) -> PrepConfig:
    """The preset of that name. Raises UsageError if there is none."""
    if name not in presets():
        raise UsageError(f"no preset {name!r}; there are: {', '.join(presets())}")
    text = _preset_folder().joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return from_dict(tomllib.loads(text), f"preset {name}")


def given(settings: PrepConfig | None) -> PrepConfig:
    """These settings, by default those of the preset `default`. Raises UsageError if they are anything else."""
    if settings is None:
        return PrepConfig()
    if not isinstance(settings, PrepConfig):
        what = f"a PrepConfig, as preset('zuidhof') or read_config('prep.toml') give it, not {settings!r:.100}"
        raise UsageError(f"settings must be {what}")
    return settings


def _preset_folder() -> Any:
    return resources.files("dskprep").joinpath("presets")


def _check(is_right: bool, name: str, expected: str, found: object) -> None:
    if not is_right:
        raise UsageError(f"{name} must be {expected}, not {found!r}")


def _unused(name: str, recipe: str) -> UsageError:
    users = [other for other, names in RECIPES.items() if name in names]
    return UsageError(f"{name} means nothing to the recipe {recipe!r}, only to {', '.join(users)}; leave it out")


def _is_import_path(value: object) -> bool:
    return isinstance(value, str) and IMPORT_PATH.fullmatch(value) is not None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
