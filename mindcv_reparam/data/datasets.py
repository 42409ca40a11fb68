"""Data sets by name."""

from collections.abc import Sequence

from mindcv_reparam.config import Config
from mindcv_reparam.data.cifar import Cifar10
from mindcv_reparam.data.digits import Digits
from mindcv_reparam.data.image_folder import ImageFolder, find_split
from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.errors import UserError


def create_dataset(config: Config, train: bool, classes: Sequence[str] | None = None) -> ImageSource:
    """The training or validation part of ``config.dataset``: digits, cifar10, or imagenet for any image folder.

    ``classes`` imposes the class-to-index mapping of a checkpoint (names in the order of their index); None or empty:
    the data set's own. Raises UserError when the data is not there or has classes beside the imposed ones.
    """
    classes = classes or None
    if config.dataset == "digits":
        return _with_classes(Digits(train), classes)
    if config.dataset == "cifar10":
        return _with_classes(Cifar10(config.data_dir, train), classes)
    split, other = (config.train_split, config.val_split) if train else (config.val_split, config.train_split)
    return ImageFolder(find_split(config.data_dir, split, other), classes)


def _with_classes(source: ImageSource, classes: Sequence[str] | None) -> ImageSource:
    """``source`` checked against imposed classes: a data set with fixed classes cannot follow another mapping."""
    if classes is not None and tuple(classes) != source.classes:
        raise UserError(
            f"the checkpoint has {len(classes)} classes ({', '.join(classes[:3])}, …), the data set others "
            f"({', '.join(source.classes[:3])}, …): give the data set that it was trained on"
        )
    return source
