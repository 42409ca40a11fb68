"""Images that a CSV file lists: columns, parts, what is refused, and the same division as of folders."""

import os

import pytest
from PIL import Image

from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset
from mindcv_reparam.errors import UserError


@pytest.fixture
def listed(tmp_path):
    """Six images of one colour each, and what writes a list of them."""
    for number in range(6):
        Image.new("RGB", (4, 4), (10 * number, 0, 0)).save(tmp_path / f"{number}.png")

    def write(text: str) -> str:
        (tmp_path / "list.csv").write_text(text, encoding="utf-8")
        return str(tmp_path / "list.csv")

    return write


def found(source):
    """Colour and class of every image."""
    return {int(source.pixels(i)[0, 0, 0]) // 10: source.classes[source.target(i)] for i in range(len(source))}


PARTS = "path,label,split\n0.png,cat,train\n1.png,dog,val\n2.png,dog,train\n3.png,horse,train\n"


def test_a_list_with_parts(listed, tmp_path):
    config = Config(data_dir=listed(PARTS))
    train = create_dataset(config, True)
    val = create_dataset(config, False, train.classes, beside=train)
    assert train.classes == val.classes == ("cat", "dog", "horse")
    assert (found(train), found(val)) == ({0: "cat", 2: "dog", 3: "horse"}, {1: "dog"})
    assert val.name(0) == str(tmp_path / "1.png")
    other = create_dataset(Config(data_dir=config.data_dir, train_split="val"), True)
    assert found(other) == {1: "dog"}


def test_a_list_without_parts_is_divided_as_a_folder_is(listed, tmp_path):
    text = "path,label\n" + "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(6))
    config = Config(data_dir=listed(text), val_split="0.3")
    train, val = create_dataset(config, True), create_dataset(config, False)
    assert found(train).keys() | found(val).keys() == set(range(6))
    assert sorted(found(val).values()) == ["a", "b"]
    train.write_split(tmp_path / "run")
    alone = create_dataset(Config(data_dir=config.data_dir), False, run=tmp_path / "run")
    assert found(alone) == found(val), "validate.py without the recipe finds the split beside the checkpoint"
    folds = [found(create_dataset(Config(data_dir=config.data_dir, fold=f"{k}/3"), False)).keys() for k in (1, 2, 3)]
    assert sorted(number for fold in folds for number in fold) == list(range(6))
    plain = Config(data_dir=config.data_dir)
    with pytest.raises(UserError, match=r"list.csv has no folder 'val' of validation images: hold out"):
        create_dataset(plain, False, beside=create_dataset(plain, True))


def test_absolute_paths_commas_and_a_mark_at_the_beginning(listed, tmp_path):
    os.rename(tmp_path / "4.png", tmp_path / "a, b.png")
    source = create_dataset(Config(data_dir=listed(f'\ufeffPath, Label\n"a, b.png",x\n\n{tmp_path}/5.png,y\n')), True)
    assert found(source) == {4: "x", 5: "y"}


def test_what_is_not_there_is_told_and_left_out(listed, tmp_path):
    source = create_dataset(Config(data_dir=listed("path,label\n0.png,x\ngone.png,y\n")), True)
    assert found(source) == {0: "x"}
    assert source.problems == (f"{tmp_path}/gone.png, which {tmp_path}/list.csv lists, is not there",)
    with pytest.raises(UserError, match="no images"):
        create_dataset(Config(data_dir=listed("path,label\ngone.png,y\n")), True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no list of images"),
        ("path,label\n", "needs the columns path,label or path,label,split and a line for every image"),
        ("file,label\n0.png,x\n", "needs the columns path,label"),
        ("path,label\n0.png\n", "image 1 has not 2 columns with a path and a label"),
        ("path,label\n0.png,\n", "image 1 has not 2 columns with a path and a label"),
        ("path,label\n0.png,x\n0.png,y\n", "lists 0.png twice"),
        ("path,label,split\n0.png,x,Train\n", "has no images of the split 'train', only Train: name one that is there"),
    ],
)
def test_what_is_no_list_is_one_line(listed, text, message):
    with pytest.raises(UserError, match=message):
        create_dataset(Config(data_dir=listed(text)), True)


def test_labels_that_the_checkpoint_lacks_are_refused(listed):
    with pytest.raises(UserError, match=r"'horse' of .*list.csv \(1 such\) is not among the 2 classes"):
        create_dataset(Config(data_dir=listed(PARTS)), True, ("cat", "dog"))
