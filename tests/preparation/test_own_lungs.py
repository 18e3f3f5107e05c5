"""Lungs by a function of the user's own: in this process or in one of a mask slot, with the same outcome."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import own_masks
import pytest
import tiny

import dskprep
from dskprep import PrepConfig, Volume, prepare
from dskprep.errors import InfrastructureError, Refusal, UsageError
from dskprep.preparation import mask_slots, user_steps

SPACING_MM = 8.0
VOXEL_ML = SPACING_MM**3 / 1000


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the events of own_masks, and places of its own for the slots."""
    folder = tmp_path / "log"
    folder.mkdir()
    monkeypatch.setenv("OWN_MASKS_LOG", str(folder))
    with tempfile.TemporaryDirectory() as short:  # the path of a socket is short
        monkeypatch.setenv("TMPDIR", short)
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield folder
        mask_slots._end_all()


@pytest.fixture
def chest() -> Volume:
    """Two lungs of air in a body of water: the patient's right is where x is low."""
    array = np.full((40, 48, 48), -1000, np.int16)
    array[4:-4, 4:-4, 4:-4] = 40
    array[10:-10, 10:-10, 10:20] = array[10:-10, 10:-10, 28:38] = -850
    return Volume(array, np.diag([SPACING_MM] * 3 + [1.0])[[2, 1, 0, 3]])


def settings(function: str, slots: int) -> PrepConfig:
    memory = "1GiB" if slots else "0GiB"
    spacing_mm = (SPACING_MM,) * 3
    return PrepConfig(lungs=f"own_masks:{function}", mask_slots=slots, mask_memory=memory, spacing_mm=spacing_mm)


def find(image: Volume, function: str, slots: int) -> dskprep.Lungs:
    found = prepare(image, settings(function, slots)).lungs
    assert found is not None
    return found


@pytest.mark.parametrize("slots", [0, 1])
def test_the_mask_is_that_of_the_function(log: Path, chest: Volume, slots: int) -> None:
    found = find(chest, "Loaded", slots)
    np.testing.assert_array_equal(found.mask.array, own_masks.halves(chest).array)
    assert found.mask.array.dtype == np.uint8
    assert found.right_ml == found.left_ml == pytest.approx(20 * 28 * 10 * VOXEL_ML)
    processes = own_masks.logged(log, "loaded")
    assert len(processes) == 1
    assert (processes[0] == os.getpid()) is (slots == 0)


@pytest.mark.parametrize("slots", [0, 1])
@pytest.mark.parametrize("function", ["clipped", "written_over"])
@pytest.mark.usefixtures("log")
def test_a_function_that_changes_its_input_changes_no_image(chest: Volume, function: str, slots: int) -> None:
    made = prepare(chest, settings(function, slots))
    np.testing.assert_array_equal(made.image.array, chest.array)
    assert made.lungs is not None
    np.testing.assert_array_equal(made.lungs.mask.array, own_masks.halves(chest).array)


@pytest.mark.parametrize("slots", [0, 1])
def test_the_same_class_is_loaded_once_for_all_images(log: Path, chest: Volume, slots: int) -> None:
    user_steps._instance.cache_clear()
    for _ in range(3):
        find(chest, "Loaded", slots)
    assert len(own_masks.logged(log, "loaded")) == 1


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("slots", [0, 1])
@pytest.mark.parametrize("function", ["without_memory", "without_gpu_memory"])
def test_out_of_memory_gives_the_lungs_of_dskprep(chest: Volume, function: str, slots: int) -> None:
    own = dskprep.find_lungs(chest)
    found = find(chest, function, slots)
    np.testing.assert_array_equal(found.mask.array, own.mask.array)
    assert found.warnings == (*own.warnings, "lungs-fallback")
    assert (found.right_ml, found.disagreed_ml) == (own.right_ml, None)


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("slots", [0, 1])
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("own_steps:broken", "^own_steps:broken: ValueError: not today$"),
        ("own_steps:windowed", "^own_steps:windowed: expected a mask.*float32$"),
        ("own_steps:wrong_labels", "^own_steps:wrong_labels: expected a mask of 0 to 3, found 7 to 7$"),
        ("own_masks:moved", "^own_masks:moved: expected a mask in the place of its image, found another affine"),
        ("own_masks:leaves", "^own_masks:leaves: SystemExit: no licence$"),
        ("own_masks:unspeakable", "^own_masks:unspeakable: Unspeakable: its message cannot be shown$"),
        ("own_steps:absent", "^own_steps:absent: cannot be imported"),
        ("own_ending:anything", "^own_ending:anything: cannot be imported: SystemExit: 0;"),
        ("own_masks:Uncallable", "^own_masks:Uncallable: expected a class whose instances can be called"),
    ],
)
def test_what_goes_wrong_is_one_line_that_names_the_function(
    chest: Volume, path: str, problem: str, slots: int
) -> None:
    config = PrepConfig(lungs=path, mask_slots=slots, mask_memory="1GiB", spacing_mm=(SPACING_MM,) * 3)
    with pytest.raises((user_steps.StepFailed, UsageError)) as caught:
        prepare(chest, config)
    assert re.search(problem, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("slots", [0, 1])
def test_a_function_may_refuse_its_patient(chest: Volume, slots: int) -> None:
    with pytest.raises(Refusal, match="not to my liking"):
        find(chest, "refuses", slots)


@pytest.mark.usefixtures("log")
def test_the_traceback_of_a_function_comes_back_from_its_process(chest: Volume) -> None:
    config = PrepConfig(lungs="own_steps:broken", mask_slots=1, mask_memory="1GiB", spacing_mm=(SPACING_MM,) * 3)
    with pytest.raises(user_steps.StepFailed) as caught:
        prepare(chest, config)
    assert "own_steps.py" in "".join(caught.value.__notes__)


def test_a_process_that_the_system_killed_was_out_of_memory(
    log: Path, chest: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN_MASKS_END", str(int(signal.SIGKILL)))
    assert "lungs-fallback" in find(chest, "Dies", 1).warnings
    assert len(own_masks.logged(log, "loaded")) == 1


@pytest.mark.usefixtures("log")
def test_a_process_that_crashes_costs_its_patient(chest: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_MASKS_END", str(int(signal.SIGTERM)))
    with pytest.raises(user_steps.StepFailed, match=r"^own_masks:Dies: its process \d+ ended with -15$"):
        find(chest, "Dies", 1)
    find(chest, "Loaded", 1)  # the next patient


def test_after_it_ran_out_of_memory_the_process_begins_anew(log: Path, chest: Volume) -> None:
    find(chest, "without_memory", 1)
    (ended,) = mask_slots._PROCESSES.values()
    find(chest, "without_memory", 1)
    (new,) = mask_slots._PROCESSES.values()
    assert ended.pid != new.pid
    assert log.exists()


def test_a_slot_has_a_number_and_its_share_of_the_cpus(
    log: Path, chest: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_slots, "CPU_COUNT", 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as a worker has it
    find(chest, "environment", 2)
    assert len(own_masks.logged(log, "slot0")) == len(own_masks.logged(log, "threads4")) == 1


def test_what_a_network_prints_is_not_on_standard_output(
    log: Path, chest: Volume, capfd: pytest.CaptureFixture[str]
) -> None:
    find(chest, "Loaded", 1)
    mask_slots._end_all()
    printed = capfd.readouterr()
    assert (printed.out, "a line of a network's" in printed.err) == ("", True)
    assert log.exists()


# Beside the lungs that dskprep finds


def test_a_mask_that_agrees_has_no_warning(chest: Volume) -> None:
    found = find(chest, "halves", 0)
    own = dskprep.find_lungs(chest)
    assert found.disagreed_ml == np.count_nonzero(found.mask.array != own.mask.array) * VOXEL_ML
    assert found.disagreed_ml < 0.1 * (found.right_ml + found.left_ml)
    assert "lungs-disagree" not in found.warnings


def test_lung_of_unknown_side_agrees_with_either(chest: Volume) -> None:
    assert find(chest, "unsided", 0).disagreed_ml == find(chest, "halves", 0).disagreed_ml


def test_swapped_sides_disagree(chest: Volume) -> None:
    found = find(chest, "swapped", 0)
    assert found.disagreed_ml is not None
    assert found.disagreed_ml >= found.right_ml + found.left_ml
    assert "lungs-disagree" in found.warnings


@pytest.mark.parametrize(("lost", "disagrees"), [(0.1, False), (0.3, True)])
def test_lung_that_is_missing_disagrees_beyond_the_bound(
    chest: Volume, monkeypatch: pytest.MonkeyPatch, lost: float, disagrees: bool
) -> None:
    def partly(image: Volume) -> Volume:
        mask = dskprep.find_lungs(image).mask.array
        z = np.nonzero(mask.any(axis=(1, 2)))[0]
        mask[: z[0] + round(lost * len(z))] = 0
        return image.with_array(mask)

    monkeypatch.setattr(own_masks, "partly", partly, raising=False)
    found = find(chest, "partly", 0)
    assert ("lungs-disagree" in found.warnings) is disagrees
    assert found.disagreed_ml == pytest.approx(
        sum(ml for ml in (dskprep.find_lungs(chest).right_ml, dskprep.find_lungs(chest).left_ml)) * lost, rel=0.1
    )


# Slots


HOLDER = """
import sys
from dskprep.preparation import mask_slots
with mask_slots.take("own_masks:halves", 1):
    print("held", flush=True)
    sys.stdin.read()
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_slot_whose_holder_is_killed_is_free_again(log: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    assert holder.stdin
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"

    def take() -> str:
        with mask_slots.take("own_masks:halves", 1) as slot:
            return slot.path

    with ThreadPoolExecutor(1) as executor, holder.stdin, holder.stdout:
        waiting = executor.submit(take)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=10 * mask_slots.POLL_S)
        holder.kill()
        assert waiting.result(timeout=200) == "own_masks:halves"
        holder.wait()
    assert log.exists()


def test_the_process_ends_with_the_one_that_started_it(log: Path) -> None:
    code = f"""
import os, numpy as np
from dskprep.preparation import mask_slots
from dskprep.volume import Volume
image = Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)[[2, 1, 0, 3]])
with mask_slots.take("own_masks:Loaded", 1) as slot:
    slot.find_lungs(image)
    print(*[process.pid for process in mask_slots._PROCESSES.values()], flush=True)
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment(), check=False)
    (pid,) = map(int, done.stdout.split())
    assert own_masks.logged(log, "loaded") == [pid]
    assert own_masks.wait_for_end([pid])


def test_a_process_that_lets_no_thread_go_on_ends_with_the_one_that_started_it(log: Path) -> None:
    code = """
import numpy as np
from dskprep.preparation import mask_slots
from dskprep.volume import Volume
with mask_slots.take("own_masks:HoldsPython", 1) as slot:
    slot.find_lungs(Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)[[2, 1, 0, 3]]))
"""
    starter = subprocess.Popen([sys.executable, "-c", code], env=environment())
    until = time.monotonic() + tiny.LIMIT_S
    while not (holding := own_masks.logged(log, "holds")) and starter.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert holding
    starter.kill()
    starter.wait()
    assert own_masks.wait_for_end(holding)


def test_a_process_that_does_not_say_that_it_is_there_is_replaced(
    log: Path, chest: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it still does what a worker asked that is gone, and another worker had started it."""
    find(chest, "Loaded", 1)
    (first,) = own_masks.logged(log, "loaded")
    os.kill(first, signal.SIGSTOP)
    monkeypatch.setattr(mask_slots, "HELLO_S", 0.1)
    found = find(chest, "Loaded", 1)
    np.testing.assert_array_equal(found.mask.array, own_masks.halves(chest).array)
    assert own_masks.wait_for_end([first])
    assert len(own_masks.logged(log, "loaded")) == 2


def test_a_process_that_the_system_does_not_name_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another container has the number 0 here, which stands for the group of this process."""
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _: killed.append(pid))
    for pid in (0, 54321):
        monkeypatch.setattr(mask_slots.struct, "unpack", lambda *_, pid=pid: (pid, 0, 0))
        here, there = Pipe()
        mask_slots._kill_peer(here)
        there.close()
    assert killed == [54321]


@pytest.mark.usefixtures("log")
def test_a_place_for_slots_that_others_can_enter_is_not_used(chest: Volume) -> None:
    place = Path(tempfile.gettempdir()) / f"dskprep-masks-{os.getuid()}"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(InfrastructureError, match=r"expected a folder of your own .* found drwxrwxrwx .*; remove it"):
        find(chest, "halves", 1)
    place.rmdir()
    place.symlink_to(tempfile.mkdtemp())
    with pytest.raises(InfrastructureError, match=r"expected a folder of your own .* found lrwx"):
        find(chest, "halves", 1)
    place.unlink()
    find(chest, "halves", 1)
    assert {stat.S_IMODE(place.stat().st_mode)} == {0o700}


@pytest.mark.usefixtures("log")
def test_a_place_whose_path_is_too_long_says_what_to_do(
    chest: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(InfrastructureError, match="too long for a socket; set TMPDIR to a shorter one"):
        find(chest, "halves", 1)
