"""What a run would make of each series of a case, from headers alone."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from dataclasses import dataclass

import psutil

from dskprep.dataset.record import further_key
from dskprep.errors import Refusal, name_of
from dskprep.plain import words_of
from dskprep.selecting import Chosen
from dskprep.series.series import Series
from dskprep.settings import PrepConfig
from dskprep.source.archive import Outgrown
from dskprep.source.case import Case
from dskprep.source.files import open_case
from dskprep.source.found import assemble_as, each_series
from dskprep.source.volumes import CaseContents
from dskprep.worker import admission
from dskprep.worker.admission import Ledger


@dataclass(frozen=True)
class Prediction:
    """What would become of one series: `status` and `reason` as in its record.

    `need_bytes` is the memory that a worker would reserve. `native_voxels` and `output_voxels` count the volume as
    acquired and as written; they are 0 for a series that would be refused.
    """

    key: str
    status: str
    reason: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()
    n_slices: int = 0
    need_bytes: int = 0
    native_voxels: int = 0
    output_voxels: int = 0

    @property
    def is_written(self) -> bool:
        """Whether a volume would be written."""
        return self.status == "written"

    @property
    def voxels(self) -> int:
        """How many are read and written."""
        return self.native_voxels + self.output_voxels


def predict(case: Case, config: PrepConfig, usable_bytes: int = sys.maxsize) -> list[Prediction]:
    """Predict what becomes of the series of a case, its main one last, on workers with `usable_bytes` for patients.

    Applies the code of a run to the headers. So it is exact but for what only pixels show: damaged pixel data, values
    that cannot be HU, and patients in whom the recipes of 2017 find no lungs. Slices that share a position are read
    with their pixel data, to see which are copies.
    """
    ledger = Ledger(usable_bytes)
    try:
        files = open_case(case)
        is_held = not admission.may_reread(files, config)
        least_bytes = admission.least_bytes(files, config, is_held=is_held)
        ledger.check(least_bytes)
        contents = CaseContents()
        if files.is_archive:
            contents.add_all(files.read(_most_bytes(ledger, files.n_bytes)))
        else:
            contents.add_all(files.read_headers(), with_pixels=False)
            contents.parts.update(files.parts())
        reread = None if files.is_archive else files.reread
        assemble = functools.partial(assemble_as, settings=config, reread=reread)
        predict_series = functools.partial(_predict_series, config, ledger, least_bytes, is_held)
        found = dict(each_series(contents, assemble, predict_series, config))
    except Refusal as refusal:
        return [_refuse(refusal, 0, case.key)]
    except Outgrown:
        return [_refuse(ledger.refusal(_doubled_beyond(least_bytes, ledger.total_bytes)), 0, case.key)]
    except Exception as error:  # as in a run: it costs this patient only
        return [Prediction(case.key, "failed", name_of(error), words_of(error)[:500])]
    predictions = {
        name: _refuse(made, least_bytes)
        if isinstance(made, Refusal)
        else _with_choice(made, name.chosen or case.chosen)
        for name, made in found.items()
    }
    *others, (_, main) = sorted(predictions.items(), key=lambda item: item[0].rank(item[1].n_slices))
    further = [dataclasses.replace(each, key=further_key(case.key, *name[:2])) for name, each in others]
    return [*further, dataclasses.replace(main, key=case.key)]


def _most_bytes(ledger: Ledger, n_bytes: int) -> int:
    """Return to how much an archive of that size may unpack: what a worker has, and no more than there is here."""
    available_bytes: int = psutil.virtual_memory().available
    return max(0, min(ledger.total_bytes, available_bytes) - n_bytes)


def _doubled_beyond(need_bytes: int, total_bytes: int) -> int:
    """Return the need with which a run gives up: it doubles an estimate that an archive outgrows."""
    while need_bytes <= total_bytes:
        need_bytes *= 2
    return need_bytes


def _predict_series(config: PrepConfig, ledger: Ledger, least_bytes: int, is_held: bool, found: Series) -> Prediction:
    """Return the prediction of a series that would be written, without its key. Raises Refusal if it would not be."""
    grid = found.grid
    need_bytes = max(least_bytes, admission.series_bytes(found, config, is_held=is_held))
    ledger.check(need_bytes)
    found.check_formats()
    output = (
        max(1, round(n * old / new)) for n, old, new in zip(grid.shape, grid.spacing, config.spacing_mm, strict=True)
    )
    return Prediction(
        "",
        "written",
        warnings=found.warnings,
        n_slices=found.n_slices,
        need_bytes=need_bytes,
        native_voxels=math.prod(grid.shape),
        output_voxels=math.prod(output),
    )


def _with_choice(predicted: Prediction, chosen: Chosen | None) -> Prediction:
    warnings = chosen.warnings if chosen else ()
    return dataclasses.replace(predicted, warnings=(*warnings, *predicted.warnings))


def _refuse(refusal: Refusal, need_bytes: int, key: str = "") -> Prediction:
    need_bytes = refusal.facts.get("need_bytes", need_bytes)
    return Prediction(key, refusal.status, refusal.reason, refusal.message, need_bytes=need_bytes)
