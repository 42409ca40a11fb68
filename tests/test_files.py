"""Files are written whole or not at all."""

import pytest

from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole


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
