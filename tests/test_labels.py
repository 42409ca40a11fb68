"""Names of classes: ImageNet's, files of names, and what happens where nobody names the outputs."""

import pytest

from mindcv_reparam.errors import UserError
from mindcv_reparam.labels import IMAGENET, check_order, class_folders, published, read_class_names


def test_imagenets_classes_are_in_the_order_of_published_weights():
    names = published(1000)
    assert len(set(names.folders)) == len(set(names.shown)) == 1000
    assert list(names.folders) == sorted(names.folders)
    # The indices that everyone knows of the published weights.
    known = {0: ("n01440764", "tench"), 207: ("n02099601", "golden retriever"), 281: ("n02123045", "tabby")}
    known |= {134: ("n02012849", "crane, wading bird"), 517: ("n03126707", "crane, machine"), 999: ("n15075141",)}
    for index, expected in known.items():
        assert (names.folders[index], names.shown[index])[: len(expected)] == expected


def test_cocos_categories_have_the_numbers_of_its_files():
    names = published(80)
    assert len(names.category_ids) == len(set(names.folders)) == 80
    numbers = dict(zip(names.folders, names.category_ids))
    known = {"person": 1, "fire hydrant": 11, "stop sign": 13, "backpack": 27, "umbrella": 28, "handbag": 31}
    known |= {"bottle": 44, "wine glass": 46, "dining table": 67, "toilet": 70, "tv": 72, "book": 84, "toothbrush": 90}
    assert known.items() <= numbers.items()
    assert published(1000).category_ids is None


def test_a_line_may_name_the_folder_and_the_class(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("n1\ta cat\nn2\ndog\tdog\n", encoding="utf-8")
    names = read_class_names(path)
    assert (names.folders, names.shown) == (("n1", "n2", "dog"), ("a cat", "n2", "dog"))


def test_the_users_file_goes_before_the_checkpoint(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("b\na\n")
    assert class_folders(str(path), ["x", "y"], 2) == ("b", "a")
    assert class_folders("", ["x", "y"], 2) == ["x", "y"]
    assert class_folders("", None, 2) is None
    with pytest.raises(UserError, match=r"names\.txt names 2 classes, the network has 1 outputs"):
        class_folders(str(path), None, 1)
    path.write_text("b\nb\n")
    with pytest.raises(UserError, match="must name every class once"):
        class_folders(str(path), None, 2)
    with pytest.raises(UserError, match="cannot read the labels"):
        class_folders(str(tmp_path / "none.txt"), None, 2)


def test_unnamed_outputs_are_taken_in_order_only_where_their_number_is_that_of_the_data(caplog):
    with caplog.at_level("INFO"):
        check_order(None, ["cat", "dog"], 2)
    assert caplog.messages == [
        "the checkpoint does not name its classes: its 2 outputs are taken for those of the data in order"
    ]
    with pytest.raises(UserError) as raised:
        check_order(None, ["n01440764", "n15075141"], 1000)
    assert "which of its 1000 outputs are the 2 of the data? Name them by --labels FILE" in str(raised.value)
    assert str(raised.value).endswith(str(IMAGENET))
    check_order(["n01440764", "n15075141"], ["n15075141"], 1000)
    assert len(caplog.messages) == 1
