"""Image files become tensors in processes of their own, whose memory and time are bounded.

An image that decompresses to hundreds of megabytes, or makes a decoder crash, holds up neither the event loop nor the
other images: those that take more than LARGE wait for one another, the rest have decoders that these never enter.
"""

import asyncio
import contextlib
import json
import os
import pickle
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from mindcv_reparam.serving.decoding import Steps
from mindcv_reparam.serving.refused import Refused

LARGE = 96 * 2**20  # bytes; the twelve million pixels of a telephone's photograph take less
USUAL_BYTES = 256 * 2**20  # that decoding an image up to that size may take in the end
_PACKAGE = Path(__file__).parents[2]
_COPY = 2**20  # bytes at a time from a decoder

Decoded = tuple[np.ndarray, tuple[int, int]]  # one input of a model, without the batch, and the image's (width, height)


class Decoders:
    """As many processes as there are processors, two to four, for usual images, and one for large ones.

    No model has all of those for usual images: one is left for the others.

    Args:
        large_bytes: of memory that decoding a large image may take.
        seconds: that decoding an image may take.
    """

    def __init__(self, large_bytes: int, seconds: float) -> None:
        count = max(2, min(4, len(os.sched_getaffinity(0))))
        self._usual = [_Decoder(LARGE, USUAL_BYTES, seconds) for _ in range(count)]
        self._large = _Decoder(None, large_bytes, seconds)
        self._idle: asyncio.LifoQueue[_Decoder] = asyncio.LifoQueue()
        self._shares: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(count - 1))
        self._turn = asyncio.Lock()  # of the large ones, in the order of their arrival

    async def start(self) -> None:
        await asyncio.gather(*(decoder.start() for decoder in self._usual))
        for decoder in self._usual:
            self._idle.put_nowait(decoder)

    def stop(self) -> None:
        for decoder in (*self._usual, self._large):
            decoder.kill()

    async def tensor(self, file: bytes, name: str, steps: Steps) -> Decoded:
        """One input of the model of a name, from an image file.

        Raises:
            Refused: it is no image, or too large.
        """
        async with self._shares[name]:
            decoder = await self._idle.get()
            try:
                decoded = await decoder.tensor(file, steps)
            finally:
                self._idle.put_nowait(decoder)
        if decoded is None:
            async with self._turn:
                try:
                    decoded = await self._large.tensor(file, steps)
                finally:
                    self._large.kill()  # with the memory that it holds
            assert decoded is not None  # to this one none is too large
        return decoded


class _Decoder:
    """A process that runs ``decoding``; it is started anew where it has ended."""

    def __init__(self, large: int | None, memory: int, seconds: float) -> None:
        self._arguments = [str(memory), *([str(large)] if large else [])]
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> asyncio.subprocess.Process:
        paths = [str(_PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mindcv_reparam.serving.decoding", *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the server alone
            limit=_COPY,
        )
        if await _pipes(self._process)[1].readline() != b"\n":
            raise RuntimeError("a process that decodes images does not start")
        return self._process

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._process = None

    async def tensor(self, file: bytes, steps: Steps) -> Decoded | None:
        """As that of Decoders; None for an image that is too large for this one."""
        process = self._process
        if process is None or process.returncode is not None:
            process = await self.start()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._ask(*_pipes(process), file, steps)
        except TimeoutError:
            self.kill()
            raise Refused(400, f"decoding the image takes longer than {self._seconds:g} s") from None
        except (OSError, asyncio.IncompleteReadError):
            self.kill()
            raise Refused(400, "the image ended its decoder: it is damaged, or takes too much memory") from None
        except asyncio.CancelledError:  # what it would answer is nobody's any more
            self.kill()
            raise

    async def _ask(
        self, asked: asyncio.StreamWriter, answers: asyncio.StreamReader, file: bytes, steps: Steps
    ) -> Decoded | None:
        described = pickle.dumps(steps)
        asked.write(b"%d %d\n" % (len(described), len(file)))
        asked.write(described)
        asked.write(file)
        await asked.drain()
        answer = json.loads(await answers.readuntil(b"\n"))
        if "refused" in answer:
            raise Refused(400, answer["refused"])
        if "shape" not in answer:
            return None
        tensor = np.empty(answer["shape"], answer["dtype"])
        tensor.reshape(-1).view(np.uint8)[:] = np.frombuffer(await answers.readexactly(tensor.nbytes), np.uint8)
        width, height = answer["size"]
        return tensor, (width, height)


def _pipes(process: asyncio.subprocess.Process) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
    """To a process and from it."""
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
