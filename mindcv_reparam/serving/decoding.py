"""The process that ``decoders`` starts: image files come in, tensors go out, within bounded memory.

    python -m mindcv_reparam.serving.decoding BYTES [LARGE]

BYTES of memory may be taken besides what the process has when it is ready, which an empty line tells. An image that
takes more than LARGE of them, as its header says, is not decoded but given back. A request is the line "LENGTH LENGTH",
the pickled steps from a file to the model's input, and the file. The answer is a line of JSON, ``{"shape": …, "dtype":
…, "size": [width, height]}`` with the bytes of the tensor behind it, ``{"refused": reason}``, or ``{}`` for an image
given back.
"""

import functools
import io
import json
import pickle
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import mindcv_reparam.bundle.preprocessing  # noqa: F401 (what steps are made of, before their memory counts)
from mindcv_reparam.data.decoder import Decoder, UnreadableImage
from mindcv_reparam.data.image_kinds import kind_of

# From a file to an image, and from that to the tensor.
Steps = tuple[Decoder, Callable[[Image.Image], np.ndarray]]
_steps: Callable[[bytes], Steps] = functools.lru_cache(64)(pickle.loads)


def main() -> None:
    memory, most = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"\n")
    answers.flush()
    while line := requests.readline():
        steps, file = (requests.read(int(length)) for length in line.split())
        head, tensor = _answer(steps, file, most)
        answers.write(json.dumps(head).encode() + b"\n" + tensor)
        answers.flush()


def _answer(steps: bytes, file: bytes, most: int | None) -> tuple[dict[str, object], bytes]:
    try:
        if most is not None and _bytes(file) > most:
            return {}, b""
        decode, preprocess = _steps(steps)
        with decode.image(file) as image:
            tensor, size = preprocess(image), image.size
    except UnreadableImage as error:
        return {"refused": str(error)}, b""
    except MemoryError:
        return {"refused": "the image takes too much memory to decode"}, b""
    return {"shape": tensor.shape, "dtype": tensor.dtype.name, "size": size}, tensor.tobytes()


def _bytes(file: bytes) -> float:
    """What decoding it takes, as its header says; 0 where it is no image."""
    kind = kind_of(file)
    if kind is None:
        return 0
    try:
        with kind.plugin(io.BytesIO(file)) as image:
            return len(file) + image.width * image.height * kind.bytes_per_pixel
    except Exception:  # the decoder tells what is wrong
        return 0


if __name__ == "__main__":
    main()
