"""Paths for programs of others that have rules of their own: which names MindSpore and onnxruntime take is known here.

Tried with MindSpore 2.10 and onnxruntime 1.31: ``ms.export`` refuses a path, the current folder included, that has
anything but the characters of ``PLAIN``; ``ms.save_checkpoint`` appends its suffix where there is another;
``ms.load`` and onnxruntime take any path that is text, as not every path is.
Pillow, NumPy, ONNX, safetensors, Matplotlib and tensorboardX take all.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mindcv_reparam.errors import UserError
from mindcv_reparam.untrusted import open_regular

PLAIN = re.compile(r"[0-9a-zA-Z@_\-.:/\\]+")  # MindSpore's own pattern, of absolute paths


@contextlib.contextmanager
def plain_folder() -> Iterator[Path]:
    """A temporary folder whose absolute path is plain.

    Raises:
        UserError: there is no place for one.
    """
    for root in map(os.path.realpath, (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):
        if PLAIN.fullmatch(root) and os.access(root, os.W_OK | os.X_OK):
            with tempfile.TemporaryDirectory(dir=root) as folder:
                yield Path(folder)
            return
    raise UserError("MindSpore writes to plain paths only: set TMPDIR to a folder of ASCII letters, digits, - and _")


@contextlib.contextmanager
def plain_output(path: str | os.PathLike[str], suffix: str) -> Iterator[Path]:
    """A plain path that ends with ``suffix``, for a writer; what is there after the body becomes ``path``."""
    path = Path(os.path.abspath(path))
    if PLAIN.fullmatch(str(path)) and path.suffix == suffix:
        yield path
        return
    with plain_folder() as folder:
        plain = folder / f"written{suffix}"
        yield plain
        shutil.move(plain, path)


@contextlib.contextmanager
def readable_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of a file, or of its copy where the path is no text.

    Raises:
        UserError: there is no such file.
    """
    path = Path(os.path.abspath(path))
    if _is_text(str(path)):
        yield path
        return
    with plain_folder() as folder, open_regular(path) as source:
        plain = folder / f"read{path.suffix if _is_text(path.suffix) else ''}"
        with open(plain, "wb") as target:
            shutil.copyfileobj(source, target)
        yield plain


def _is_text(path: str) -> bool:
    """Whether a path can be told in UTF-8: Linux allows any bytes."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
