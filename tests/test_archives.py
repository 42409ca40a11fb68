"""NumPy's files from others: read whole, or refused before their data take memory."""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from mindcv_reparam.archives import DamagedArrays, open_arrays, read_array
from mindcv_reparam.errors import UserError

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "run": np.array(json.dumps({"step": 3})), "n": np.int64(7)}


@pytest.fixture
def archive(tmp_path):
    np.savez(tmp_path / "whole.npz", **ARRAYS)
    return tmp_path / "whole.npz"


def header(text, version=1):
    body = text.encode("latin1")
    length = struct.pack("<H" if version == 1 else "<I", len(body))
    return b"\x93NUMPY" + bytes([version, 0]) + length + body


def zipped(path, *entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def written(path, content):
    path.write_bytes(content)
    return path


def read_all(path, limit=None):
    with open_arrays(path, limit) as arrays:
        return {name: arrays.read(name) for name in arrays.headers}


def test_what_numpy_writes_is_read(archive, tmp_path):
    with open_arrays(archive) as arrays:
        assert {name: (h.shape, h.dtype) for name, h in arrays.headers.items()} == {
            name: (np.shape(value), np.asarray(value).dtype) for name, value in ARRAYS.items()
        }
        assert arrays.headers["a"].size == 24
        for name, value in ARRAYS.items():
            np.testing.assert_array_equal(arrays.read(name), value)
    for array in (np.ones((3, 4), np.uint8), np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.empty((0, 2))):
        np.save(tmp_path / "one.npy", array)
        np.testing.assert_array_equal(read_array(tmp_path / "one.npy", 96), array)


def test_a_text_longer_than_a_directory_may_be_is_read(tmp_path):
    long = "x" * 2**21  # 8 MiB
    np.savez(tmp_path / "long.npz", run=np.array(long))
    assert str(read_all(tmp_path / "long.npz")["run"]) == long


def test_a_limit_holds_for_all_arrays_together(archive, tmp_path):
    with pytest.raises(DamagedArrays, match=r"an array takes \d+ bytes, more than 23"):
        read_all(archive, 23)
    np.savez(tmp_path / "two.npz", a=np.zeros(4), b=np.zeros(4))
    assert len(read_all(tmp_path / "two.npz", 64)) == 2
    with pytest.raises(DamagedArrays, match="its arrays take 64 bytes, more than 63"):
        read_all(tmp_path / "two.npz", 63)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", "an impossible shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (10, 2)}", "does not take the 4 bytes"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "an impossible shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", "an impossible shape"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "of the type object"),
        ("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,)}", "of the type"),
        ("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,)}", "of the type"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': 1}", "shape is not valid"),
        ("{'descr': 'rubbish', 'fortran_order': False, 'shape': (1,)}", "descr is not a valid"),
        ("{'descr': '<f4',", "."),  # an error of its tokens
        ("(" * 3000, "."),
        ("__import__('os').system('false')", "."),
        (" " * 9000, "Header info length"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_headers_that_lie_are_refused(tmp_path, text, reason, version):
    content = header(text, version) + bytes(4)
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DamagedArrays, match=reason):
        read_array(tmp_path / "a.npy", 2**20)
    with pytest.raises(DamagedArrays, match=reason):
        read_all(zipped(tmp_path / "a.npz", ("a.npy", content)))


def test_other_archives_are_refused(archive, tmp_path):
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    np.savez_compressed(tmp_path / "compressed.npz", a=np.zeros(1_000_000))
    with pytest.raises(DamagedArrays, match="compressed or encrypted"):
        read_all(tmp_path / "compressed.npz")
    with pytest.raises(DamagedArrays, match="other things than arrays"):
        read_all(zipped(tmp_path / "notes.npz", ("notes.txt", b"text")))
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(tmp_path / "twice.npz", ("a.npy", array.getvalue()), ("a.npy", array.getvalue()))
    with pytest.raises(DamagedArrays, match="two of one name"):
        read_all(tmp_path / "twice.npz")
    with pytest.raises(DamagedArrays, match="not a zip file"):
        read_all(written(tmp_path / "text.npz", b"no archive"))
    encrypted = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = encrypted.find(signature)
        encrypted[start + offset] |= 1
    with pytest.raises(DamagedArrays, match="compressed or encrypted"):
        read_all(written(tmp_path / "encrypted.npz", bytes(encrypted)))
    flipped = bytearray(archive.read_bytes())
    flipped[flipped.find(ARRAYS["a"].tobytes()) + 4] ^= 1
    with pytest.raises(DamagedArrays, match="Bad CRC-32"):
        read_all(written(tmp_path / "flipped.npz", bytes(flipped)))


def test_what_is_no_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for path, reason in ((tmp_path / "pipe.npz", "a pipe"), (tmp_path, "a folder"), ("/dev/zero", "a pipe")):
        with pytest.raises(UserError, match=f"it is {reason}"):
            read_all(path)
        with pytest.raises(UserError, match=f"it is {reason}"):
            read_array(path, 100)
    with pytest.raises(UserError, match="No such file"):
        read_all(tmp_path / "lost.npz")


def test_lies_about_sizes_take_no_memory(tmp_path):
    """A sparse file of 6 GB whose array or directory would fill the memory: refused in a process that may take 1 GB."""
    huge = tmp_path / "huge.npy"
    content = header("{'descr': '<f4', 'fortran_order': False, 'shape': (1500000000,)}".ljust(200))
    written(huge, content)
    os.truncate(huge, len(content) + 6_000_000_000)
    directory = tmp_path / "directory.npz"
    with open(directory, "wb") as file:
        file.truncate(3_000_000_000)
        file.seek(3_000_000_000)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 2_900_000_000, 0, 0))
    long = tmp_path / "long.npy"
    written(long, b"\x93NUMPY\x02\x00" + struct.pack("<I", 3_000_000_000))
    os.truncate(long, 3_100_000_000)
    code = """
import resource, sys
from mindcv_reparam.archives import DamagedArrays, open_arrays, read_array
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
for path in sys.argv[1:]:
    try:
        if path.endswith("npz"):
            with open_arrays(path): pass
        else:
            read_array(path, 2**31)
    except DamagedArrays as error:
        print(error)
"""
    paths = [str(path) for path in (huge, directory, long)]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("an array takes 6,000,000,000 bytes, more than 2,147,483,648"), done.stderr
    larger = "its directory or a header is larger than any that NumPy writes"
    assert lines[1:] == [larger, larger]
