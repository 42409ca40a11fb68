"""SHA256SUMS of a bundle, in the form that ``sha256sum --check`` reads."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError

CHECKSUMS = "SHA256SUMS"


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """List every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS)
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def check_checksums(folder: Path, required: Iterable[str]) -> int:
    """The number of files, if they are those of the list, unchanged. A file that is not on the list is none of ours.

    Args:
        required: what the list must have, lest a truncated one be taken for a short one.

    Raises:
        UserError: a file is missing or changed, or there is no whole list.
    """
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8 text"
        raise UserError(f"{folder / CHECKSUMS} cannot be read: {reason}") from None
    for name in required:
        if name not in listed:
            raise UserError(f"{folder / CHECKSUMS} is not whole: it does not list {name}")
    for name, digest in listed.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
        if file_digest(folder / name) != digest:
            raise UserError(f"{folder / name} was changed: its SHA-256 is not the one of {CHECKSUMS}")
    return len(listed)
