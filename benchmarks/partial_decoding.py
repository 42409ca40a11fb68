"""Partial decoding of JPEGs, which no Python package offers: a few lines of C on the system's libjpeg-turbo."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("decode_part.c")


def decoder(folder: Path) -> Callable[[bytes, tuple[int, int, int, int]], np.ndarray] | None:
    """``decode(file, (top, left, height, width))`` → RGB, uint8; ``folder`` gets its library.

    None, and a line that says why, where there is no C compiler or no libjpeg-turbo with its headers.
    """
    library = folder / "decode_part.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ljpeg"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"without partial decoding: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
        return None
    function = ctypes.CDLL(str(library)).decode_part
    function.argtypes = [ctypes.c_char_p, ctypes.c_ulong, *[ctypes.c_int] * 4, ctypes.c_void_p]
    function.restype = None

    def decode(file: bytes, box: tuple[int, int, int, int]) -> np.ndarray:
        pixels = np.empty((*box[2:], 3), np.uint8)
        function(file, len(file), *box, pixels.ctypes.data)
        return pixels

    return decode
