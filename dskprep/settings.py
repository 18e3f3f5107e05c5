"""Settings: one frozen value, read from TOML, with a digest."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from dskprep.errors import UsageError
from dskprep.selecting import Select
from dskprep.volume import Triple


class Uses(NamedTuple):
    """The settings that a recipe uses beside COMMON, and the types that its image may have, the usual one first."""

    settings: tuple[str, ...]
    dtypes: tuple[str, ...] = ()


RECIPES = {
    "default": Uses(
        (
            *("spacing_mm", "smooth", "lungs", "mask_memory", "mask_slots", "lung_margin_mm", "steps"),
            *("on_gap", "max_gap_slices"),
        )
    ),
    "zuidhof": Uses(("spacing_mm", "fill_lungs", "dtype"), ("int16", "float32", "float64")),
    "luo-2017": Uses(("spacing_mm", "dtype"), ("float64", "float32")),
    "grt123": Uses(()),
}
"""One line per recipe. What it does is in its module in `preparation.recipes`, which is too heavy to import here."""
COMMON = ("recipe", "min_slices", "stacks", "check_hu", "select", "chunk", "codec", "zstd_level", "levels", "ome_zarr")
"""The settings that all recipes use."""
LATER = ("stacks", "check_hu", "select", "codec", "levels", "ome_zarr")
"""Settings that came after the first datasets; at their default they do not count, so that old datasets go on."""
MEANS = ("mask_memory", "mask_slots")
"""Settings that say with what a mask is found, and change no voxel: they belong to a run, not to its dataset."""

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
"""Units of a size in memory."""

MAX_BYTES = 1 << 20
"""Most bytes of a file of settings."""
PRESETS = resources.files("dskprep").joinpath("presets")
"""The folder of the presets that come with dskprep."""


@dataclass(frozen=True)
class PrepConfig:
    """What is done to every series of a dataset.

    Raises UsageError, which names all that is wrong: values out of range, or set for a recipe that does not use them.

    Examples
    --------
    >>> PrepConfig(spacing_mm=(2, 1, 1)).spacing_mm
    (2.0, 1.0, 1.0)
    >>> PrepConfig(recipe="luo-2017").dtype
    'float64'
    """

    recipe: str = "default"
    """What is done: `default`, or a recipe of 2017 as it was (see docs/recipes.md)."""
    spacing_mm: Triple = (1.0, 1.0, 1.0)
    """Distance between voxel centres of the output along (z, y, x)."""
    smooth: bool = True
    """Smooth along an axis that shrinks, so that fine structure does not alias."""
    lungs: bool | str = True
    """Find the lungs and write their mask; or the import path of a function or class that finds them."""
    mask_memory: str = "0GiB"
    """Memory that the function named by `lungs` takes beside the image."""
    mask_slots: int = 0
    """Call that function in so many processes per host, which all workers there share; 0 calls it in each worker."""
    lung_margin_mm: float = 0.0
    """Grow the lung mask by this much on every side."""
    steps: tuple[str, ...] = ()
    """Import paths of functions that the resampled image goes through, in this order, before it is written."""
    fill_lungs: bool = True
    """Count what the lungs enclose in a slice, such as vessels, as lung (recipe zuidhof)."""
    dtype: str = ""
    """The type in which the image is stored (recipes zuidhof and luo-2017); empty for the recipe's usual one."""
    min_slices: int = 10
    """A series with fewer slices is refused."""
    stacks: str = "one"
    """Which stacks of a series that holds several, such as phases of the heart, are written: `one` or `all`."""
    check_hu: bool = True
    """Refuse a series whose values cannot be HU; if false, it is written with a warning."""
    select: Select | None = None
    """Which series of a study or patient are written, if not all: a `Select`, or a dictionary such as the table."""
    on_gap: str = "refuse"
    """What happens to a series with slices missing between its ends: `refuse` or `interpolate`."""
    max_gap_slices: int = 1
    """With `interpolate`, the most slices in a row that may be missing; a series that lacks more is refused."""
    chunk: int = 64
    """Edge of a zarr chunk in voxels; many chunks share a shard."""
    codec: str = "blosc-zstd"
    """How a chunk is packed: `blosc-zstd`, with its bits shuffled first, or plain `zstd`."""
    zstd_level: int = 1
    """Compression level of zstd."""
    levels: int = 1
    """How many levels an image and its labels have; each has half as many voxels along each axis as the one before."""
    ome_zarr: str = "0.5"
    """The version of OME-Zarr that a volume's metadata follow: `0.5` or `0.6`."""

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise UsageError("; ".join(problems))
        object.__setattr__(self, "dtype", self.dtype or "".join(RECIPES[self.recipe].dtypes[:1]))
        object.__setattr__(self, "spacing_mm", tuple(float(s) for s in self.spacing_mm))
        object.__setattr__(self, "lung_margin_mm", float(self.lung_margin_mm))
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "select", Select.of(self.select) if self.select else None)

    @property
    def fillable_slices(self) -> int:
        """The most slices in a row that are interpolated; 0 if a gap is refused."""
        return self.max_gap_slices if self.on_gap == "interpolate" else 0

    @property
    def mask_bytes(self) -> int:
        """`mask_memory` in bytes."""
        number, unit = _split_size(self.mask_memory)
        return int(float(number) * UNITS[unit])

    @property
    def slots_bytes(self) -> int:
        """The memory of the processes of all mask slots of a host."""
        return self.mask_slots * self.mask_bytes

    @property
    def user_functions(self) -> tuple[str, ...]:
        """The import paths among the settings."""
        return (*self.steps, *((self.lungs,) if isinstance(self.lungs, str) else ()))

    def used(self) -> tuple[str, ...]:
        """Return the names of the settings that the recipe uses."""
        return (*COMMON, *RECIPES[self.recipe].settings)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings that the recipe uses, as plain JSON values, without MEANS.

        Those of LATER are left out at their default.
        """
        later = {field.name: field.default for field in dataclasses.fields(self) if field.name in LATER}
        values = ((name, getattr(self, name)) for name in self.used())
        return {
            name: list(value) if isinstance(value, tuple) else value.as_dict() if isinstance(value, Select) else value
            for name, value in values
            if name not in MEANS and (name not in later or value != later[name])
        }

    def digest(self) -> str:
        """Return the first 16 hexadecimal digits of the SHA-256 of the settings that the recipe uses, sorted."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


def from_dict(values: dict[str, Any], where: str) -> PrepConfig:
    """Make settings from parsed values; `where` names their origin in errors.

    Raises UsageError for unknown keys (naming the nearest one), values out of range, and settings that the recipe does
    not use, even at their default: all in one message.
    """
    known = [field.name for field in dataclasses.fields(PrepConfig)]
    problems = []
    for key in (key for key in values if key not in known):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        problems.append(f"unknown setting {key!r} ({hint})")
    try:
        config = PrepConfig(**{key: value for key, value in values.items() if key in known})
        problems += [_unused(key, config.recipe) for key in values if key in known and key not in config.used()]
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError(f"{where}: {'; '.join(problems)}")
    return config


def read_config(path: str | Path) -> PrepConfig:
    """Read settings from a TOML file. Raises UsageError if it cannot be read, or a setting is wrong."""
    try:
        with Path(path).open("rb") as file:  # which may be a pipe, as in bash --config <(…), or a device without an end
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the settings: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path}: expected settings of at most {MAX_BYTES} bytes, found more")
    try:
        values = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    return from_dict(values, str(path))


def presets() -> list[str]:
    """Return the names of the presets that come with dskprep."""
    return sorted(p.name.removesuffix(".toml") for p in PRESETS.iterdir() if p.name.endswith(".toml"))


def preset(name: str) -> PrepConfig:
    """Return the preset of that name. Raises UsageError if there is none.

    >>> preset("grt123").as_dict()
    {'recipe': 'grt123', 'min_slices': 10, 'chunk': 64, 'zstd_level': 1}
    """
    if name not in presets():
        raise UsageError(f"no preset {name!r}; there are: {', '.join(presets())}")
    return from_dict(tomllib.loads(PRESETS.joinpath(f"{name}.toml").read_text("utf-8")), f"preset {name}")


def given(settings: PrepConfig | None) -> PrepConfig:
    """Return these settings, or those of the preset `default`. Raises UsageError if they are no PrepConfig."""
    if not isinstance(settings, PrepConfig | None):
        what = "a PrepConfig, as preset('zuidhof') or read_config('prep.toml') give it"
        raise UsageError(f"settings must be {what}, not {settings!r:.100}")
    return settings or PrepConfig()


def _unused(name: str, recipe: str) -> str:
    users = [other for other, uses in RECIPES.items() if name in uses.settings]
    return f"{name} means nothing to the recipe {recipe!r}, only to {', '.join(users)}; leave it out"


def _problems(config: PrepConfig) -> list[str]:
    """Return all that is wrong with settings."""
    if config.recipe not in list(RECIPES):
        return [f"recipe must be one of {', '.join(RECIPES)}, not {config.recipe!r}"]
    problems, used, rules = [], config.used(), _rules(RECIPES[config.recipe].dtypes)
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name not in used and value != field.default:
            problems.append(_unused(name, config.recipe))
        elif name in used and name in rules and not rules[name][0](value):
            problems.append(f"{name} must be {rules[name][1]}, not {value!r}")
    try:
        _ = config.select and Select.of(config.select)
    except UsageError as error:
        problems.append(str(error))
    if not problems and (config.mask_slots or config.mask_bytes) and not isinstance(config.lungs, str):
        problems.append("mask_memory and mask_slots mean nothing unless lungs names a function; leave them out")
    elif not problems and config.mask_slots and not config.mask_bytes:
        problems.append('mask_slots needs mask_memory, the memory of one of these processes, such as "3GiB"')
    return problems


def _rules(dtypes: tuple[str, ...]) -> dict[str, tuple[Callable[[Any], bool], str]]:
    """Return what each setting must be, as a test and in words. Errors are named in this order."""
    paths, switch = "(package.module:function)", (lambda v: isinstance(v, bool), "true or false")
    return {
        "spacing_mm": (
            lambda v: isinstance(v, (list, tuple)) and len(v) == 3 and all(_is_number(s, 0.1, 10) for s in v),
            "three numbers (z, y, x) from 0.1 to 10",
        ),
        "smooth": switch,
        "lungs": (lambda v: switch[0](v) or _is_path(v), f"{switch[1]}, or the import path of a function {paths}"),
        "mask_memory": (lambda v: isinstance(v, str) and _split_size(v)[0] != "", 'a size such as "3GiB" or "500MiB"'),
        "mask_slots": (lambda v: _is_int(v, 0, 64), "a whole number from 0 to 64"),
        "lung_margin_mm": (lambda v: _is_number(v, 0, 100), "a number from 0 to 100"),
        "steps": (lambda v: isinstance(v, (list, tuple)) and all(map(_is_path, v)), f"a list of import paths {paths}"),
        "fill_lungs": switch,
        "dtype": (("", *dtypes).__contains__, f"one of {', '.join(dtypes)}"),
        "min_slices": (lambda v: _is_int(v, 2), "a whole number, 2 or more"),
        "stacks": (("one", "all").__contains__, "'one' or 'all'"),
        "check_hu": switch,
        "on_gap": (("refuse", "interpolate").__contains__, "'refuse' or 'interpolate'"),
        "max_gap_slices": (lambda v: _is_int(v, 1, 5), "a whole number from 1 to 5"),
        "chunk": (lambda v: _is_int(v, 16, 256), "a whole number from 16 to 256"),
        "codec": (("blosc-zstd", "zstd").__contains__, "'blosc-zstd' or 'zstd'"),
        "zstd_level": (lambda v: _is_int(v, 1, 9), "a whole number from 1 to 9"),
        "levels": (lambda v: _is_int(v, 1, 8), "a whole number from 1 to 8"),
        "ome_zarr": (("0.5", "0.6").__contains__, "'0.5' or '0.6', in quotes"),
    }


def _is_path(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value) is not None


def _split_size(value: str) -> tuple[str, str]:
    """Return the number and the unit of a size, both "" if it is none."""
    found = re.fullmatch(rf"(\d{{1,9}}(?:\.\d{{1,9}})?) ?({'|'.join(UNITS)})", value, re.ASCII)
    return (found[1], found[2]) if found else ("", "")


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_int(value: object, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and _is_number(value, low, high)
