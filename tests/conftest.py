"""The tests run as the scripts do: MindSpore set up by ``prepare``, on CPU, in strict graph mode."""

import gc
import logging
import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
from here import families_of
from processes import ENVIRONMENT

from mindcv_reparam import registry, watch
from mindcv_reparam.runtime import prepare

prepare("CPU", seed=0)

# Families whose models teach those that the package is for, or are imitated by them. What every family is asked, and
# takes a compilation to answer, `make test` asks visformer, riformer and fastvit, and `make test-all` these, too.
COMPANIONS = re.compile(r"poolformer|gfnet|regnet")
OF_EVERY_FAMILY = {
    *("test_cpu", "test_export_graph", "test_export_lite", "test_export_onnx", "test_features", "test_goldens"),
    *("test_reparam", "test_reparam_graph", "test_training_precision"),
}


# Files that take minutes, or wait for most of their time: begun first, so that no worker is left with one at the end.
FIRST = ("test_resume", "test_scripts", "test_watch", "test_distributed", "test_hosts", "test_detection_resume")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in FIRST)
    for item in items:
        if item.path.stem in OF_EVERY_FAMILY and COMPANIONS.search(item.name.partition("[")[2]):
            item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(scope="session", autouse=True)
def _at_once() -> None:
    """Operators that run one by one do so at once: the threads that hand them on would take most of the time."""
    import mindspore as ms

    ms.set_context(pynative_synchronize=True)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """MindSpore collects garbage before each compilation; it need not walk all that was imported every time."""
    gc.collect()
    gc.freeze()


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
def by_operator() -> Iterator[None]:
    """One test like those of such a module: its networks run once."""
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


@pytest.fixture(scope="module")
def known_tiny() -> Iterator[None]:
    """This process knows the models that jobs of processes.py train."""
    with families_of(ENVIRONMENT[registry.VARIABLE]):
        yield
