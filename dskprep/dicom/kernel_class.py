"""Whether a reconstruction kernel is soft or sharp, by the name that its vendor gives it.

Soft kernels are for mediastinum, abdomen and brain, and for measuring; sharp ones, for lung and bone, enhance edges and
noise, which shifts HU near edges. What stands between, or is not in the table, is `unknown`.

Sources of the table: the pairs that the protocol of NLST prescribes (soft GE STANDARD, Siemens B30f, Philips C, Toshiba
FC10; sharp GE LUNG or BONE, Siemens B50f, Philips D, Toshiba FC51; Cagnon et al., Acad Radiol 2006;13:1431). Siemens'
own scheme: the two digits are the sharpness, medium sharp from 50 on; a letter before them is the part of the body, a
second one the kind (`Br40`, `Bl57`, `I70f`). Toshiba's and Canon's series: FC01 to FC29 body and head with and
without correction of beam hardening, FC30 to FC39 inner ear and bone, FC40 to FC49 head, FC50 to FC59 lung, FC60 to
FC69 head, FC80 to FC89 bone and lung of high resolution. GE's and United Imaging's names say it themselves. Philips'
stand for the filters on the operator's screen: A, B, C smooth to standard, D, E, L and the Y series sharp, UA to UC
brain.
"""

from __future__ import annotations

import re

SOFT, SHARP, UNKNOWN = "soft", "sharp", "unknown"

SHARP_WORDS = frozenset("LUNG BONE BONEPLUS EDGE SHARP VSHARP ULTRASHARP ULTRA".split())
SOFT_WORDS = frozenset("SOFT VSOFT STANDARD STND STD SMOOTH BRAIN MEDIASTINUM".split())
"""Words in the names of GE, United Imaging, Canon and others. GE's DETAIL and CHEST stand between: unknown."""
PHILIPS = dict.fromkeys("A B C UA UB UC".split(), SOFT) | dict.fromkeys("D E L YA YB YC YD YE".split(), SHARP)
SHARP_SERIES = (3, 5, 8)
"""Tens of Toshiba's and Canon's FC numbers that are sharp; 7 and 9 are not known."""
SHARP_FROM = 50
"""Siemens' number from which a kernel is sharp."""

_TOSHIBA = re.compile(r"FC(\d)\d[A-Z]*")
_SIEMENS = re.compile(r"(?:\d+ ?\.\d+\.)?([A-Z][A-Z]?)(\d\d)[A-Z]?")
"""`B30f`, `Br40d`, `I26f`, and `59 .10.AB50` of SOMATOM Plus 4."""


def kernel_class(kernel: str, maker: str = "") -> str:
    r"""Return `soft`, `sharp` or `unknown`; `maker` is one of `description.MAKERS`, or "" where it is not known.

    >>> kernel_class("BONEPLUS"), kernel_class("Br40s\\3", "Siemens"), kernel_class("FC51"), kernel_class("DETAIL")
    ('sharp', 'soft', 'sharp', 'unknown')
    """
    name = kernel.split("\\")[0].strip().upper()
    words = set(re.split(r"[^A-Z]+", name))
    if words & SHARP_WORDS:
        return SHARP
    if words & SOFT_WORDS:
        return SOFT
    if found := _TOSHIBA.fullmatch(name):
        tens = int(found[1])
        return UNKNOWN if tens in (7, 9) else SHARP if tens in SHARP_SERIES else SOFT
    if name in PHILIPS and maker in ("Philips", ""):
        return PHILIPS[name]
    if (found := _SIEMENS.fullmatch(name)) and maker in ("Siemens", "") and found[1] != "T":  # a topogram
        return SHARP if int(found[2]) >= SHARP_FROM else SOFT
    return UNKNOWN
