"""The file from which an interrupted training run goes on as if nothing had happened.

A NumPy archive (.npz, with a checksum per array) with one array per parameter of the step (weights, optimizer, average,
loss scale, accumulated gradients) and per random state of the network; what differs from rank to rank, such as the
statistics of batch normalisation in the middle of an epoch, is stacked over the ranks. The entry `run` is a JSON text:
progress, configuration, ranks.
"""

import contextlib
import dataclasses
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from mindspore import Parameter, Tensor
from pydantic import Field, TypeAdapter, ValidationError

from mindcv_reparam.archives import Archive, ArrayHeader, DamagedArrays, open_arrays
from mindcv_reparam.config import SETTINGS, Config
from mindcv_reparam.distributed import Ranks
from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole
from mindcv_reparam.kinds import kind_of, mistaken
from mindcv_reparam.training.writer import THREADS, copies_of
from mindcv_reparam.untrusted import explain

# What may differ between the parts of a run: it changes neither the weights nor what the metrics file says.
FREE = frozenset(
    {
        *(
            "resume",
            "allow_config_change",
            "ckpt_path",
            "backbone_ckpt",
            "distribute",
            "log_interval",
            "tensorboard",
            "profile",
            "stall_timeout",
        ),
        *("data_dir", "num_parallel_workers", "dataset_sink_mode", "transfer_ahead", "normalize_on_device"),
        *("ckpt_save_dir", "ckpt_save_interval", "ckpt_save_policy", "keep_checkpoint_max"),
    }
)
_RUN, _SHARED, _STACKED = "run", "all/", "each/"
_SHOWN = 4  # names per list in a message
_LONGEST = 1 << 26  # bytes of the entry `run`


_Count = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True)
class Progress:
    """How far a run has come: `step` batches of `epoch`, both from 0, and what the record of this epoch needs.

    A finished epoch stays at its last step until its validation, records and checkpoints are done, so that a run that
    ends in between repeats them.
    """

    epoch: _Count = 0
    step: _Count = 0
    losses: tuple[float, ...] = ()  # of every step of the epoch, mean over ranks
    measured: tuple[float, float, float] = (0.0, 0.0, 0.0)  # images of this rank, seconds, seconds waited for data
    skipped_in_a_row: _Count = 0
    parts: tuple[tuple[float, ...], ...] = ()  # the terms of each of the losses, where they have several


@dataclass(frozen=True)
class Run:
    """What the entry `run` of a state says."""

    progress: Progress
    config: dict[str, Any]
    ranks: _Count
    steps_per_epoch: _Count


_SCHEMA = TypeAdapter(Run)


class TrainingState:
    """Saves and restores all that changes while a run trains.

    Args:
        path: the file, a `.npz`.
        parameters: by a name that is the same in every process.
        ranks: the ranks of this job.
        config: the settings in force.
        steps_per_epoch: of the data.
    """

    def __init__(
        self,
        path: Path,
        parameters: Mapping[str, Parameter],
        ranks: Ranks,
        config: Config,
        steps_per_epoch: int,
    ) -> None:
        self.path = path
        self.parameters = dict(parameters)
        self.ranks = ranks
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self._spare: dict[str, np.ndarray] = {}

    def save(self, progress: Progress) -> None:
        """Write the file. Collective; rank 0 writes. Raises what `prepared` says."""
        self.prepared(progress)()
        self.ranks.barrier()

    def prepared(self, progress: Progress) -> Callable[[], None]:
        """What, called once on any thread, writes everything as it is now from a copy, whole or not at all.

        Collective; of the ranks, 0 writes.

        Raises when called:
            UserError: the file system refuses, or something has become infinite or NaN: the last good file stays. The
                loss does not always tell, since some kernels' ReLU turns NaN into 0.
        """
        values = {name: parameter.asnumpy() for name, parameter in self.parameters.items()}
        stacked = {name: self._gather(values.pop(name)) for name in self._differing(values)}
        if not self.ranks.is_main:
            return lambda: None
        spare, self._spare = self._spare, {}  # of the state before, unless that is still being written
        copies = copies_of(values, spare)
        return lambda: self._save(progress, copies, stacked)

    def _save(self, progress: Progress, values: dict[str, np.ndarray], stacked: dict[str, np.ndarray]) -> None:
        try:
            self._check_finite(values | stacked, progress)
            run = Run(progress, _settings(self.config), self.ranks.size, self.steps_per_epoch)
            entries = {_RUN: np.array(json.dumps(dataclasses.asdict(run)))}
            entries |= {_SHARED + name: value for name, value in values.items()}
            entries |= {_STACKED + name: value for name, value in stacked.items()}
            with written_whole(self.path) as temporary:
                _write(temporary, entries)
        finally:
            self._spare = values

    def last_good(self) -> str:
        """For messages."""
        return f"the last good state is {self.path}" if self.path.is_file() else "no state is saved yet"

    def restore(self, path: Path) -> Progress:
        """Set every parameter to what it was on this rank when the file was written; returns how far the run was.

        Raises:
            UserError: the file cannot be read, or is of a run with other settings, ranks or parameters.
        """
        with _opened(path) as archive:
            run = _read_run(path, archive)
            self._check(path, run)
            self._check_arrays(path, archive.headers)
            values = {}
            for entry in archive.headers:
                if entry.startswith(_SHARED):
                    values[entry.removeprefix(_SHARED)] = archive.read(entry)
                elif entry.startswith(_STACKED):
                    values[entry.removeprefix(_STACKED)] = archive.read(entry)[self.ranks.rank]
        for name, parameter in self.parameters.items():
            parameter.set_data(Tensor(values[name]))
        return run.progress

    def _check_arrays(self, path: Path, headers: Mapping[str, ArrayHeader]) -> None:
        """Compare names, shapes and types before any data are read."""
        names = {entry: entry.removeprefix(_SHARED).removeprefix(_STACKED) for entry in headers if entry != _RUN}
        held = set(names.values())
        missing = [name for name in self.parameters if name not in held]
        unexpected = [name for entry, name in names.items() if name not in self.parameters or name == entry]
        other = [
            name
            for entry, name in names.items()
            if name in self.parameters and not self._fits(name, headers[entry], stacked=entry.startswith(_STACKED))
        ]
        twice = sorted(name for name in held if f"{_SHARED}{name}" in headers and f"{_STACKED}{name}" in headers)
        titles = ("it lacks", "unknown here:", "of another shape or type:", "there twice:")
        complaints = dict(zip(titles, (missing, unexpected, other, twice)))
        if any(complaints.values()):
            listed = "; ".join(f"{title} {_listed(names)}" for title, names in complaints.items() if names)
            raise UserError(f"{path} does not fit this run: {listed}")

    def _fits(self, name: str, header: ArrayHeader, stacked: bool) -> bool:
        shape, dtype = _kind(self.parameters[name])
        return (header.shape, header.dtype) == ((self.ranks.size, *shape) if stacked else shape, dtype)

    def _check(self, path: Path, run: Run) -> None:
        if run.ranks != self.ranks.size:
            raise UserError(
                f"{path} is of a run on {run.ranks} ranks, here are {self.ranks.size}: start as many, or "
                "start a new run from its weights by ckpt_path"
            )
        changed = changed_settings(run.config, _settings(self.config))
        if changed and not self.config.allow_config_change:
            raise UserError(
                f"{path} is of a run with {'; '.join(changed)}: resume with the settings it had, or add "
                "--allow_config_change True"
            )
        if run.steps_per_epoch != self.steps_per_epoch and 0 < run.progress.step < run.steps_per_epoch:
            raise UserError(
                f"{path} was written in the middle of an epoch of {run.steps_per_epoch} steps, which now has "
                f"{self.steps_per_epoch}: resume with the data and batch size it had"
            )

    def _check_finite(self, values: Mapping[str, np.ndarray], progress: Progress) -> None:
        broken = next((name for name, value in values.items() if not np.isfinite(value).all()), None)
        if broken is not None:
            raise UserError(
                f"{broken} is not finite after epoch {progress.epoch + 1}, step {progress.step} "
                f"of {self.steps_per_epoch}; {self.last_good()}; lower lr, clip the gradient (clip_grad) or use "
                "amp_level O0"
            )

    def _gather(self, value: np.ndarray) -> np.ndarray:
        """(…) → (ranks, …), for types of four bytes."""
        words = np.ascontiguousarray(value).reshape(-1).view(np.int32)
        return self.ranks.gather(words).view(value.dtype).reshape(self.ranks.size, *value.shape)

    def _differing(self, values: Mapping[str, np.ndarray]) -> list[str]:
        """Names of the values that are not the same bits on all ranks."""
        if self.ranks.size == 1:
            return []
        from mindcv_reparam.training.digest import digest  # imports Numba, which only training has

        with ThreadPoolExecutor(THREADS) as pool:
            digests = list(pool.map(digest, values.values()))
        gathered = self.ranks.gather(np.frombuffer(b"".join(digests), np.int32)).reshape(self.ranks.size, -1, 4)
        differs = (gathered != gathered[0]).any(axis=(0, 2))
        return [name for name, different in zip(values, differs) if different]


def resume_path(resume: str, folder: Path, model: str, ranks: Ranks) -> Path | None:
    """The file that the setting `resume` asks for: "auto" is the one in `folder`, if there is one. Collective.

    Raises:
        UserError: a path was given and nothing or another kind of file is there, or not every rank sees it.
    """
    if not resume:
        return None
    path = folder if resume == "auto" else Path(resume)
    path = path if path.suffix == ".npz" or path.is_file() else state_path(path, model)
    found = int(ranks.sum([path.is_file()])[0])
    if 0 < found < ranks.size:
        raise UserError(f"{found} of {ranks.size} ranks see {path}: put ckpt_save_dir on storage that all hosts share")
    if not found and resume != "auto":
        raise UserError(f"nothing to resume at {path}: give --resume auto, a file *_resume.npz or the folder of one")
    if kind_of(path) not in ("resume", "npz", "empty", None):
        raise UserError(mistaken(path, "whole file to resume from"))
    return path if found else None


def state_path(folder: Path, model: str) -> Path:
    return folder / f"{model}_resume.npz"


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What training depends on and is not as it was, as texts. A setting that the file lacks had its default."""
    changed = []
    for name, item in SETTINGS.items():
        if name not in FREE and "T" in item.metadata["scripts"]:
            before, now = saved.get(name, _plain(item.default)), current[name]
            if before != now:
                changed.append(f"{name} {before!s:.80} instead of {now}")
    return changed


def _settings(config: Config) -> dict[str, Any]:
    return {name: _plain(getattr(config, name)) for name in SETTINGS}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _write(path: Path, entries: Mapping[str, np.ndarray]) -> None:
    """What `np.savez` does, which leaves its archive open when the disk is full."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in entries.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, value, allow_pickle=False)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Archive]:
    try:
        with open_arrays(path) as archive:
            yield archive
    except DamagedArrays as error:
        raise UserError(
            f"{path} is no whole file to resume from: it is truncated, damaged or of another kind ({error}); resume "
            "from an earlier one, or start from a checkpoint by ckpt_path"
        ) from None


def _read_run(path: Path, archive: Archive) -> Run:
    header = archive.headers.get(_RUN)
    if header is None or header.shape or header.dtype.kind != "U" or header.size > _LONGEST:
        raise DamagedArrays("it does not say which run it is of")
    try:
        return _SCHEMA.validate_json(str(archive.read(_RUN)), strict=True)  # losses may be NaN, as Python's JSON has it
    except (ValidationError, ValueError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else "a text that is none"
        raise DamagedArrays(f"what it says of its run: {reason}") from None


def _kind(parameter: Parameter) -> tuple[tuple[int, ...], np.dtype]:
    value = parameter.asnumpy()
    return value.shape, value.dtype


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(name[:80] for name in names[:_SHOWN])}{more}"
