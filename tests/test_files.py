"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from mindcv_reparam import files
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import check_writable, written_whole


def test_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with written_whole(path) as temporary:
        temporary.write_text("text")
        assert not path.exists()
        assert temporary.name == path.name  # some writers choose the format by it
        assert path.parent in temporary.parents  # hence on the same file system
    assert path.read_text() == "text"
    assert list(path.parent.iterdir()) == [path]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_of_that_name_is_a_user_error(tmp_path):
    path = tmp_path / "folder"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*folder"), written_whole(path) as temporary:
        temporary.write_text("text")
    assert list(tmp_path.iterdir()) == [path]


def test_parent_that_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), written_whole(tmp_path / "file" / "inner"):
        pass


@pytest.mark.parametrize("name", ["folder", "file/inner", "file/deeper/inner"])
def test_what_cannot_be_written_is_seen_before_the_work(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write .*{name}: "):
        check_writable(tmp_path / name)
    check_writable(tmp_path / "new" / "deeper" / "inner.csv")
    check_writable(tmp_path / "file")  # to be replaced
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


def folder_of(path, name):
    (path / name).mkdir()
    (path / name / "marker").write_text("old")
    return path / name


def test_a_folder_replaces_the_one_of_its_kind(tmp_path):
    folder = folder_of(tmp_path, "bundle")
    with files.written_folder(folder, marker="marker") as temporary:
        assert (folder / "marker").read_text() == "old"
        (temporary / "marker").write_text("new")
    assert (folder / "marker").read_text() == "new"
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_folder_of_other_things_stays(tmp_path):
    folder = folder_of(tmp_path, "photos")
    with (
        pytest.raises(UserError, match="photos holds other things"),
        files.written_folder(folder, marker="bundle.json"),
    ):
        pass
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize("failing", ["body", "rename"])
def test_the_earlier_folder_survives_a_failure(tmp_path, monkeypatch, failing):
    folder = folder_of(tmp_path, "bundle")
    rename = Path.rename

    def refuse(self, target):
        if self.name.endswith(".tmp") and not self.name.endswith(".old.tmp"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)

    def write():
        with files.written_folder(folder, marker="marker") as temporary:
            (temporary / "marker").write_text("new")
            if failing == "body":
                raise ZeroDivisionError

    with pytest.raises((UserError, ZeroDivisionError)):
        write()
    assert (folder / "marker").read_text() == "old"
    assert os.listdir(tmp_path) == ["bundle"]


def test_an_earlier_run_is_set_aside_where_a_link_leads_to(tmp_path):
    folder_of(tmp_path, "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.set_aside(tmp_path / "link", marker="marker")
    assert sorted(os.listdir(tmp_path)) == ["link", "real", "real.1"]
    assert os.readlink(tmp_path / "link") == str(tmp_path / "real")
    assert os.listdir(tmp_path / "link") == []
    assert (tmp_path / "real.1" / "marker").read_text() == "old"


def test_an_earlier_run_that_cannot_be_renamed_is_a_user_error(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, "run")

    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(UserError, match=r"run holds an earlier run .*Device or resource busy.*another folder"):
        files.set_aside(folder, marker="marker")
