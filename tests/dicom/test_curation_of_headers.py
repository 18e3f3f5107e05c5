"""What is read out of a header for the choice of a cohort, on planted headers and on those of real scans."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from builders import assembled, ct_file, ct_files, read

from dskprep.dicom.description import curation_columns, describe, maker_of
from dskprep.dicom.kernel_class import kernel_class

PIXELS = np.zeros((12, 16), np.int16)


@pytest.mark.parametrize(
    ("names", "maker", "expected"),
    [
        ("SOFT STANDARD STD+", "GE", "soft"),
        ("LUNG BONE BONEPLUS EDGE", "GE", "sharp"),
        ("DETAIL CHEST EXPERIMENTAL7", "GE", "unknown"),
        ("B10s B20f B30f B31f B35f B40f B45f B46f H31s I26f I31f J30s D30f Br36 Br40 Br40d\\3 Bv49", "Siemens", "soft"),
        ("B50f B60f B70f B80f B90s I70f Bl57 Bl64 Br64 Hr68 Qr89 U90u", "Siemens", "sharp"),
        ("T20s unkn B", "Siemens", "unknown"),
        ("A B C UA UB UC", "Philips", "soft"),
        ("D E L YA YB YC YD", "Philips", "sharp"),
        ("EC XCB SB unkn", "Philips", "unknown"),
        ("FC01 FC02 FC03 FC08 FC10 FC11 FC13 FC18 FC21 FC64", "Canon", "soft"),
        ("FC30 FC50 FC51 FC52 FC53 FC55 FC81 FC82", "Canon", "sharp"),
        ("FL01 FC72", "Canon", "unknown"),
        ("B_SOFT_B B_VSOFT_C", "United Imaging", "soft"),
        ("B_SHARP_C B_VSHARP_B", "United Imaging", "sharp"),
        ("31 11", "Hitachi", "unknown"),
    ],
)
def test_the_class_of_a_kernel_by_its_vendors_name(names: str, maker: str, expected: str) -> None:
    assert {name: kernel_class(name, maker) for name in names.split()} == dict.fromkeys(names.split(), expected)


def test_old_names_and_lost_makers() -> None:
    assert dict(curation_columns("B31s", "manufacturer", "model", "", ""))["kernel_class"] == "soft"
    assert dict(curation_columns("B", "SIEMENS", "", "", ""))["kernel_class"] == "unknown"  # of Philips
    assert kernel_class("59 .21.B50s", "Siemens") == "sharp"
    assert kernel_class("59 .10.AH40", "Siemens") == "soft"
    assert kernel_class("B31f") == kernel_class("B") == kernel_class("FC10") == "soft"  # anonymised
    assert kernel_class("") == kernel_class("Ram-Lak", "Varian Medical Systems") == "unknown"


@pytest.mark.parametrize(
    ("attributes", "contrast", "phase"),
    [
        ({}, "unknown", ""),
        ({"ContrastBolusAgent": ""}, "unknown", ""),
        ({"ContrastBolusAgent": "O", "SeriesDescription": "CT SLICES"}, "unknown", ""),
        ({"ContrastBolusAgent": "REDI CAT"}, "unknown", ""),
        ({"ContrastBolusAgent": "None"}, "no", ""),
        ({"ContrastBolusAgent": "NO", "SeriesDescription": "arterial"}, "no", ""),
        ({"SeriesDescription": "ROUTINE CHEST NON-CON"}, "no", ""),
        ({"SeriesDescription": "Thorax nativ 2.0"}, "no", ""),
        ({"ContrastBolusAgent": "NO IV CONTRAST"}, "no", ""),
        ({"ContrastBolusAgent": "NON-IONIC 100 ML"}, "yes", ""),
        ({"SeriesDescription": "CHEST, NO CONTRAST"}, "no", ""),
        ({"SeriesDescription": "INTRAVENOUS CONTRAST"}, "yes", ""),
        ({"SeriesDescription": "Thorax  1.0  B45f"}, "unknown", ""),
        ({"SeriesDescription": "Low dose screening"}, "unknown", ""),
        ({"ContrastBolusAgent": "APPLIED", "SeriesDescription": "Thorax"}, "yes", ""),
        ({"ContrastBolusAgent": "REDI CAT & 125CC OPTIRAY"}, "yes", ""),
        ({"ContrastBolusAgent": "CONTRAST", "SeriesDescription": "ARTERIELLE"}, "yes", "arterial"),
        ({"SeriesDescription": "ABD PORTAL VENOUS 3.0"}, "yes", "venous"),
        ({"SeriesDescription": "CT DELAY FUSION"}, "yes", "delayed"),
    ],
)
def test_contrast_stays_unknown_where_nothing_says_it(attributes: dict[str, str], contrast: str, phase: str) -> None:
    ((found,),) = read([("1.dcm", ct_file(PIXELS, **attributes))]).slices.values()
    assert (found.facts["contrast"], found.facts["contrast_phase"]) == (contrast, phase)
    assert attributes.get("SeriesDescription", "-") not in repr(found.facts)  # free text does not leave the file


@pytest.mark.parametrize(
    ("maker", "model", "description", "scanner", "pet_ct"),
    [
        ("GE MEDICAL SYSTEMS", "LightSpeed VCT", "", "GE LightSpeed VCT", "no"),
        ("GE MEDICAL SYSTEMS", "Discovery CT750 HD", "", "GE Discovery CT750 HD", "no"),
        ("GE MEDICAL SYSTEMS", "Discovery STE", "", "GE Discovery STE", "yes"),
        ("Siemens Healthineers", "Biograph40_mCT 4R", "", "Siemens Biograph40 mCT 4R", "yes"),
        ("SIEMENS", "Emotion Duo", "CT WB 5.0 B30s", "Siemens Emotion Duo", "yes"),
        ("TOSHIBA", "Aquilion", "", "Canon Aquilion", "no"),
        ("Canon Medical Systems", "Canon  Aquilion ONE", "", "Canon Aquilion ONE", "no"),
        ("Philips Medical Systems", "GEMINI TF TOF 16", "", "Philips GEMINI TF TOF 16", "yes"),
        ("", "", "AC CT", "", "yes"),
        ("", "", "", "", "unknown"),
        ("Acme", "X1", "", "Acme X1", "unknown"),
    ],
)
def test_the_scanner_and_whether_it_is_a_pet_ct(
    maker: str, model: str, description: str, scanner: str, pet_ct: str
) -> None:
    found = dict(curation_columns("", maker, model, "", description))
    assert (found["scanner"], found["pet_ct"]) == (scanner, pet_ct)


def test_thickness_by_distance_and_field_by_width() -> None:
    slices = np.zeros((12, 12, 16), np.int16)
    overlapping = ct_files(slices, PixelSpacing=[2, 2], SliceThickness="2.5", ReconstructionDiameter="48")
    facts = assembled(overlapping).facts
    assert (facts["thickness_ratio"], facts["diameter_ratio"]) == (2.0, 1.5)  # of 16 pixels of 2 mm
    bare = assembled(ct_files(slices, SliceThickness="")).facts
    assert "thickness_ratio" not in bare
    assert "diameter_ratio" not in bare


def test_nlst_made_soft_and_sharp_pairs() -> None:
    """In NLST most studies have one soft and one sharp series; its descriptions name the kernel."""
    duckdb = pytest.importorskip("duckdb", reason="needs the extra idc")
    idc = pytest.importorskip("idc_index_data", reason="needs the extra idc")
    rows = duckdb.sql(
        "SELECT StudyInstanceUID, Manufacturer, split_part(SeriesDescription, ',', 5) FROM "
        f"'{idc.IDC_INDEX_PARQUET_FILEPATH}' WHERE collection_id = 'nlst' AND Modality = 'CT' AND instanceCount >= 40 "
        "AND regexp_matches(SeriesDescription, '^[012],OPA,')"
    ).fetchall()
    classes = [kernel_class(kernel, maker_of(maker)) for _, maker, kernel in rows]
    assert Counter(classes)["unknown"] / len(rows) < 0.02
    by_study: dict[str, list[str]] = {}
    for (study, *_), kind in zip(rows, classes, strict=True):
        by_study.setdefault(study, []).append(kind)
    pairs = [sorted(kinds) for kinds in by_study.values() if len(kinds) == 2]
    assert sum(kinds == ["sharp", "soft"] for kinds in pairs) / len(pairs) > 0.9


@pytest.mark.parametrize(
    ("keyword", "column", "terms", "typed"),
    [
        (
            "BodyPartExamined",
            "body_part",
            ("CHEST", "LUNG", "Thorax", "CHESTABDPELVIS", "NECKCHESTABDPELV", "CHEST_TO_PELVIS", "WHOLEBODY", "CSPINE"),
            ("MUELLER", "CHEST MUELLER", "TH CT CHEST WO C", "OUTSIDE FIL", "CHESTNUT"),
        ),
        ("PatientPosition", "patient_position", ("HFS", "FFP", "HFDL"), ("MUELLER", "HFS MUELLER", "hfs Anna")),
    ],
)
def test_of_what_a_person_may_have_typed_only_terms_are_kept(
    keyword: str, column: str, terms: tuple[str, ...], typed: tuple[str, ...]
) -> None:
    assert [describe({keyword: text})[column] for text in terms] == list(terms)
    assert [describe({keyword: text})[column] for text in typed] == [""] * len(typed)
