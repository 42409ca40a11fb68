"""State files that are damaged, altered or of another kind: one line, and nothing read that does not fit."""

import io
import json
import zipfile
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from alone import Alone
from mindspore import Tensor

from mindcv_reparam.archives import Archive
from mindcv_reparam.config import Config
from mindcv_reparam.errors import UserError
from mindcv_reparam.training.resume import Progress, TrainingState, resume_path

STEPS = 5


@pytest.fixture
def state(tmp_path) -> TrainingState:
    """Saved at epoch 1, step 2; then its parameters are set to 0."""
    parameters = {
        "weight": ms.Parameter(Tensor(np.arange(6, dtype=np.float32).reshape(2, 3)), name="weight"),
        "step": ms.Parameter(Tensor(7, ms.int32), name="step"),
    }
    state = TrainingState(tmp_path / "small_resume.npz", parameters, Alone(), Config(model="small"), STEPS)
    state.save(Progress(1, 2, (0.5, float("nan")), (12.0, 1.0, 0.5), 1))
    for parameter in parameters.values():
        parameter.set_data(Tensor(np.zeros_like(parameter.asnumpy())))
    return state


def test_what_was_saved_is_restored_also_a_loss_that_was_nan(state):
    progress = state.restore(state.path)
    assert (progress.epoch, progress.step, progress.measured, progress.skipped_in_a_row) == (1, 2, (12.0, 1.0, 0.5), 1)
    assert progress.losses[0] == 0.5
    assert np.isnan(progress.losses[1])
    np.testing.assert_array_equal(state.parameters["weight"].asnumpy(), np.arange(6).reshape(2, 3))
    assert int(state.parameters["step"].asnumpy()) == 7


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def npy(value, **options) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(value), **options)
    return file.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    padded = text.encode() + b" " * (-len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + data


def refusal(state: TrainingState) -> str:
    """The one line; nothing was set."""
    with pytest.raises(UserError) as caught:
        state.restore(state.path)
    assert not any(parameter.asnumpy().any() for parameter in state.parameters.values())
    message = str(caught.value)
    assert str(state.path) in message
    assert "\n" not in message
    assert len(message) < 1000
    return message


WEIGHT = "all/weight.npy"
ALTERED = {
    "another shape": ({WEIGHT: npy(np.ones((3, 2), np.float32))}, "of another shape or type: weight"),
    "another type": ({WEIGHT: npy(np.ones((2, 3)))}, "of another shape or type: weight"),
    "one axis": ({WEIGHT: npy(np.ones(6, np.float32))}, "of another shape or type: weight"),
    "for each of no ranks": ({"each/step.npy": npy(np.ones(3, np.int32)), "all/step.npy": None}, "of another shape"),
    "for all and for each": ({"each/step.npy": npy(np.ones(1, np.int32))}, "there twice: step"),
    "a name without a place": ({"weight.npy": npy(np.ones((2, 3), np.float32))}, "unknown here: weight"),
    "missing": ({WEIGHT: None}, "it lacks weight"),
    "no run": ({"run.npy": None}, "it does not say which run it is of"),
    "run is a number": ({"run.npy": npy(3)}, "it does not say which run it is of"),
    "run is a list": ({"run.npy": npy(["{}", "{}"])}, "it does not say which run it is of"),
    "run is no JSON": ({"run.npy": npy("{")}, "what it says of its run"),
    "run is nested": ({"run.npy": npy("[" * 100_000)}, "what it says of its run"),
    "pickled": ({WEIGHT: npy(np.array([1, {}], object), allow_pickle=True)}, "no whole file"),
    "a header of tokens": ({WEIGHT: header("{'descr': '<f4', 'shape': (")}, "no whole file"),
    "a header that computes": ({WEIGHT: header("9**9**9**9")}, "no whole file"),
    "a header of nested lists": ({WEIGHT: header("[" * 3000)}, "no whole file"),
    "a great shape": (
        {WEIGHT: header("{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,), }")},
        "no whole file",
    ),
    "a negative shape": (
        {WEIGHT: header("{'descr': '<f4', 'fortran_order': False, 'shape': (-6,), }", bytes(24))},
        "no whole file",
    ),
    "no array": ({WEIGHT: b"hello"}, "no whole file"),
    "empty": ({WEIGHT: b""}, "no whole file"),
    "another file": ({"readme.txt": b"hello"}, "no whole file"),
}


@pytest.mark.parametrize("change", ALTERED)
def test_an_altered_entry_is_one_line(state, change):
    replaced, message = ALTERED[change]
    pack(state.path, {name: value for name, value in (entries(state.path) | replaced).items() if value is not None})
    assert message in refusal(state)


RUN = {"progress": {}, "config": {}, "ranks": 1, "steps_per_epoch": STEPS}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"progress": None}, "progress"),
        ({"progress": {"epoch": -1}}, "progress.epoch"),
        ({"progress": {"epoch": 1.5}}, "progress.epoch"),
        ({"progress": {"epoch": True}}, "progress.epoch"),
        ({"progress": {"epoch": 10**30}}, "progress.epoch"),
        ({"progress": {"step": "2"}}, "progress.step"),
        ({"progress": {"losses": 3}}, "progress.losses"),
        ({"progress": {"losses": ["a"]}}, "progress.losses[0]"),
        ({"progress": {"measured": [1.0]}}, "progress.measured"),
        ({"config": []}, "config"),
        ({"ranks": "1"}, "ranks"),
        ({"steps_per_epoch": None}, "steps_per_epoch"),
        ({"steps_per_epoch": float("inf")}, "steps_per_epoch"),
    ],
)
def test_an_altered_run_is_one_line_that_names_the_place(state, change, place):
    pack(state.path, entries(state.path) | {"run.npy": npy(json.dumps(RUN | change))})
    assert f"what it says of its run: {place}" in refusal(state)


def test_a_setting_of_any_kind_is_compared_and_shown_in_short(state):
    run = RUN | {"config": {"lr": {"nested": ["x"] * 10_000}}}
    pack(state.path, entries(state.path) | {"run.npy": npy(json.dumps(run))})
    assert "lr {'nested': ['x'" in refusal(state)


def test_no_array_is_read_before_all_shapes_are_compared(state, monkeypatch):
    pack(state.path, entries(state.path) | {WEIGHT: npy(np.ones(1_000_000, np.float32))})
    asked = []
    read = Archive.read
    monkeypatch.setattr(Archive, "read", lambda archive, name: asked.append(name) or read(archive, name))
    assert "of another shape or type: weight" in refusal(state)
    assert asked == ["run"]


def test_a_compressed_archive_is_refused(state):
    pack(state.path, entries(state.path), zipfile.ZIP_DEFLATED)
    assert "it is compressed or encrypted" in refusal(state)


def test_an_encrypted_archive_is_refused(state):
    content = bytearray(state.path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.index(mark) + offset] |= 1
    state.path.write_bytes(content)
    assert "it is compressed or encrypted" in refusal(state)


def test_bytes_altered_anywhere_are_one_line_or_harmless(state):
    """What is left harmless lies in the archive's dates and attributes, or in no entry at all."""
    whole = state.path.read_bytes()
    rng = np.random.default_rng(11)
    told = 0
    for _ in range(300):
        altered = bytearray(whole)
        for position in rng.integers(0, len(whole), rng.integers(1, 4)):
            altered[position] = rng.integers(0, 256)
        state.path.write_bytes(altered)
        try:
            progress = state.restore(state.path)
        except UserError:
            told += 1
            continue
        assert (progress.epoch, progress.step) == (1, 2)
        np.testing.assert_array_equal(state.parameters["weight"].asnumpy(), np.arange(6).reshape(2, 3))
    assert told > 200


# -- Files of another kind --------------------------------------------------------------------------------------------


def test_another_kind_of_file_is_named_with_its_remedy(tmp_path):
    path = tmp_path / "visformer_tiny.ckpt"
    ms.save_checkpoint([{"name": "a", "data": Tensor(np.ones(2, np.float32))}], str(path))
    with pytest.raises(UserError, match=r"no whole file to resume from: it is a checkpoint of MindSpore; train.py"):
        resume_path(str(path), tmp_path, "small", Alone())
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match="no whole file to resume from: it is an image"):
        resume_path(str(path), tmp_path, "small", Alone())


def test_a_state_under_any_name_is_resumed_from(state):
    moved = state.path.rename(state.path.with_name("kept"))
    assert resume_path(str(moved), Path("elsewhere"), "small", Alone()) == moved
    assert state.restore(moved).epoch == 1
