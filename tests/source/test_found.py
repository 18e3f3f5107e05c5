"""Several series in one folder: the largest that can be written is read, and it is said which one that is."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import tiny

import dskprep
from dskprep.cli import commands
from dskprep.source.found import find_series


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder of three series: of 60 slices with a gap, of 30, of 11."""
    whole = tiny.series(1, n=63)
    gap = {name: data for k, (name, data) in enumerate(whole.items()) if k not in (20, 21, 22)}
    good = {f"s{name}": data for name, data in tiny.series(2, n=30).items()}
    small = {f"t{name}": data for name, data in tiny.series(3, n=11).items()}
    tiny.write(tmp_path / "p", gap | good | small)
    return tmp_path / "p"


def test_the_largest_series_that_can_be_written_comes_first_and_refused_ones_last(three: Path) -> None:
    found = find_series(three)
    assert [one.n_slices for one in found] == [30, 11, 60]
    assert isinstance(found[2].made, dskprep.Refusal)
    assert [one.n_slices for one in find_series(three, uid_sha256=found[1].name.uid_sha256)] == [11]


def test_reading_one_of_several_series_warns_in_a_line_and_a_digest_chooses(
    three: Path, recwarn: pytest.WarningsRecorder
) -> None:
    second = find_series(three)[1].name.uid_sha256
    assert dskprep.read_series(three, uid_sha256=second).n_slices == 11
    assert len(recwarn) == 0
    with pytest.warns(UserWarning, match="of 3 series that can be written") as warned:
        series = dskprep.read_series(three)
    assert series.n_slices == 30
    (warning,) = warned
    assert warning.filename == __file__
    assert str(warning.message) == (
        f"{three}: the largest of 3 series that can be written was taken, with 30 slices; the others have "
        "11, 60 (refused, missing-slices); uid_sha256 chooses another"
    )


def test_compare_says_in_a_line_which_series_it_took(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run_command(["compare", "default", "zuidhof", "--series", str(three)]) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: ")
    assert "with 30 slices; the others have 11" in note


def test_a_plan_calibrates_by_the_largest_and_says_nothing_of_it(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run_command(["plan", str(three.parent)]) == 1
    assert capsys.readouterr().err == ""


def test_names_that_stand_twice_in_an_archive_are_told_where_slices_lie_at_one_position(tmp_path: Path) -> None:
    """As after `tar -r`, which adds the new files and leaves the old ones in it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as added_to:
        for series in (tiny.series(0), tiny.series(1, series_uid="1.2.3.0")):
            for name, content in series.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                added_to.addfile(info, io.BytesIO(content))
    tiny.write(tmp_path, {"p1.tar": file.getvalue()})
    with pytest.raises(
        dskprep.Refusal, match=r"12 names of files, such as IM000\.dcm, more than once in the archive"
    ) as e:
        dskprep.read_series(tmp_path / "p1.tar")
    assert e.value.reason == "duplicate-positions"
    apart = {f"b{name}": content for name, content in tiny.series(1, series_uid="1.2.3.0").items()}
    tiny.write(tmp_path, {"p2.tar": tiny.tarred(tiny.series(0) | apart)})
    with pytest.raises(dskprep.Refusal, match=r"no tags that separate stacks of 10 or more$"):
        dskprep.read_series(tmp_path / "p2.tar")
