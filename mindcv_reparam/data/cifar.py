"""CIFAR-10 in its binary version: records of one label byte and 3×32×32 pixel bytes."""

from pathlib import Path

import numpy as np

from mindcv_reparam.data.source import LabelledSource
from mindcv_reparam.errors import UserError

_FOLDER = "cifar-10-batches-bin"
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar10(LabelledSource):
    """``data_batch_*.bin`` for training, ``test_batch.bin`` for validation, in ``root`` or in its usual sub-folder.

    Class names come from ``batches.meta.txt`` where it is there. The pixels stay on disk (memory-mapped): a worker
    process opens the files again instead of receiving them.
    """

    def __init__(self, root: str | Path, train: bool) -> None:
        folder = Path(root)
        if (folder / _FOLDER).is_dir():
            folder = folder / _FOLDER
        pattern = "data_batch_*.bin" if train else "test_batch.bin"
        self._files = sorted(folder.glob(pattern))
        if not self._files:
            raise UserError(
                f"no {pattern} in {folder}: --data_dir must hold the binary version of CIFAR-10 ({_FOLDER})"
            )
        self.classes = _class_names(folder / "batches.meta.txt")
        for file in self._files:
            if file.stat().st_size == 0 or file.stat().st_size % _RECORD:
                raise UserError(f"{file} is truncated: its size is no multiple of {_RECORD} bytes; fetch it again")
        self._open()
        self._ends = np.cumsum([len(records) for records in self._records])
        self.labels = np.concatenate([records[:, 0] for records in self._records]).astype(np.int32)
        if self.labels.max() >= len(self.classes):
            raise UserError(f"{folder} holds class index {self.labels.max()}: it is no CIFAR-10 in binary form")

    def pixels(self, index: int) -> np.ndarray:
        file, row = self._locate(index)
        planes = self._records[file][row, 1:].reshape(_SHAPE)
        return np.array(planes.transpose(1, 2, 0), order="C")

    def name(self, index: int) -> str:
        file, row = self._locate(index)
        return f"record {row} of {self._files[file]}"

    def _locate(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, int(index - (self._ends[file - 1] if file else 0))

    def _open(self) -> None:
        self._records = [np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, _RECORD) for file in self._files]

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_records"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()


def _class_names(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return _CLASSES
    return tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
