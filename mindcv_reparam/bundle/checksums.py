"""SHA256SUMS of a bundle, in the form that ``sha256sum --check`` reads."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mindcv_reparam.errors import UserError
from mindcv_reparam.untrusted import inside, lines, open_regular, read_text

CHECKSUMS = "SHA256SUMS"
REMEDY = "copy the bundle anew from where it was made, or export it anew"
_BYTES, _FILE_BYTES = 2**18, 2**31  # of the list, and of a file: protobuf, which all models are in, has no larger ones
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


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
    listed = _read(folder)
    check_files(folder, [*required, *listed], listed)
    return len(listed)


def check_files(folder: Path, names: Iterable[str], listed: dict[str, str] | None = None) -> None:
    """Check these files of a folder alone, as :func:`check_checksums` does: what is about to be used.

    Args:
        listed: the digests by name, where they have been read.
    """
    listed = _read(folder) if listed is None else listed
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in listed:
            raise UserError(f"{folder / CHECKSUMS} is not whole: it does not list {name}; {REMEDY}")
    for name in names:
        path = inside(folder, name)
        if not os.path.lexists(path):
            raise UserError(f"{path} is missing: {REMEDY}")
        if path.is_file() and path.stat().st_size > _FILE_BYTES:
            raise UserError(f"{path} is larger than any file of a bundle: {REMEDY}")
        if file_digest(path) != listed[name]:
            raise UserError(
                f"{path} was changed: its SHA-256 is not the one of {CHECKSUMS}; {REMEDY}, or, if the change is yours, "
                f"put what sha256sum says of it into {CHECKSUMS}"
            )


def _read(folder: Path) -> dict[str, str]:
    """The digests by name."""
    path = inside(folder, CHECKSUMS)
    if not os.path.lexists(path):
        raise UserError(f"{path} is missing, so nothing tells whether the bundle is unchanged: {REMEDY}")
    listed: dict[str, str] = {}
    for number, line in enumerate(lines(read_text(path, _BYTES)), 1):
        found = _LINE.fullmatch(line)
        if found is None or found[2] in listed:
            wrong = "no digest and name of a file" if found is None else f"{found[2]} stands there twice"
            raise UserError(f"{path} is damaged: line {number}: {wrong}; {REMEDY}")
        listed[found[2]] = found[1]
    return listed
