"""What a file is, told from its content and never from its name, so that a wrong one can be met with a remedy."""

import os
import re
import zipfile
from pathlib import Path

# Kind → what such a file is, and what is to be done with one that stands where another kind is wanted.
KINDS = {
    "checkpoint": ("a checkpoint of MindSpore", "train.py, validate.py and export.py take it by --ckpt_path"),
    "safetensors": ("a safetensors file", "{convert}"),
    "torch": ("a file of PyTorch weights", "{convert}"),
    "pickle": ("a Python pickle", "save the weights with torch.save or as safetensors where it comes from"),
    "resume": ("the state of an interrupted run", "train.py --resume goes on from it, its weights are in the .ckpt"),
    "npz": ("an archive of NumPy arrays", "name another file"),
    "onnx": ("an ONNX model", "infer and serve take the bundle that it belongs to, training and export the .ckpt"),
    "mindir": ("a MindIR model", "infer and serve take the bundle that it belongs to, training and export the .ckpt"),
    "lite": ("a model of MindSpore Lite", "it runs on its device; name the .ckpt that it was exported from"),
    "torchscript": ("a TorchScript program", "save the state_dict alone where it comes from"),
    "hdf5": ("an HDF5 file (Keras)", "its weights cannot be converted"),
    "bundle": ("a deployment bundle", "infer, verify and serve take it; name the .ckpt that it was exported from"),
    "folder": ("a folder", "name a file in it"),
    "archive": ("a packed archive", "unpack it and name a file in it"),
    "image": ("an image", "infer takes images after the model or bundle"),
    "html": ("a web page", "it was saved in the file's place: download the file itself"),
    "pointer": ("a pointer of Git LFS", "fetch the file that it stands for: git lfs pull"),
    "json": ("a JSON text", "name another file"),
    "text": ("a text file", "a configuration goes to -c; name another file"),
    "empty": ("empty", "fetch or write it again"),
}
_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "torch"),  # torch.save before PyTorch 1.6
    (b"\x89PNG", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"BM", "image"),
    (b"\x1f\x8b", "archive"),
    (b"BZh", "archive"),
    (b"\xfd7zXZ", "archive"),
    (b"\x28\xb5\x2f\xfd", "archive"),
    (b"7z\xbc\xaf", "archive"),
    (b"version https://git-lfs", "pointer"),
)
_PATTERNS = (
    (rb"\x80[\x02-\x05][\x80-\xff(}\]c]", "pickle"),
    (rb"\n.{1,5}\n[\x01-\x7f]", "checkpoint"),  # a protobuf of entries that begin with their name
    (rb"\n.[\d.]{1,9}\x12", "mindir"),  # its version as text, its producer
    (rb"\x08[\x01-\x1f][\x12\x3a\x42\x1a]", "onnx"),  # its version as number, its producer or graph
    (rb"....MSL[012]", "lite"),
    (rb".{6}\0\0\{", "safetensors"),  # the length of a header of JSON, below 2**48
    (rb"RIFF....WEBP", "image"),
    (rb".{257}ustar", "archive"),
)
_TEXTS = (
    (rb"\s*<(!doctype|html|\?xml|head)", "html"),
    (rb"\s*(\{\s*[\"}]|\[)", "json"),
    (rb"", "text"),
)
_HEAD = 4096  # bytes that tell


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """The key in ``KINDS`` of what lies at ``path``; None where the content is of no known kind, or cannot be read."""
    path = Path(path)
    try:
        if path.is_dir():
            return "bundle" if (path / "bundle.json").is_file() else "folder"
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        return _kind_of_archive(path) if head.startswith(b"PK") else _kind_of_bytes(head)
    except OSError:
        return None


def mistaken(path: str | os.PathLike[str], wanted: str) -> str | None:
    """One line for a file of a known kind that stands where ``wanted`` belongs; None for a file of no known kind.

    Args:
        wanted: such as "whole checkpoint".
    """
    kind = kind_of(path)
    if kind is None:
        return None
    what, remedy = KINDS[kind]
    return f"{path} is no {wanted}: it is {what}; " + remedy.format(
        convert=f"python -m mindcv_reparam convert {path} -o NAME.ckpt makes a checkpoint of it"
    )


def _kind_of_bytes(head: bytes) -> str | None:
    if not head:
        return "empty"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    patterns = _TEXTS if _is_text(head) else _PATTERNS
    return next((kind for pattern, kind in patterns if re.match(pattern, head, re.DOTALL | re.IGNORECASE)), None)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # more than a character that the head's end has cut
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)


def _kind_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return None
    pickled = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if pickled:
        return "torchscript" if pickled[0].removesuffix("data.pkl") + "constants.pkl" in names else "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "resume" if "run.npy" in names else "npz"
    return "archive"
