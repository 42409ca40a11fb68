"""The tests run as the scripts do: MindSpore set up by ``prepare``, on CPU, in strict graph mode."""

import logging
import random
from collections.abc import Iterator

import numpy as np
import pytest

from mindcv_reparam import watch
from mindcv_reparam.runtime import prepare

prepare("CPU", seed=0)


@pytest.fixture(autouse=True)
def _log_as_imported() -> None:
    """Each test finds the package's log as an import leaves it, whatever scripts ran in this process before."""
    log = logging.getLogger("mindcv_reparam")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws does not hang on the tests before it."""
    import mindspore as ms

    random.seed(0)
    np.random.seed(0)
    ms.set_seed(0)


@pytest.fixture(autouse=True)
def _left_unwatched() -> Iterator[None]:
    """No job in this process leaves its watch behind, which would end the process after ``stall_timeout``."""
    yield
    left, watch._State.watch = watch._State.watch, None
    assert left is None


@pytest.fixture(scope="module")
def pynative() -> Iterator[None]:
    """The module's networks run operator by operator, since compiling would take most of the time."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture
def graph_mode(pynative: None) -> Iterator[None]:
    """A test of such a module that compiles."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)
