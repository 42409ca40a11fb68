"""Names of classes, in the order of a network's outputs: the folders of a data set, and what to call them."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic
from annotated_types import Ge, Len, Lt

from mindcv_reparam.errors import UserError
from mindcv_reparam.untrusted import read_text

_ASSETS = Path(__file__).with_name("data") / "assets"
IMAGENET, COCO = _ASSETS / "imagenet1k.tsv", _ASSETS / "coco.txt"
_log = logging.getLogger(__name__)
_BYTES = 16 * 2**20  # of a file
_COCO_LACKS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of the numbers 1 to 90


def _distinct(ids: tuple[int | None, ...]) -> tuple[int | None, ...]:
    known = [number for number in ids if number is not None]
    if len(set(known)) < len(known):
        raise ValueError("two classes have one number")
    return ids


# What annotations call the classes, by index, as anybody's file says it; None for a class that they do not have.
CategoryIds = Annotated[
    tuple[Annotated[int, Ge(-(2**63)), Lt(2**63)] | None, ...], Len(1, 100_000), pydantic.AfterValidator(_distinct)
]


@dataclass(frozen=True)
class ClassNames:
    """Both names of every class, by index, and what annotations call it where they number classes."""

    folders: tuple[str, ...]
    shown: tuple[str, ...]
    category_ids: tuple[int, ...] | None = None


def read_class_names(path: str | os.PathLike[str]) -> ClassNames:
    """Class names from a text file, one a line: the folder, and behind a tab what to call the class, if it is not that.

    Raises:
        UserError: there is no such text file.
    """
    text = read_text(path, _BYTES, "labels").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    # To ``splitlines``, some characters that a name may hold end a line, too.
    rows = [line.split("\t") for line in text.split("\n")] if text else []
    return ClassNames(tuple(row[0] for row in rows), tuple(row[-1] for row in rows))


def read_labels(path: str | os.PathLike[str]) -> list[str]:
    """What such a file calls the classes; raises as :func:`read_class_names` does."""
    return list(read_class_names(path).shown)


def published(classes: int) -> ClassNames | None:
    """The classes of the data set with so many that weights are published for: ImageNet-1k's, which are WordNet's
    numbers, sorted, or COCO's 80 categories; in the order in which all of these weights have them."""
    if classes == 80:
        ids = tuple(number for number in range(1, 91) if number not in _COCO_LACKS)
        return dataclasses.replace(read_class_names(COCO), category_ids=ids)
    return read_class_names(IMAGENET) if classes == 1000 else None


def class_folders(labels: str, named: Sequence[str] | None, outputs: int | None) -> Sequence[str] | None:
    """The folder of the data set for every output of a network: what the user's file says, or else the checkpoint.

    Args:
        labels: the user's file, or nothing.
        named: the checkpoint's own names.
        outputs: how many the network has; None: as many as classes.

    Raises:
        UserError: the file cannot be read, names a class twice, or names more classes than there are outputs.
    """
    if not labels:
        return named
    folders = read_class_names(labels).folders
    if outputs is not None and len(folders) > outputs:
        raise UserError(f"{labels} names {len(folders)} classes, the network has {outputs} outputs")
    if not folders or len(set(folders)) < len(folders):
        raise UserError(f"{labels} must name every class once, a line each, in the order of the outputs")
    return folders


def check_order(named: Sequence[str] | None, folders: Sequence[str], outputs: int) -> None:
    """Log a line where nobody says which output is which class, and the data's classes are taken in their order.

    Args:
        named: what :func:`class_folders` found.
        folders: the classes of the data.

    Raises:
        UserError: there are not as many outputs as classes, so that the order says nothing.
    """
    if named is not None:
        return
    if len(folders) != outputs:
        raise UserError(
            f"the checkpoint does not name its classes: which of its {outputs} outputs are the {len(folders)} of the "
            "data? Name them by --labels FILE, the folder or category of every output a line; for weights of COCO that "
            f"is {COCO}, of ImageNet-1k {IMAGENET}"
        )
    _log.info(
        "the checkpoint does not name its classes: its %d outputs are taken for those of the data in order", outputs
    )
