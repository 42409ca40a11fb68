"""The log of a run as a file in its folder."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from mindcv_reparam.errors import Interrupted, UserError, one_line

RUN_LOG = "run.log"
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class RunLog(logging.Handler):
    """Keeps what the package logs while it is entered, and writes it to the folder's RUN_LOG once that is open.

    Until then lines are held, since the folder's earlier run is set aside only when data and network are known to be
    usable. A run that is resumed in its folder goes on in the file. How the run failed, if it did, is its last line.

    Args:
        active: False on all ranks but the main one, where nothing is kept.
    """

    def __init__(self, active: bool = True) -> None:
        super().__init__()
        self.active = active
        self._held: list[logging.LogRecord] = []
        self._file: logging.FileHandler | None = None

    def open(self, folder: Path) -> None:
        """Write to that folder from now on, first what was held. Raises UserError where the file system refuses."""
        if not self.active:
            return
        try:
            self._file = _Quiet(folder / RUN_LOG, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder / RUN_LOG} cannot be written: {error.strerror}") from error
        self._file.setFormatter(logging.Formatter(_FORMAT))
        for record in self._held:
            self._file.handle(record)
        self._held.clear()

    def emit(self, record: logging.LogRecord) -> None:
        if self._file is not None:
            self._file.handle(record)
        else:
            self._held.append(record)

    def __enter__(self) -> Self:
        if self.active:
            logging.getLogger("mindcv_reparam").addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("mindcv_reparam").removeHandler(self)
        if self._file is not None:
            if isinstance(error, UserError | Interrupted):  # which the terminal shows later
                level, text = logging.ERROR, one_line(str(error))
                self._file.handle(logging.LogRecord(__name__, level, "", 0, text, None, None))
            elif error is not None:
                self._file.handle(
                    logging.LogRecord(__name__, logging.ERROR, "", 0, f"{type(error).__name__}: {error}", None, None)
                )
            self._file.close()


class _Quiet(logging.FileHandler):
    """A disk that is full must not end a training by its log; what matters of a run says so by itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        return
