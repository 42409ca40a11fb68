"""SHA256SUMS of a bundle, in the form that ``sha256sum --check`` reads."""

import hashlib
import os
from pathlib import Path

from ..errors import UserError

CHECKSUMS = "SHA256SUMS"


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """List every file in a folder."""
    lines = [f"{digest}  {name}\n" for name, digest in _digests(folder).items()]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def check_checksums(folder: Path) -> int:
    """The number of files, if they are those of the list, unchanged. A file that is not on the list is none of ours.

    Raises:
        UserError: a file is missing or changed, or there is no list.
    """
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / CHECKSUMS} cannot be read: {error}") from None
    found = _digests(folder)
    for name, digest in listed.items():
        if name not in found:
            raise UserError(f"{folder / name} is missing")
        if found[name] != digest:
            raise UserError(f"{folder / name} was changed: its SHA-256 is not the one of {CHECKSUMS}")
    return len(listed)


def _digests(folder: Path) -> dict[str, str]:
    """By path in the folder, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
