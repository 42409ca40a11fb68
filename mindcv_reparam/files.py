"""Files that appear whole or not at all."""

import contextlib
import errno
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from mindcv_reparam.errors import UserError
from mindcv_reparam.kinds import kind_of, mistaken

_SHOWN = 4  # files in a message

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path, renamed to ``path`` once the body has written the file and it is on the disk.

    It has the same name, since some writers choose the format by it, in a hidden folder beside ``path``, which is made
    when missing. When the body fails, nothing is left under either name.

    Raises:
        UserError: the file system refused (no room, no permission, a folder of that name).
    """
    path = Path(path)
    folder = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary = folder / path.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """See before the work what `written_whole` would say after it.

    Raises:
        UserError: there is a folder of that name, or no file can be made where it shall be.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def check_output(flag: str, path: Path | None, endings: Collection[str]) -> None:
    """The same of a file that a flag names, where it does, and that its name has one of the endings."""
    if path is None:
        return
    if path.suffix not in endings:
        raise UserError(f"{flag} must end with {' or '.join(endings)}, got {path}")
    check_writable(path)


@contextlib.contextmanager
def written_folder(path: str | os.PathLike[str], marker: str) -> Iterator[Path]:
    """A temporary folder, which becomes ``path`` once the body has filled it; it replaces an earlier one.

    Args:
        marker: name of a file by which a folder written before is known: no other one is replaced.

    Raises:
        UserError: ``path`` is a file or a folder of other things, or the file system refused.
    """
    path = Path(os.path.abspath(path))
    temporary, old = (path.parent / f".{path.name}.{os.getpid()}.{kind}" for kind in ("tmp", "old.tmp"))
    try:
        check_replaceable(path, marker)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        _replace_folder(temporary, path, old)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path, old: Path) -> None:
    """Give ``new`` the name ``path``; what was there goes to ``old`` meanwhile, and back if that fails."""
    if not path.exists():
        new.rename(path)
        return
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(path: str | os.PathLike[str], marker: str) -> None:
    """Raise UserError where :func:`written_folder` would, before the work of filling it."""
    path = Path(path)
    if path.exists() and not (path / marker).is_file() and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{path} holds other things, which would be lost: name a new folder")


def shown(name: str | os.PathLike[str]) -> str:
    """A file's name as text that can be written anywhere, though Linux allows names of any bytes."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def common_folder(names: Sequence[str]) -> str:
    """What the names of files begin with up to a slash, in all of them; nothing where they have no folder in common."""
    # By letters: names may be absolute and relative, between which commonpath finds nothing.
    folder, slash, _ = os.path.commonprefix(list(names)).rpartition("/")  # noqa: RUF071
    return folder + slash


def clear_unfinished(folder: Path) -> None:
    """Delete what ``written_whole`` left in a folder when its process was killed."""
    for left in folder.glob(".*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def check_checkpoint(path: str | os.PathLike[str]) -> None:
    """Raise UserError where there is no file, with a hint at the checkpoints that are there, or one that is known to be
    something else; before MindSpore is imported, which takes seconds."""
    if os.path.isfile(path):
        if kind_of(path) not in ("checkpoint", None):
            raise UserError(mistaken(path, "whole checkpoint"))
        return
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    found = sorted(file.name for file in folder.glob("*.ckpt"))[:_SHOWN] if folder.is_dir() else []
    raise UserError(f"no checkpoint at {path}" + (f"; {folder} has {', '.join(found)}" if found else ""))


def set_aside(folder: Path, marker: str) -> None:
    """Rename a folder that holds ``marker`` to the first free ``folder.1``, ``folder.2`` …, so that nothing in it is
    lost to a new run of the same name; an empty folder takes its place. Of a link, that is the folder it leads to.

    Raises:
        UserError: the file system refused (a mount point, no permission).
    """
    if not (folder / marker).exists():
        return
    folder = folder.resolve()
    number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.{n}").exists())
    earlier = folder.with_name(f"{folder.name}.{number}")
    try:
        folder.rename(earlier)
        folder.mkdir()
    except OSError as error:
        raise UserError(
            f"{folder} holds an earlier run and cannot be renamed to {earlier.name} ({error.strerror}): name another "
            "folder, for example one in it"
        ) from error
    _log.info("%s held an earlier run, which is now %s", folder, earlier)


def cache_folder() -> Path:
    """Of this package, by the XDG base directory specification. Raises UserError where nobody has a home."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = Path(os.path.expanduser("~"))  # as it is where nothing says whose home it is
    if not named.is_absolute() and not home.is_absolute():
        raise UserError("there is no home folder to keep it in; set XDG_CACHE_HOME to a folder of yours")
    return (named if named.is_absolute() else home / ".cache") / "mindcv_reparam"
