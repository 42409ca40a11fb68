"""Scripts run in the process of the tests, which is quicker than starting one for each."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from mindcv_reparam import registry
from mindcv_reparam.config import Config, add_settings, configuration
from mindcv_reparam.errors import Parser
from mindcv_reparam.runtime import prepare


@contextlib.contextmanager
def families_of(path: str | Path) -> Iterator[None]:
    """This process knows the families of a file too, as a job does whose environment names it; afterwards no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.VARIABLE, str(path))
        registry.families.cache_clear()
        registry.models.cache_clear()
        yield
    registry.families.cache_clear()
    registry.models.cache_clear()


def run_here(script: ModuleType, *arguments: object) -> None:
    """Run the ``main`` of train, validate or export; what it raises is raised here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        assert not script.main()


def parse(words: Sequence[str], command: str) -> Config:
    """The configuration that train, validate or export makes of a command line."""
    parser = Parser(prog=f"{command}.py")
    add_settings(parser, command)
    return configuration(parser.parse_args(words), command)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Undo what the scripts set for the whole process: where the log goes, and MindSpore's mode."""
    log = logging.getLogger("mindcv_reparam")
    before = log.handlers, log.level, log.propagate
    try:
        yield
    finally:
        log.handlers, log.propagate = before[0], before[2]
        log.setLevel(before[1])
        prepare("CPU")
