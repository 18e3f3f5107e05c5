"""The errors that a user meets, and the fixed words that records count.

DskprepError
├── UsageError (ValueError)        wrong use or configuration; nothing was started: exit code 2
├── InfrastructureError (OSError)  no scheduler, no bucket, no permission; try again later: exit code 3
│   ├── UnreadableFile             one file cannot be read, and the others can
│   └── RunStopped                 the scheduler or the store was lost under a run; carries its account
├── Refusal                        one series or label cannot be made right; the others can: exit code 1
├── StepFailed                     a function of the user's own raised, or returned what cannot be used: exit code 2
└── DamagedDataset                 an object of a dataset is gone, or is not what was written: exit code 1

`UnreadableFile` stands in `storage`, `RunStopped` in `pipeline.account`, `StepFailed` in `preparation.user_steps`.
"""

from __future__ import annotations

REASONS = {
    "no-dicom": "nothing here is a DICOM file",
    "not-ct": "DICOM, but no CT image",
    "localizer-only": "only localizer (scout) images",
    "too-few-slices": "fewer slices than a volume needs",
    "missing-slices": "the slices leave a gap",
    "uneven-spacing": "the distances between the slices differ",
    "duplicate-positions": "different slices lie at one position and nothing tells them apart",
    "mixed-geometry": "the slices differ in size, pixel spacing or orientation",
    "gantry-tilt": "the slices are sheared unevenly, or more than a gantry tilts",
    "not-hu": "the stored values cannot be turned into Hounsfield units",
    "hu-implausible": "the values cannot be Hounsfield units, whatever the header says",
    "undecodable-pixels": "the pixel data cannot be decoded",
    "missing-decoder": "no decoder for this transfer syntax is installed",
    "missing-attribute": "an attribute or field that geometry or HU needs is absent or unreadable",
    "truncated": "a file ends too early, or cannot be read and may have been a slice",
    "bad-header": "the header of a volume file is damaged, or of a kind that is not read",
    "not-3d": "the volume file has more or fewer than three axes",
    "bad-affine": "the affine of a volume file is singular, or its spacing cannot be that of a body in mm",
    "sheared": "the axes of a volume file are not at right angles",
    "too-large": "the series needs more memory than a worker has",
    "bad-archive": "the archive is empty, damaged or of an unknown kind",
    "no-thickness": "a recipe of 2017 takes the distance of the first two slices for all, and it is nothing",
    "no-lungs": "a recipe of 2017 finds no lung, and would have crashed or written an empty mask",
    "not-square": "a recipe of 2017 takes slices for square, and they are not",
    "licence": "the licence of the series does not allow the use that was asked for",
    "key-taken": "a volume of this name is there from another source; that one stays as it is",
    "source-changed": "the source changed while it was being read",
}
"""Why a series is refused (status `refused`)."""
CHANGED = "source-changed"
"""The only one of these reasons that holds for one run: the next one does such a patient again."""

SET_ASIDE = {
    "no-image": "no image: a segmentation or mask, contours, a dose, a report",
    "not-chosen": "another series of the same study or patient was chosen by the rules of the settings",
    "no-label": "no label, but an object of another kind: a plan, a dose, a report, a table of other things",
    "label-not-asked": "the label source has none of the labels that are asked for",
    "label-empty": "the label has no voxel, contour or point: its author says that there is nothing",
}
"""Why an input with which nothing is wrong is no volume (status `set-aside`)."""

LABEL_REASONS = {
    "label-unknown": "no label object of a kind that is read",
    "label-damaged": "the label object ends early, contradicts itself, or holds values that cannot be",
    "label-too-large": "the label object claims more pixels, points or segments than a label has",
    "label-outside-volume": "no part of the label lies in the image",
    "label-off-grid": "the mask or the contours are not on the grid of the image's slices",
    "label-mirrored": "the mask is on the image's grid only when it is mirrored",
    "label-unlinked": "no volume of the dataset is the one that the label was drawn on",
    "label-exists": "a label of this name, or this content, is there from another source; that stays as it is",
}
"""Why a label is refused; its image is not."""

WARNINGS = {
    "one-of-several-stacks": "the series holds several stacks; one was chosen",
    "stacks-joined": "the series was scanned in parts that overlap or abut; they were joined",
    "body-left-out": "the chosen stack covers less of the body than the series does",
    "slices-of-another-study": "a few slices name another study and frame of reference than the others",
    "derived-slices": "the slices were computed from others (MIP, MPR, mean), not reconstructed",
    "hu-from-values": "the header leaves open whether the values are HU; the values show that they are",
    "hu-implausible": "the values cannot be Hounsfield units; the settings accept them",
    "blank-slices": "slices hold one value everywhere (if it is that of air: between slices that hold more)",
    "one-of-several-series": "the folder holds several CT series; each is written under its own key",
    "several-patients": "the input holds series of several patients; each is written under its own key",
    "chosen-by-tie": "the rules of the settings prefer no series of the study or patient; a digest decided",
    "runner-up": "the series that the rules of the settings prefer was refused; this one is in its place",
    "identical-duplicates-dropped": "the same slice was there more than once",
    "tilt-corrected": "the gantry was tilted; each slice was shifted to its place on a right-angled grid",
    "gap-interpolated": "slices are missing, and were interpolated between their neighbours",
    "archives-left-out": "archives below the folder of a manifest's line, or in an archive, were not read",
    "localizer-skipped": "localizer (scout) images were left aside",
    "hu-clipped": "values beyond the int16 range were clipped",
    "mixed-rescale": "the slices differ in rescale slope or intercept; each was used as it is",
    "lossy-compression": "the pixel data went through lossy compression",
    "points-unlinked": "points of the table belong to volumes that the dataset has not",
    "points-outside": "points of the table lie outside of their images, and were left out",
    "marks-left-out": "marks of a reader of LIDC-IDRI whose z and SOPInstanceUID are of two slices were left out",
    "contours-left-out": "open contours of an ROI that has closed ones too enclose nothing, and were left out",
    "planes-overlap": "planes of different directions of one label overlap; what they share counts once",
    "linked-by-frame-of-reference": "the label names no series of the dataset; its frame of reference has one volume",
    "stack-not-told": "the series has several stacks, as phases, and the label does not say on which it was drawn",
    "label-cut-off": "a part of the label lies outside of the image, and was cut off",
    "label-renamed": "the name of the label, such as lungs, is taken in every volume; it is stored with _ behind it",
    "spine-in-front": "the spine lies in front of the lungs: the affine of the volume file mixes up front and back",
    "lungs-not-found": "no lung was found",
    "lungs-touch-border": "a lung is cut off by the edge of the volume",
    "one-lung": "only one lung was found, or the two cannot be told apart",
    "lung-volume-unlikely": "the lungs are smaller or larger than lungs are",
    "lungs-unequal": "one lung is less than half as large as the other",
    "dense-lung": "a part of a lung is as dense as other organs; where it ends is an estimate",
    "lung-missing": "a part of a lung that should be there was not found",
    "lungs-in-pieces": "a part of a lung's mask lies apart from the rest",
    "lung-shape-unlikely": "the outline of a lung is not that of a lung",
    "lungs-fallback": "the function that finds the lungs ran out of memory; dskprep's own mask is written",
    "lungs-disagree": "the mask of the function that finds the lungs differs much from dskprep's own",
}
"""Doubts that do not spoil the volume (noted on a written record)."""


class DskprepError(Exception):
    """Base of every error that dskprep raises on purpose."""

    exit_code = 2
    """What the program `dskprep` ends with."""


class UsageError(DskprepError, ValueError):
    """Wrong use or configuration; nothing was started."""


class InfrastructureError(DskprepError, OSError):
    """A store or a scheduler cannot be used; try again when it can."""

    exit_code = 3


def name_of(error: BaseException) -> str:
    """Return the name of an error as records have it: any kind of InfrastructureError has one name."""
    return (InfrastructureError if isinstance(error, InfrastructureError) else type(error)).__name__


class DamagedDataset(DskprepError):
    """An object of a dataset is gone, or is not what was written. `dskprep verify` finds all of them."""

    exit_code = 1


class Refusal(DskprepError):
    """One series cannot be made into a right volume, or one label cannot be drawn where its author put it.

    `reason` is a word of `REASONS`, `SET_ASIDE` or `LABEL_REASONS`; `message` says what was expected, what was found,
    and where; `facts` go into the record beside them.
    """

    exit_code = 1

    def __init__(self, reason: str, message: str, **facts: int) -> None:
        if reason not in REASONS | SET_ASIDE | LABEL_REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
        self.facts = facts

    @property
    def status(self) -> str:
        """What the record of the series says: `refused`, or `set-aside` if nothing is wrong with it."""
        return "set-aside" if self.reason in SET_ASIDE else "refused"

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
