"""Where detection data sets lie in ``data_dir``."""

from collections.abc import Sequence
from pathlib import Path

from mindcv_reparam.config import Config
from mindcv_reparam.data.coco import Coco
from mindcv_reparam.data.decoder import Decoder
from mindcv_reparam.data.scenes import Scenes
from mindcv_reparam.data.source import ImageSource, with_classes
from mindcv_reparam.data.yolo import Yolo
from mindcv_reparam.errors import UserError

_OF_COCO = "{}2017", "{}2014"  # what COCO calls its parts; a folder of the very name comes before
_ROBOFLOW = "_annotations.coco.json"  # lies among the images


def open_objects(config: Config, train: bool, classes: Sequence[str] | None) -> ImageSource:
    """The training or validation images of coco, yolo or scenes.

    Args:
        classes: names to impose, by index.

    Raises:
        UserError: the data is not there or damaged, or has classes beside the imposed ones.
    """
    split = config.train_split if train else config.val_split
    if config.dataset == "scenes":
        return with_classes(Scenes(train), classes)
    decoder, root = Decoder.of(config), Path(config.data_dir)
    if config.dataset == "yolo":
        path = root if root.suffix in (".yaml", ".yml") else root / "data.yaml"
        return Yolo(path, split, classes, decoder)
    named = config.train_annotations if train else config.val_annotations
    path, images = _named(root, named, split) if named else _found(root, split, train)
    return Coco(path, images, classes, decoder)


def _named(root: Path, named: str, split: str) -> tuple[Path, Path]:
    """The user's file, in ``data_dir`` or from where the user is, and the folder of its images."""
    path = root / named if (root / named).is_file() else Path(named)
    return path, next((folder for folder in _folders(root, split) if folder.is_dir()), root)


def _found(root: Path, split: str, train: bool) -> tuple[Path, Path]:
    """COCO's own layout, or the JSON file among the images."""
    if not root.is_dir():
        raise UserError(f"data_dir {root} is no folder: give the folder of the data set with --data_dir")
    names = [split, *(form.format(split) for form in _OF_COCO)]
    for name in names:
        path = root / "annotations" / f"instances_{name}.json"
        folder = next((one for one in _folders(root, name) if one.is_dir()), None)
        if path.is_file() and folder:
            return path, folder
    for name in (split, "valid") if split == "val" else (split,):
        if (root / name / _ROBOFLOW).is_file():
            return root / name / _ROBOFLOW, root / name
    raise UserError(
        f"{root} has neither annotations/instances_{split}2017.json with a folder {split}2017 nor "
        f"{split}/{_ROBOFLOW}: name the JSON file by --{'train' if train else 'val'}_annotations"
    )


def _folders(root: Path, split: str) -> tuple[Path, ...]:
    names = (split, *(form.format(split) for form in _OF_COCO))
    return tuple(folder for name in names for folder in (root / name, root / "images" / name))
