"""What a header says of a series as a whole: whose it is, scanner and protocol, and what follows for a cohort.

That is contrast, kernel and scanner. Doubt stays doubt.
"""

from __future__ import annotations

import functools
import re
from collections.abc import MutableSequence
from typing import Any, NamedTuple

from dskprep.dicom.header import FACTS, IDENTIFIERS, Attributes
from dskprep.dicom.kernel_class import kernel_class

NO_AGENT = re.compile(r"(no|none|without|w/?o|nil|n/?a|0)(\s.*)?|non")
"""Values of ContrastBolusAgent that say that there was none."""
BY_MOUTH = re.compile(r"oral|redi.?cat|gastro(grafin|view)?|barium|water|e-?z-?cat")
"""Agents that are swallowed: what remains without them went into a vein."""
WITHOUT = re.compile(
    r"without|\bno (iv )?contrast|non[ -]?con|pre[ -]?contrast|unenhanced|plain\b|\bnati[fv]|\bw/?o\b|\bc-(?!\w)"
    r"|\bohne\b"
)
"""In a SeriesDescription: no contrast agent."""
WITH = re.compile(r"contrast|\bw/ ?c\b|\bce\b|\bc\+|\bcta\b|ctpa\b|angio|\benhanced\b|\bpe[ -]?(protocol|study|fast)\b")
"""In a SeriesDescription: with a contrast agent. A phase says so too."""
PHASES = {
    "arterial": re.compile(r"arterial|arteriel|\bart\b|\bcta\b|ctpa\b|angio"),
    "venous": re.compile(r"(?<!intra)venous|venos|veneu|portal|\bpv(p|ph)?\b"),
    "delayed": re.compile(r"delay|\blate\b|excret|equilib"),
}
"""In a SeriesDescription: when the images were taken after the agent."""

MAKERS = {
    "GE": re.compile(r"\bge\b|general electric|\bgems\b"),
    "Siemens": re.compile(r"siemens|\bcps\b"),
    "Philips": re.compile(r"philips|picker|marconi|\badac\b"),
    "Canon": re.compile(r"toshiba|canon"),
    "United Imaging": re.compile(r"united.?imaging|\buih\b"),
    "Hitachi": re.compile(r"hitachi|fujifilm"),
    "Neusoft": re.compile(r"neusoft"),
    "Varian": re.compile(r"varian"),
    "Imatron": re.compile(r"imatron"),
}
"""Makers of scanners by words in Manufacturer; who bought another one stands for it."""
PET_MODELS = re.compile(
    r"biograph|gemini|ingenuity ?tf|vereos|guardian body|discovery ?(st|ste|rx|vct|ls|iq|mi|600|690|710)\b|omni legend"
    r"|reveal|celesteion|cartesion|aquiduo|umi ?\d*|symbia|infinia|hawkeye|precedence|brightview|discovery ?nm.*"
)
"""Models that are a PET or SPECT scanner with a CT."""
CT_MODELS = re.compile(
    r"lightspeed|brightspeed|hispeed|revolution|optima|discovery ?ct ?750|somatom|sensation|emotion|definition"
    r"|volume zoom|brilliance|ingenuity|\bict\b|mx ?8000|incisive|aquilion|alexion|asteion|xpress|supria|scenaria"
    r"|eclos|uct"
)
"""Models that are a CT alone."""
ATTENUATION = re.compile(r"ct ?ac\b|\bac ?ct\b|attenuation|\bct wb\b|pet.?ct")
"""In a SeriesDescription: the CT of a PET/CT."""


BODY_PARTS = re.compile(
    r"(?:(?:abd(?:o|omen)?|adrenals?|ankle|aorta|arms?|axilla|back|bladder|body|bone|brain|breast|bronchus|calf"
    r"|carotid|chest|clavicle|coccyx|colon|[cltsw]?[ -]?spine|elbow|esophagus|extremity|eyes?|face|femur|finger|foot"
    r"|hand|head|heart|hips?|humerus|iliac|ilium|jaw|kidneys?|knee|larynx|legs?|liver|lungs?|mandible|maxilla"
    r"|mediastinum|mouth|neck|nose|orbits?|pancreas|pelv(?:is)?|prostate|ribs?|sacrum|scapula|shoulder|sinus|skull"
    r"|spleen|sternum|stomach|thigh|thorax|thymus|thyroid|tongue|trachea|uterus|vertebra|whole|wrist|and|to)"
    r"[\s_,/&+-]*)+",
    re.IGNORECASE,
)
"""Values of BodyPartExamined that are kept: names of parts (PS3.16, Annex L), also several. Others are free text."""
POSITIONS = re.compile(r"[HF]F(?:P|S|DR|DL)|[LR]F[PS]|[AP]FD[RL]")
"""The terms of PatientPosition."""


class Identity(NamedTuple):
    """Whose a slice is: the values of `header.IDENTIFIERS`, which must not leave the file as they are."""

    patient: str = ""
    issuer: str = ""
    study: str = ""
    frame_of_reference: str = ""
    instance: str = ""


NOBODY = Identity()


def describe(header: Attributes) -> dict[str, str]:
    """Return what a header says of scanner, protocol and contrast: the attributes for the record, and what follows.

    The names of maker, model and kernel are as they are; of what a person may have typed no other words are kept.
    """
    facts = {key: text_of(header, keyword)[:64] for key, keyword in FACTS.items()}
    for key, terms in (("body_part", BODY_PARTS), ("patient_position", POSITIONS)):
        facts[key] = facts[key] if terms.fullmatch(facts[key]) else ""
    free = (text_of(header, "ContrastBolusAgent")[:256], text_of(header, "SeriesDescription")[:256])
    return facts | dict(curation_columns(facts["kernel"], facts["manufacturer"], facts["model"], *free))


def identity_of(header: Attributes) -> Identity:
    """Return whose an object is."""
    return Identity(**{name: text_of(header, keyword)[:256] for name, keyword in IDENTIFIERS.items()})


def text_of(header: Attributes, keyword: str) -> str:
    return as_text(header.get(keyword))


def as_text(value: Any) -> str:
    if isinstance(value, str):  # most are, and the next question takes ten times as long
        return value.strip()
    if isinstance(value, MutableSequence):
        value = "\\".join(map(str, value))
    return "" if value is None else str(value).strip()


def terms_of(value: Any) -> set[str]:
    """Return the values of an attribute of coded strings, in capitals; blanks round each mean nothing (PS3.5, VR CS).

    >>> sorted(terms_of(["ORIGINAL ", "PRIMARY", "Localizer"]))
    ['LOCALIZER', 'ORIGINAL', 'PRIMARY']
    """
    return {term.strip() for term in as_text(value).upper().split("\\")}


@functools.lru_cache(maxsize=1024)
def curation_columns(
    kernel: str, manufacturer: str, model: str, agent: str, description: str
) -> tuple[tuple[str, str], ...]:
    """Return the columns that are read out of these attributes, as name and value.

    >>> dict(curation_columns("B70f", "SIEMENS", "Biograph 40", "", "CT AC"))["pet_ct"]
    'yes'
    """
    maker = maker_of(manufacturer)
    agent, words = agent.lower(), description.lower().replace("_", " ")
    phase = next((name for name, said in PHASES.items() if said.search(words)), "")
    has_contrast = _has_contrast(agent, words, phase)
    return (
        ("contrast", has_contrast),
        ("contrast_phase", phase if has_contrast == "yes" else ""),
        ("kernel_class", kernel_class(kernel, maker if maker in MAKERS else "")),
        ("scanner", f"{maker} {_short(model, manufacturer)}".strip()),
        ("pet_ct", _is_pet_ct(f"{model} {manufacturer}".lower(), words)),
    )


def maker_of(manufacturer: str) -> str:
    """Return the one name of a maker; the text as it is if it is none that is known."""
    text = manufacturer.lower()
    return next((name for name, said in MAKERS.items() if said.search(text)), " ".join(manufacturer.split()))


def _has_contrast(agent: str, words: str, phase: str) -> str:
    if NO_AGENT.fullmatch(agent):
        return "no"
    in_vein = BY_MOUTH.sub(" ", agent)
    if re.search(r"[a-z]{2}", in_vein):  # `O` or `&` names nothing
        return "yes"
    if WITHOUT.search(words):
        return "no"
    return "yes" if phase or WITH.search(words) else "unknown"


def _short(model: str, manufacturer: str) -> str:
    """Return the model without the maker's name before it, and with single spaces."""
    text = " ".join(model.replace("_", " ").split())
    is_named = text.lower().startswith(maker_of(manufacturer).lower() + " ")
    return text.partition(" ")[2] if is_named else text


def _is_pet_ct(scanner: str, words: str) -> str:
    if PET_MODELS.search(scanner) or ATTENUATION.search(words):
        return "yes"
    return "no" if CT_MODELS.search(scanner) else "unknown"
