"""What a run measures, for TensorBoard.

MindSpore's `SummaryRecord` writes for MindInsight: TensorBoard does not look into files of its names. Of tensorboardX
this takes the format of the files; its `SummaryWriter` writes them from a thread, which a killed run would cut short.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from mindcv_reparam.errors import UserError
from mindcv_reparam.tasks.task import Metric
from mindcv_reparam.training.metrics import AVERAGED


def require_tensorboard() -> tuple[ModuleType, ModuleType]:
    """tensorboardX's writer of event files and its events.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2
    except ImportError:
        raise UserError("tensorboard True needs a package: pip install tensorboardX, or leave it out") from None
    return event_file_writer, event_pb2


class TensorBoard:
    """Writes records as scalars over the steps, `train/…` per interval and `val/…` per epoch.

    Args:
        folder: gets one more event file; made when missing.
        metrics: of the task, which validations give.
        first_step: steps done before; TensorBoard discards what an interrupted run wrote of later ones.
    """

    def __init__(self, folder: Path, metrics: Sequence[Metric], first_step: int = 0) -> None:
        self._validated = [prefix + metric.name for prefix in ("", AVERAGED) for metric in metrics]
        writer, self._events = require_tensorboard()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = writer.EventsWriter(str(folder / "events"))
        if first_step:
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._file.write_event(self._events.Event(wall_time=time.time(), step=first_step + 1, session_log=start))
        self._file.flush()

    def interval_end(self, record: Mapping[str, float]) -> None:
        self._write("train", record)

    def epoch_end(self, record: Mapping[str, float]) -> None:
        self._write("val", {name: record[name] for name in ("step", *self._validated) if name in record})

    def _write(self, group: str, record: Mapping[str, float]) -> None:
        event = self._events.Event(wall_time=time.time(), step=record["step"])
        for name, value in record.items():
            if name != "step":
                event.summary.value.add(tag=f"{group}/{name}", simple_value=value)
        if event.summary.value:
            self._file.write_event(event)
            self._file.flush()
