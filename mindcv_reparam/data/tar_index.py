"""Where the images of a tar archive lie, so that they are read by offset and never unpacked.

An archive's headers are read once; what they say is kept beside it in a hidden file, or in the user's cache where that
folder cannot be written to, and holds for as long as the archive has that size and time.
"""

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from mindcv_reparam.archives import DamagedArrays, open_arrays
from mindcv_reparam.data.folders import is_litter
from mindcv_reparam.data.image_kinds import FOREIGN_SUFFIXES, SUFFIXES
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import cache_folder, written_whole
from mindcv_reparam.untrusted import open_regular

SUFFIX = ".tar"
_FORMAT = 1  # of the index
_BLOCK = tarfile.BLOCKSIZE
_LIMIT = 2**32  # bytes of an index; ImageNet's has 60 MB
_EVERY = 1000  # members between two looks of the progress bar
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"PK": "zip"}
_ORDER = ("images", "foreign", "others", "special")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TarIndex:
    """What an archive holds.

    Attributes:
        path: of the archive.
        size: bytes of it.
        time: when it was changed last, in nanoseconds.
        images: paths in it as bytes (n,), in the order in which `folders.walk` finds the same unpacked; what is in an
            archive within it stands in a folder of that one's name.
        places: first byte and number of bytes of every image, int64 (n, 2).
        foreign: images of formats that are not read.
        others: files that are no images.
        special: links but those within the archive to an image as another name (hard ones), devices, files with holes.
    """

    path: Path
    size: int
    time: int
    images: np.ndarray
    places: np.ndarray
    foreign: np.ndarray
    others: np.ndarray
    special: np.ndarray


def tar_index(path: Path) -> TarIndex:
    """The index of an archive: as kept, or made now, by one of the processes that ask for it.

    Raises:
        UserError: it cannot be read, is compressed, cut or damaged, or holds archives within archives within it.
    """
    with open_regular(path, "archive") as file:
        status = os.fstat(file.fileno())
        kept = _place_of(path)
        with _alone(kept):
            arrays = _read(kept, status)
            if arrays is None:
                arrays = _listed(path, file, status.st_size)
                _write(kept, path, status, arrays)
    return TarIndex(path, status.st_size, status.st_mtime_ns, **arrays)


def order(path: bytes) -> bytes:
    """A key by which paths sort as a walk finds them: the files of a folder before those of its sub-folders."""
    *folders, name = path.split(b"/")
    return b"".join(b"\x01%b\x00" % folder for folder in folders) + b"\x00" + name


def _place_of(path: Path) -> Path:
    """The file of an archive's index."""
    beside = path.parent / f".{path.name}.index.npz"
    if beside.exists() or os.access(path.parent, os.W_OK):
        return beside
    return cache_folder() / f"tar-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.npz"


@contextlib.contextmanager
def _alone(kept: Path) -> Iterator[None]:
    """Hold the lock of an index, where the file system has locks: the processes of a job list an archive once."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        file = open(kept.with_suffix(".lock"), "ab")  # noqa: SIM115  # closed below
    except OSError:
        yield
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stamp(status: os.stat_result) -> list[int]:
    return [_FORMAT, status.st_size, status.st_mtime_ns]


def _read(kept: Path, status: os.stat_result) -> dict[str, np.ndarray] | None:
    """What is kept of an archive, if it is of the archive as it is."""
    if not kept.is_file():
        return None
    try:
        with open_arrays(kept, _LIMIT) as archive:
            if set(archive.headers) != {"stamp", "places", *_ORDER}:
                return None
            arrays = {name: archive.read(name) for name in archive.headers}
    except (DamagedArrays, UserError):
        return None
    fits = arrays.pop("stamp").tolist() == _stamp(status)
    return arrays if fits and arrays["places"].shape == (len(arrays["images"]), 2) else None


def _write(kept: Path, path: Path, status: os.stat_result, arrays: dict[str, np.ndarray]) -> None:
    try:
        with written_whole(kept) as temporary, open(temporary, "wb") as file:
            np.savez(file, stamp=np.array(_stamp(status)), **arrays)
    except UserError as error:
        _log.warning("%s is listed anew at every start: %s", path, error)


def _listed(path: Path, file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """What the headers say."""
    from tqdm import tqdm  # listing a folder does without

    _log.info("listing the images of %s, once", path)
    names: dict[str, list[bytes]] = {kind: [] for kind in _ORDER}
    places: dict[bytes, tuple[int, int]] = {}
    with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, leave=False, disable=None) as bar:
        for number, member in enumerate(_members(path, file, 0, size)):
            if number % _EVERY == 0:
                bar.update(member.first - bar.n)
            place = places.get(member.target) if member.target else (member.first, member.size)
            kind = _kind_of(member.name, member.regular or (member.target is not None and place is not None))
            if kind == "images" and place:
                places[member.name] = place  # of two with one name the later, as in unpacking
            elif kind:
                names[kind].append(member.name)
    images = sorted(places, key=order)
    arrays = {kind: np.array(sorted(set(names[kind])), bytes) for kind in _ORDER[1:]}
    ranges = np.array([places[name] for name in images], np.int64).reshape(-1, 2)
    return {"images": np.array(images, bytes), "places": ranges, **arrays}


def _kind_of(name: bytes, regular: bool) -> str | None:
    """Which of the lists a member belongs to; None for what never counts."""
    if any(is_litter(os.fsdecode(part)) for part in name.split(b"/")):
        return None
    suffix = os.path.splitext(os.fsdecode(name))[1].lower()
    if not regular:
        return "special"
    return "images" if suffix in SUFFIXES else "foreign" if suffix in FOREIGN_SUFFIXES else "others"


class _Member(NamedTuple):
    """Something in an archive, but for folders."""

    name: bytes
    first: int  # byte
    size: int
    regular: bool  # a file, all of which is there
    target: bytes | None  # the file that a hard link is another name of


def _members(path: Path, file: BinaryIO, first: int, size: int, within: bytes = b"") -> Iterator[_Member]:
    """What an archive holds.

    Args:
        first: byte of the file where the archive begins.
        size: bytes of it.
        within: its name in the archive of the path, if it is in one.
    """
    window = _Window(file, first, size)
    folder = [within.removesuffix(SUFFIX.encode())] if within else []
    head = window.read(262)
    window.seek(0)
    for signature, kind in _COMPRESSED.items():
        if head.startswith(signature):
            raise UserError(f"{_named(path, within)} is compressed ({kind}): it is read by offset, so decompress it")
    try:
        with tarfile.open(fileobj=window, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # which would remember a million
                if member.isdir():
                    continue
                name = _name_of(path, member.name)
                start = first + member.offset_data
                if start + member.size > first + size:
                    raise UserError(f"{_named(path, within)} is cut: {member.name} ends after it")
                if not name.endswith(SUFFIX.encode()) or not member.isreg():
                    target = b"/".join([*folder, _name_of(path, member.linkname)]) if member.islnk() else None
                    regular = member.isreg() and not member.issparse()
                    yield _Member(b"/".join([*folder, name]), start, member.size, regular, target)
                elif within:
                    raise UserError(f"{_named(path, within)} holds the archive {member.name}: unpack one of them")
                else:
                    yield from _members(path, file, start, member.size, name)
            window.seek(archive.offset)
            if window.read(_BLOCK) != bytes(_BLOCK):
                raise UserError(
                    f"{_named(path, within)} is cut or damaged: no end of an archive at byte {archive.offset}"
                )
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise UserError(f"{_named(path, within)} is no tar archive, cut or damaged: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _named(path: Path, within: bytes) -> str:
    return f"{within.decode()} in {path}" if within else f"the archive {path}"


def _name_of(path: Path, name: str) -> bytes:
    """A member's name, without what says "here"; raises UserError where it is not UTF-8."""
    try:
        parts = name.encode().split(b"/")
    except UnicodeEncodeError:
        raise UserError(f"the name {os.fsencode(name)!r} in the archive {path} is not UTF-8") from None
    return b"/".join(part for part in parts if part not in (b"", b"."))


class _Window(io.RawIOBase):
    """Some bytes of a file as a file, at a position of its own."""

    def __init__(self, file: BinaryIO, first: int, size: int) -> None:
        self._descriptor, self._first, self._size, self._at = file.fileno(), first, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        data = os.pread(self._descriptor, left if size is None or size < 0 else min(size, left), self._first + self._at)
        self._at += len(data)
        return data
