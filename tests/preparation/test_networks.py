"""The networks of examples/, each in the process of a mask slot: with stand-ins, and with an ONNX file made here."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dskprep import PADDING, PrepConfig, Volume, prepare
from dskprep.preparation import mask_slots

TESTS = Path(__file__).parent.parent
SPACING_MM = 8.0


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples can be imported, and the slots have a place of their own."""
    monkeypatch.setattr(sys, "path", [str(TESTS.parent / "examples"), *sys.path])
    assert tmp_path  # pytest makes it before the place for such folders is another
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield
        mask_slots._end_all()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found first are the stand-ins; nothing of them is imported in this process."""
    monkeypatch.setattr(sys, "path", [str(TESTS / "stand_ins"), *sys.path])


@pytest.fixture
def truth() -> np.ndarray:
    """The right lung is where x is low, and the larger one, so that no mirrored mask fits."""
    mask = np.zeros((40, 48, 48), np.uint8)
    mask[8:-10, 10:-10, 10:20] = 1
    mask[10:-10, 12:-10, 28:38] = 2
    return mask


@pytest.fixture
def chest(truth: np.ndarray) -> Volume:
    """Two lungs in a body of water, turned by nothing, with the corners outside the field of view."""
    array = np.full(truth.shape, -1000, np.int16)
    array[4:-4, 4:-4, 4:-4] = 40
    array[truth > 0] = -850
    array[:, :2, :2] = PADDING
    affine = np.diag([SPACING_MM] * 3 + [1.0])[[2, 1, 0, 3]]
    affine[:3, 3] = (-200, -180, 40)
    return Volume(array, affine)


def settings(path: str) -> PrepConfig:
    return PrepConfig(lungs=path, mask_slots=1, mask_memory="1GiB", spacing_mm=(SPACING_MM,) * 3)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("path", ["lungmask_lungs:LungMask", "totalsegmentator_lungs:find_lungs"])
def test_right_is_right_and_left_is_left(chest: Volume, truth: np.ndarray, path: str) -> None:
    found = prepare(chest, settings(path)).lungs
    assert found is not None
    np.testing.assert_array_equal(found.mask.array, truth)
    assert not {"lungs-fallback", "lungs-disagree"} & set(found.warnings)


def onnx_file(path: Path, size: int | str) -> str:
    """Write a network for slices of that size: -950 to -350 HU are lung, right in the first half of a row."""
    onnx = pytest.importorskip("onnx", reason="needs the extra interop")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    helper, numbers = onnx.helper, onnx.numpy_helper
    n = 48 if isinstance(size, str) else size
    is_left = np.arange(n) >= n // 2
    scores = np.stack(
        [np.where(is_left, -1, (300 / 1624) ** 2), np.where(is_left, (300 / 1624) ** 2, -1)]
    )  # right, left
    constants = {"mean": np.float32((-650 + 1024) / 1624), "sides": scores.astype(np.float32)[None, :, None]}
    nodes = [
        helper.make_node("Sub", ["slices", "mean"], ["away"]),
        helper.make_node("Mul", ["away", "away"], ["outside"]),
        helper.make_node("Mul", ["outside", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "sides"], ["lungs"]),
        helper.make_node("Concat", ["outside", "lungs"], ["scores"], axis=1),
    ]
    constants["zero"] = np.float32(0)
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "lungs",
        [helper.make_tensor_value_info("slices", float32, ["n", 1, size, size])],
        [helper.make_tensor_value_info("scores", float32, ["n", 3, size, size])],
        [numbers.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("size", [48, 96, "any"])
def test_an_onnx_file_of_the_users_own(
    chest: Volume, truth: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | str
) -> None:
    monkeypatch.setenv("LUNGS_ONNX", onnx_file(tmp_path / "lungs.onnx", size))
    found = prepare(chest, settings("onnx_lungs:Lungs")).lungs
    assert found is not None
    within = (slice(6, -6),) * 3  # between body and air, a voxel that is interpolated may have the HU of lung
    np.testing.assert_array_equal(found.mask.array[within], truth[within])


def test_onnxruntime_out_of_memory_is_python_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises the same exception for all that goes wrong; its text tells."""
    import onnx_lungs

    class Session:
        def run(self, *_: object) -> list[np.ndarray]:
            raise RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 4294967296")

    lungs = onnx_lungs.Lungs.__new__(onnx_lungs.Lungs)
    monkeypatch.setattr(lungs, "_session", Session(), raising=False)
    monkeypatch.setattr(lungs, "_input", type("Input", (), {"name": "x", "shape": ["n", 1, 8, 8]}), raising=False)
    with pytest.raises(MemoryError, match="allocate memory"):
        lungs(Volume(np.zeros((2, 8, 8), np.int16), np.eye(4)[[2, 1, 0, 3]]))
