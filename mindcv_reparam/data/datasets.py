"""Data sets by name."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from mindcv_reparam.config import Config
from mindcv_reparam.data.cifar import Cifar10
from mindcv_reparam.data.decoder import Decoder
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.data.image_archive import ImageArchive, find_archives
from mindcv_reparam.data.image_folder import ClassFolders, ImageFolder, find_split
from mindcv_reparam.data.image_list import ImageList, is_list
from mindcv_reparam.data.object_files import open_objects
from mindcv_reparam.data.objects import AnnotatedFiles
from mindcv_reparam.data.source import ImageSource, with_classes
from mindcv_reparam.data.splits import SPLIT, Division, Split, division_of, read_split
from mindcv_reparam.errors import UserError

Embedded = Literal["digits", "scenes"]  # come along, and need no folder
EMBEDDED: tuple[Embedded, ...] = get_args(Embedded)
_USUAL: dict[str, str] = {"train_split": Config.train_split, "val_split": Config.val_split}

_log = logging.getLogger(__name__)


def create_dataset(
    config: Config,
    train: bool,
    classes: Sequence[str] | None = None,
    run: Path | None = None,
    beside: ImageSource | None = None,
) -> ImageSource:
    """The training or validation part of ``config.dataset``: digits, cifar10, or imagenet for any image folder; for
    detection coco, yolo or scenes.

    Args:
        classes: the class-to-index mapping of a checkpoint to impose (names in the order of their index); None or
            empty: the data set's own.
        run: folder of a run, whose split is used where images were held out.
        beside: the training images, where the validation images of the same run are asked for: they may only be the
            same ones if ``val_split`` says so.

    Raises:
        UserError: the data is not there, or has classes beside the imposed ones.
    """
    classes = classes or None
    division = division_of(config)
    file = run / SPLIT if run is not None and (run / SPLIT).is_file() else None
    if config.dataset in ("digits", "cifar10", "scenes") and division is not None:
        raise UserError(f"{division}: {config.dataset} has validation images of its own")
    if config.dataset in ("coco", "yolo", "scenes"):
        objects = open_objects(config, train or division is not None, classes)
        if division is None or not isinstance(objects, AnnotatedFiles):
            return objects
        return _part(objects, np.zeros(len(objects)), division, config, train, file)
    if config.dataset in ("digits", "cifar10"):
        whole = Digits(train) if config.dataset == "digits" else Cifar10(config.data_dir, train)
        return with_classes(whole, classes)
    if division is not None:
        names = config.train_split, "", _USUAL["train_split"]
    elif train:
        names = config.train_split, config.val_split, _USUAL["train_split"]
    else:
        names = config.val_split, config.train_split, _USUAL["val_split"]
    source, divided = _open_classes(config, names, classes)
    if division is None and (train or file is None or source.root != Path(config.data_dir)):
        if not train and not divided:
            _tell_of_training_images(config, source.root, beside)
        return source
    return _part(source, source.labels, division, config, train, file)


def _open_classes(
    config: Config, names: tuple[str, str, str], classes: Sequence[str] | None
) -> tuple[ClassFolders, bool]:
    """A list, archives or a folder of images with classes, and whether a list says which images are for what.

    Args:
        names: of the part that is wanted, of the other one, and the usual one of what is wanted.
    """
    decoder = Decoder.of(config)
    if is_list(config.data_dir):
        images = ImageList(Path(config.data_dir), names[0], classes, decoder)
        return images, images.divided
    if archives := find_archives(config.data_dir, names[0]):
        return ImageArchive(archives, *names, classes, decoder), False
    return ImageFolder(find_split(config.data_dir, *names), classes, decoder), False


def _part(
    source: ClassFolders | AnnotatedFiles,
    strata: np.ndarray,
    division: Division | None,
    config: Config,
    train: bool,
    file: Path | None,
) -> ImageSource:
    """The training or validation images of a source, as a run divided it before or else at random.

    Args:
        strata: a number per image, (N,); the division takes its part of each.
        file: of the run, which tells how.

    Raises:
        UserError: there are too few images, or the run's file of its division does not fit.
    """
    if file is not None:
        if not train:
            _log.info("the validation images are those of %s", file)
        return source.part(*reversed(read_split(file, source.files, train)))
    assert division is not None
    split = Split(source.files, division.held_out(strata, config.seed))
    if not split.held_out.any() or split.held_out.all():
        raise UserError(f"{division} holds no image out: of {len(source)}, none can be spared")
    return source.part(np.flatnonzero(split.held_out != train), split)


def write_images(dataset: Embedded, folder: str, count: int) -> None:
    """The first validation images of an embedded data set as files, such as others come in."""
    source = create_dataset(Config(dataset=dataset), train=False)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        source.load(index).save(Path(folder) / f"{index:03d}.png")


def run_to_resume(config: Config) -> Path | None:
    """The folder of the run that ``config.resume`` names, where it has one."""
    if not config.resume:
        return None
    if config.resume == "auto":
        folder = Path(config.ckpt_save_dir)
        return folder if any(folder.glob("*_resume.npz")) else None
    path = Path(config.resume)
    return path.parent if path.suffix == ".npz" else path


def _tell_of_training_images(config: Config, root: Path, beside: ImageSource | None) -> None:
    """Raise UserError, or log a line, where validation images are not apart from the training images."""
    if config.val_split == config.train_split:
        _log.info("validation runs on the training images, as val_split %s says", config.val_split)
    elif isinstance(beside, ClassFolders) and beside.root == root:
        raise UserError(
            f"{root} has no folder {config.val_split!r} of validation images: hold out a part of the training images "
            f"with --val_split 0.1, or validate on all of them with --val_split {config.train_split}"
        )
    elif root == Path(config.data_dir):
        _log.info("%s has no splits: all of its images are validated", root)
